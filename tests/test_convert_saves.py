"""Files that are saved and run folders exported: all of it can be loaded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors_numpy
from tiny_mdlm import DEPTH, HEADS, WIDTH, mdlm_tensors

from dsl_jax import convert
from dsl_jax.convert import __main__ as command
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


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
  net = denoiser_lib.NetConfig(9, WIDTH, DEPTH, HEADS, 4, evidence_skip=True)
  cfg = config_lib.Config("tiny", net, data=config_lib.Data(length=77))
  like = jax.eval_shape(denoiser_lib.make_denoiser(net).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  params = jax.tree.map(draw, like)
  state = state_lib.create(params, optax.identity())
  state = state._replace(ema=jax.tree.map(draw, like))
  workdir_lib.claim(run, cfg, "hash of the rows")
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
