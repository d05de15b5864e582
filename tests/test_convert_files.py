"""Files that are damaged, hostile or of another model; PyTorch not needed."""

import dataclasses
import json
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors_numpy

from dsl_jax import convert
from dsl_jax.convert import __main__ as command
from dsl_jax.nets import denoiser
from dsl_jax.runtime import checkpoint, schema
from dsl_jax.runtime import state as states
from dsl_jax.runtime import workdir as workdirs

ROWS, WIDTH, DEPTH, HEADS, COND = 12, 8, 1, 2, 6
BLOCK_SHAPES = {
  "norm1.weight": (WIDTH,),
  "attn_qkv.weight": (3 * WIDTH, WIDTH),
  "attn_out.weight": (WIDTH, WIDTH),
  "norm2.weight": (WIDTH,),
  "mlp.0.weight": (4 * WIDTH, WIDTH),
  "mlp.0.bias": (4 * WIDTH,),
  "mlp.2.weight": (WIDTH, 4 * WIDTH),
  "mlp.2.bias": (WIDTH,),
  "adaLN_modulation.weight": (6 * WIDTH, COND),
  "adaLN_modulation.bias": (6 * WIDTH,),
}
SHAPES = {
  "vocab_embed.embedding": (ROWS, WIDTH),
  "sigma_map.mlp.0.weight": (COND, 256),
  "sigma_map.mlp.0.bias": (COND,),
  "sigma_map.mlp.2.weight": (COND, COND),
  "sigma_map.mlp.2.bias": (COND,),
  **{f"blocks.0.{name}": shape for name, shape in BLOCK_SHAPES.items()},
  "output_layer.norm_final.weight": (WIDTH,),
  "output_layer.linear.weight": (ROWS, WIDTH),
  "output_layer.linear.bias": (ROWS,),
  "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
  "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
}
BUFFER = "backbone.rotary_emb.inv_freq"


def mdlm_tensors():
  """A tiny MDLM in float32 under its own names."""
  rng = np.random.default_rng(0)
  tensors = {
    f"backbone.{name}": rng.standard_normal(shape, np.float32)
    for name, shape in SHAPES.items()
  }
  return {**tensors, BUFFER: np.array([1.0, 0.01], np.float32)}


def mutations():
  """Yields wrong sets of tensors and what the error must name."""
  good = mdlm_tensors()
  for name, array in good.items():
    bare = name.removeprefix("backbone.")
    compiled = name.replace(".", "._orig_mod.", 1)
    rest = {key: value for key, value in good.items() if key != name}
    yield rest, name
    yield {**rest, name + "_": array}, name
    yield {**rest, bare: array}, name
    yield {**good, compiled: array}, name
    yield {**rest, name: np.concatenate([array, array])}, bare
    yield {**rest, name: array[None]}, bare
    yield {**rest, name: array.astype(np.float64)}, bare
    yield {**rest, name: array.astype(np.int32)}, bare
    if name != BUFFER:
      yield {**rest, name: array.astype(np.float16)}, bare
    broken = array.copy()
    broken.flat[-1] = np.nan
    yield {**rest, name: broken}, bare
    if array.ndim == 2 and array.shape[0] != array.shape[1]:
      yield {**rest, name: array.T.copy()}, bare
  yield {**good, BUFFER: np.array([1, 0.1], np.float32)}, "inv_freq"
  yield {**good, "backbone.blocks.1.new": good[BUFFER]}, "blocks.1.new"
  yield {**good, "dsl.converter.beta": np.ones(1, np.float32)}, "dsl"
  yield {"wte.weight": np.ones((3, 4), np.float32)}, "wte.weight"
  yield {}, "vocab_embed.embedding"


def assert_refused(path, named):
  """One sentence that names what is wrong."""
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    convert.mdlm.load(path)
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message and len(message) < 1500


def test_every_wrong_tensor_is_named(tmp_path):
  path = tmp_path / "weights.safetensors"
  count = 0
  for tensors, named in mutations():
    safetensors_numpy.save_file(tensors, path)
    assert_refused(path, named)
    count += 1
  assert count > 200


def test_truncated_and_foreign_files(tmp_path):
  path = tmp_path / "weights.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  whole = path.read_bytes()
  for size in [*range(12), *range(12, len(whole), 1013), len(whole) - 1]:
    path.write_bytes(whole[:size])
    assert_refused(path, "weights.safetensors")
  for start in (b"PK\3\4", b"\x80\x02", b"ustar", b"version https", b"\0" * 99):
    path.write_bytes(start + whole[:3000])
    assert_refused(path, "weights.safetensors")
  assert_refused(tmp_path / "none.ckpt", "none.ckpt")
  assert_refused(tmp_path, "model.safetensors")


def test_header_with_a_key_twice_is_refused(tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  whole = path.read_bytes()
  size = struct.unpack("<Q", whole[:8])[0]
  header, data = whole[8 : 8 + size].rstrip(), whole[8 + size :]
  entry = re.search(rb'"backbone.vocab_embed.embedding":{[^}]*}', header)[0]
  for other in (entry, entry.replace(b"[12,8]", b"[8,12]")):
    twice = header[:-1] + b"," + other + b"}"
    path.write_bytes(struct.pack("<Q", len(twice)) + twice + data)
    assert_refused(path, "backbone.vocab_embed.embedding twice")


@pytest.mark.parametrize("length", [19280 + 65536, 25216])
def test_any_length_of_the_header_is_read(tmp_path, length):
  """The length comes first and may begin as an archive or a pickle does."""
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  whole = path.read_bytes()
  size = struct.unpack("<Q", whole[:8])[0]
  header = whole[8 : 8 + size].ljust(length)
  path.write_bytes(struct.pack("<Q", length) + header + whole[8 + size :])
  assert path.read_bytes()[:2] == b"PK" or path.read_bytes()[:1] == b"\x80"
  assert convert.mdlm.load(path)[1].heads == HEADS


@pytest.mark.parametrize(
  "config",
  [
    '{"n_heads": 4, "vocab_size": 12}',
    '{"hidden_dim": "8"}',
    '{"vocab_size": 13}',
    '{"time_conditioning": true}',
    '{"n_blocks": null}',
    '{"dsl_evidence_skip": 1.5}',
    '{"model_length": "long"}',
    '{"dsl_clean_snr": -1}',
    "[]",
    "{",
    "[" * 100_000,
  ],
)
def test_config_must_agree(tmp_path, config):
  safetensors_numpy.save_file(mdlm_tensors(), tmp_path / "model.safetensors")
  assert convert.mdlm.load(tmp_path)[1].heads == HEADS
  (tmp_path / "config.json").write_text(config)
  assert_refused(tmp_path, "config.json")


@pytest.mark.parametrize("heads, named", [(1, 1), (4, 4), (3, "heads is 3")])
def test_config_tells_the_heads_where_the_buffer_is_gone(
  tmp_path, heads, named
):
  tensors = mdlm_tensors()
  del tensors[BUFFER]
  safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps({"n_heads": heads}))
  if heads == named:
    assert convert.mdlm.load(tmp_path)[1].heads == heads
    with pytest.raises(ValueError, match="n_heads"):
      convert.mdlm.load(tmp_path, heads=2)
  else:
    assert_refused(tmp_path, named)


def test_unmoved_row_of_the_head_checks_the_mask(tmp_path):
  tensors, path = mdlm_tensors(), tmp_path / "a.safetensors"
  tensors["backbone.output_layer.linear.bias"][3] = 0
  safetensors_numpy.save_file(tensors, path)
  assert_refused(path, "mask_id=3")
  convert.mdlm.load(path, mask_id=3)


def test_places_that_are_no_files(tmp_path):
  (tmp_path / "empty.ckpt").touch()
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
  (tmp_path / "folder").mkdir()
  for name in ("empty.ckpt", "loop", "broken", "folder", "nowhere"):
    assert_refused(tmp_path / name, name)
  assert_refused("/dev/null", "/dev/null")
  real = tmp_path / "real.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), real)
  (tmp_path / "link").symlink_to(real)
  assert convert.mdlm.load(tmp_path / "link")[1].heads == HEADS


@pytest.mark.parametrize("mask_id", [0, 5, 11])
def test_round_trip_keeps_every_bit_but_the_heads_mask_row(tmp_path, mask_id):
  tensors = mdlm_tensors()
  first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
  safetensors_numpy.save_file(tensors, first)
  params, cfg = convert.mdlm.load(first, mask_id=mask_id, sphere_dim=4)
  convert.mdlm.save(params, second, cfg=cfg, mask_id=mask_id)

  back = safetensors_numpy.load_file(second)
  for name in ("weight", "bias"):
    head = tensors[f"backbone.output_layer.linear.{name}"]
    head[mask_id] = 0
  for name, array in tensors.items():
    np.testing.assert_array_equal(back[name], array, name)
  again, _ = convert.mdlm.load(second)  # the file knows its mask_id
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_heads_are_never_guessed(tmp_path):
  tensors, path = mdlm_tensors(), tmp_path / "a.safetensors"
  safetensors_numpy.save_file(tensors, path)
  params, _ = convert.mdlm.load(path)
  with pytest.raises(ValueError, match="cfg"):
    convert.mdlm.save(params, tmp_path / "folder")
  convert.mdlm.save(params, path)
  assert BUFFER not in safetensors_numpy.load_file(path)
  assert_refused(path, BUFFER)
  assert convert.mdlm.load(path, heads=4)[1].heads == 4
  with pytest.raises(ValueError, match="heads"):
    convert.mdlm.load(path, heads=3)


def test_save_refuses_other_trees(tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  params, cfg = convert.mdlm.load(path)
  for part, named in (("head", "head.bias"), ("embed", "embed.embedding")):
    rest = {name: tree for name, tree in params.items() if name != part}
    with pytest.raises(ValueError, match=named):
      convert.mdlm.save(rest, path, cfg=cfg)
  with pytest.raises(ValueError, match="extra"):
    convert.mdlm.save({**params, "extra": np.ones(3)}, path, cfg=cfg)
  with pytest.raises(ValueError, match="mask_id"):
    convert.mdlm.save(params, path, cfg=cfg, mask_id=12)
  other = dataclasses.replace(cfg, width=16, heads=4)
  with pytest.raises(ValueError, match="cfg is of"):
    convert.mdlm.save(params, path, cfg=other)
  plain = {name: tree for name, tree in params.items() if name != "converter"}
  convert.mdlm.save(plain, path, cfg=cfg)
  assert set(safetensors_numpy.load_file(path)) == set(mdlm_tensors())


def test_command_reports_in_one_sentence(tmp_path, capsys):
  path, out = tmp_path / "a.safetensors", str(tmp_path / "out")
  safetensors_numpy.save_file(mdlm_tensors(), path)
  assert command.main(["mdlm", str(path), "--out", out, "--beta_init=2"]) == 0
  assert "12 blocks" not in capsys.readouterr().out
  params, cfg = convert.mdlm.load(out)
  assert params["converter"]["beta"] == 2
  said = json.loads((tmp_path / "out" / "config.json").read_text())
  assert said["n_heads"] == cfg.heads == HEADS
  path.write_bytes(path.read_bytes()[:100])
  assert command.main(["mdlm", str(path), "--out", out]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1


def test_command_covers_nothing_of_others(tmp_path, capsys):
  path, out = tmp_path / "a.safetensors", tmp_path / "out"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  call = lambda out: command.main(["mdlm", str(path), "--out", str(out)])
  out.mkdir()
  assert call(out) == 0  # it was empty
  assert call(out) == 0  # it is ours
  capsys.readouterr()
  (out / "config.json").write_text('{"model_type": "mdlm"}')
  before = {file.name: file.read_bytes() for file in out.iterdir()}
  assert call(out) == 2
  assert "not ours" in capsys.readouterr().err
  assert {f.name: f.read_bytes() for f in out.iterdir()} == before
  whole = path.read_bytes()
  assert call(path) == 2 and path.read_bytes() == whole
  assert capsys.readouterr().err.count("\n") == 1
  assert call(path / "below") == 2
  params, cfg = convert.mdlm.load(path)
  with pytest.raises(ValueError, match="not ours"):
    convert.mdlm.save(params, out, cfg=cfg)


def test_run_is_exported(tmp_path, capsys):
  run, out = str(tmp_path / "run"), tmp_path / "out"
  net = denoiser.NetConfig(9, WIDTH, DEPTH, HEADS, 4, evidence_skip=True)
  cfg = schema.Config("tiny", net, data=schema.Data(length=77))
  like = jax.eval_shape(denoiser.make_denoiser(net).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  params = jax.tree.map(draw, like)
  state = states.create(params, optax.identity())
  state = state._replace(ema=jax.tree.map(draw, like))
  workdirs.claim(run, cfg, "hash of the rows")
  checkpoints = checkpoint.Checkpoints(run, keep=1)
  checkpoints.save(3, state)
  checkpoints.close()

  for options, want in (([], state.ema), (["--raw"], state.params)):
    assert command.main(["export", run, "--out", str(out), *options]) == 0
    assert "step 3" in capsys.readouterr().out
    again, cfg_again = convert.mdlm.load(out)
    jax.tree.map(np.testing.assert_array_equal, again, want)
    assert cfg_again == net
  said = json.loads((out / "config.json").read_text())
  assert (said["model_length"], said["dsl_clean_snr"]) == (77, cfg.clean_snr)
  assert "clean_snr = 100" in (out / "README.md").read_text()
  assert command.main(["export", str(out), "--out", str(tmp_path / "b")]) == 0
  again = json.loads((tmp_path / "b" / "config.json").read_text())
  assert again == said
