"""Files that are saved and runs that are exported: all of it can be loaded."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sentencepiece
from safetensors import numpy as safetensors_numpy
from tiny_mdlm import BUFFER, DEPTH, HEADS, WIDTH, mdlm_tensors

from dsl_jax import convert
from dsl_jax.convert import __main__ as command
from dsl_jax.data import prepare, tokenizers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


@pytest.fixture
def path(tmp_path):
  """A file of a tiny MDLM."""
  path = tmp_path / "a.safetensors"
  safetensors_numpy.save_file(mdlm_tensors(), path)
  return path


@pytest.mark.parametrize("mask_id", [0, 5, 11])
def test_round_trip_keeps_every_bit_but_the_heads_mask_row(
  path, tmp_path, mask_id
):
  saved = tmp_path / "b.safetensors"
  params, cfg = convert.mdlm.load(path, mask_id=mask_id, sphere_dim=4)
  convert.mdlm.save(params, saved, cfg=cfg, mask_id=mask_id)
  tensors, back = mdlm_tensors(), safetensors_numpy.load_file(saved)
  for name in ("weight", "bias"):
    tensors[f"backbone.output_layer.linear.{name}"][mask_id] = 0
  for name, array in tensors.items():
    np.testing.assert_array_equal(back[name], array, name)
  again, _ = convert.mdlm.load(saved)  # the file notes its mask_id
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_save_rejects_what_does_not_fit(path, tmp_path):
  params, cfg = convert.mdlm.load(path)
  headless = {name: tree for name, tree in params.items() if name != "head"}
  plain = {name: x for name, x in params.items() if name != "converter"}
  for wrong, options, named in (
    (headless, {"cfg": cfg}, "head.bias"),
    (params | {"extra": np.ones(3)}, {"cfg": cfg}, "extra"),
    (params, {"cfg": cfg, "mask_id": 12}, "mask_id is 12"),
    (params, {"cfg": dataclasses.replace(cfg, width=16)}, "embed.embedding"),
    (params, {}, "cfg is None"),
  ):
    with pytest.raises(ValueError, match=named):
      convert.mdlm.save(wrong, tmp_path / "out", **options)
  assert not (tmp_path / "out").exists()
  convert.mdlm.save(plain, path, cfg=cfg)
  assert set(safetensors_numpy.load_file(path)) == set(mdlm_tensors())
  convert.mdlm.save(plain, path)  # nothing tells the heads
  assert BUFFER not in safetensors_numpy.load_file(path)


def test_command_reports_in_one_sentence(path, tmp_path, capsys):
  out = str(tmp_path / "out")
  assert command.main(["mdlm", str(path), "--out", out, "--beta_init=2"]) == 0
  shown = capsys.readouterr().out
  params, cfg = convert.mdlm.load(out)
  assert f"fingerprint {convert.mdlm.fingerprint(params, cfg)}" in shown
  assert params["converter"]["beta"] == 2
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["n_heads"] == cfg.heads == HEADS
  path.write_bytes(path.read_bytes()[:100])
  assert command.main(["mdlm", str(path), "--out", out]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1


def test_command_overwrites_only_its_own_folders(path, tmp_path, capsys):
  out, whole = tmp_path / "out", path.read_bytes()

  def run(out):
    return command.main(["mdlm", str(path), "--out", str(out)])

  out.mkdir()
  assert run(out) == 0  # it was empty
  assert run(out) == 0  # it is ours
  (out / "config.json").write_text('{"model_type": "mdlm"}')
  before = {file.name: file.read_bytes() for file in out.iterdir()}
  capsys.readouterr()
  assert run(out) == run(path) == run(path / "below") == 2
  assert capsys.readouterr().err.count("error: ") == 3
  assert {file.name: file.read_bytes() for file in out.iterdir()} == before
  assert path.read_bytes() == whole
  params, cfg = convert.mdlm.load(path)
  with pytest.raises(ValueError, match="not written by dsl_jax"):
    convert.mdlm.save(params, out, cfg=cfg)


def train_vocabulary(path):
  with open(__file__) as lines, path.open("wb") as model:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines, model_writer=model, vocab_size=200
    )


def test_run_is_exported(tmp_path, capsys):
  workdir, out = str(tmp_path / "run"), tmp_path / "out"
  vocabulary = tmp_path / "mine.model"
  train_vocabulary(vocabulary)
  tokenizer = tokenizers.load(f"sentencepiece:{vocabulary}")
  net = denoiser_lib.NetConfig(200, WIDTH, DEPTH, HEADS, 4, evidence_skip=True)
  data = config_lib.Data(
    tokenizer=f"sentencepiece:{vocabulary}",
    length=77,
    fingerprint=tokenizer.fingerprint,
  )
  cfg = config_lib.Config("tiny", net, data=data, clean_snr=50.0)
  like = jax.eval_shape(denoiser_lib.make_denoiser(net).init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

  state = state_lib.create(jax.tree.map(draw, like), optax.identity())
  state = state._replace(ema=jax.tree.map(draw, like))
  workdir_lib.claim(workdir, cfg, "hash of the rows")
  checkpoints = checkpoint.Checkpoints(workdir, keep=1)
  checkpoints.save(3, state)
  checkpoints.close()

  for options, expected in (([], state.ema), (["--raw"], state.params)):
    assert command.main(["export", workdir, "--out", str(out), *options]) == 0
    assert "step 3" in capsys.readouterr().out
    params, cfg_again = convert.mdlm.load(out)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert cfg_again == net
  config = json.loads((out / "config.json").read_text())
  assert config["model_length"] == 77
  assert config["dsl_clean_snr"] == cfg.clean_snr
  vocabulary.unlink()  # the folder has its own
  assert command.main(["export", str(out), "--out", str(tmp_path / "b")]) == 0
  assert json.loads((tmp_path / "b" / "config.json").read_text()) == config
  out = out.rename(tmp_path / "moved")
  run = workdir_lib.stored(out)
  assert run.data_hash == "hash of the rows" and run.step == 3
  moved = dataclasses.replace(data, tokenizer=f"sentencepiece:{out}")
  assert run.config == dataclasses.replace(cfg, data=moved)
  found = prepare.load_tokenizer(run.config)
  assert found.fingerprint == tokenizer.fingerprint
  model = (out / "tokenizer.model").read_bytes()
  assert model.count(b"import") > 0  # of equal size, with another piece
  other = model.replace(b"import", b"tropmi")
  (out / "tokenizer.model").write_bytes(other)
  with pytest.raises(errors.UserError, match="has another vocabulary"):
    prepare.load_tokenizer(run.config)


def test_a_folder_without_a_run_names_the_fix(path, tmp_path, capsys):
  params, cfg = convert.mdlm.load(path)
  convert.mdlm.save(params, tmp_path / "out", cfg=cfg)  # as earlier versions
  words = r"lacks 'dsl_run'.*dsl_jax.convert export .*out --out"
  with pytest.raises(errors.UserError, match=words):
    workdir_lib.stored(tmp_path / "out")
  argv = ["export", str(tmp_path / "out"), "--out", str(tmp_path / "new")]
  options = ["--clean_snr=30", "--tokenizer"]
  assert command.main([*argv, *options, "text8"]) == 2
  assert "set it to the 27 ids" in capsys.readouterr().err
  assert command.main([*argv, *options[:1]]) == 0
  assert workdir_lib.stored(tmp_path / "new").config.clean_snr == 30


def test_the_code_of_the_card_samples(path, tmp_path):
  params, cfg = convert.mdlm.load(path, sphere_dim=4)
  out, readme = tmp_path / "out", tmp_path / "out" / "README.md"
  convert.mdlm.save(params, out, cfg=cfg, length=9, clean_snr=40.0)
  card = readme.read_text()
  assert "clean_snr = 40." in card and "$" not in card
  code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
  assert "clean_snr=40," in code
  names = {}
  exec(code.replace("this/folder", str(out)), names)
  assert names["tokens"].shape == (1, 9)

  convert.mdlm.save(params, out, cfg=cfg)
  assert "They are fresh" in readme.read_text()
  plain = {name: x for name, x in params.items() if name != "converter"}
  convert.mdlm.save(plain, out, cfg=cfg)
  assert "tensors `dsl." not in readme.read_text()
