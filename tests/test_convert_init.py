"""Training that starts from an MDLM: the paper's config on a tiny one."""

import functools
import pathlib

import chex
import jax
import numpy as np
import pytest
import tiny_mdlm
from safetensors import numpy as safetensors_numpy

from dsl_jax import convert, main
from dsl_jax.convert import __main__ as command
from dsl_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Holds an MDLM of 27 tokens and the mask."""
  folder = tmp_path_factory.mktemp("init")
  tensors = tiny_mdlm.mdlm_tensors(rows=28, width=16, depth=2, cond=8)
  safetensors_numpy.save_file(tensors, folder / "mdlm.safetensors")
  return folder


def train(folder, name, **changes):
  settings = {
    "init_from": folder / "mdlm.safetensors",
    "net.vocab_size": 27,
    "net.width": 16,
    "net.depth": 2,
    "net.heads": tiny_mdlm.HEADS,
    "net.cond_dim": 8,
    "net.sphere_dim": 4,
    "net.remat": "none",
    "data.corpus": "kjv",
    "data.tokenizer": "text8",
    "data.length": 16,
    "data.wrap": False,
    "data.dir": folder / "rows",
    "train.batch_size": 8,
    "train.steps": 1,
    "train.eval_every": 0,
    "eval.batch_size": 8,
    "optim.learning_rate": 1e-30,  # changes no float32
  }
  flags = [f"--config.{key}={x}" for key, x in (settings | changes).items()]
  config = f"--config={ROOT / 'configs/owt.py'}"
  return main.main(["main", config, f"--workdir={folder / name}", *flags])


def test_training_starts_from_the_masked_model(folder, capsys):
  assert train(folder, "run") == 0
  expected, cfg = convert.mdlm.load(folder / "mdlm.safetensors", sphere_dim=4)
  params, step = checkpoint.restore_params(str(folder / "run"))
  assert step == 1
  for name, tree in expected.items():
    if name != "converter":  # drawn with the config's seed
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        params[name],
        tree,
      )
  assert "evidence_gain" not in params
  shown = capsys.readouterr().out
  assert f"fingerprint {convert.mdlm.fingerprint(expected, cfg)}" in shown


def test_the_evidence_skip_of_a_masked_model_starts_at_the_posterior(folder):
  assert train(folder, "skip", **{"net.evidence_skip": True}) == 0
  params, _ = checkpoint.restore_params(str(folder / "skip"))
  assert params["evidence_gain"] == 1
  exported = ["export", folder / "skip", "--out", folder / "exported"]
  assert command.main([str(x) for x in exported]) == 0
  assert convert.mdlm.load(folder / "exported")[1].evidence_skip
  again = {"init_from": folder / "exported"}
  assert train(folder, "without", **again) == 2
  again["net.evidence_skip"] = True
  assert train(folder, "again", **again) == 0
  trained, _ = checkpoint.restore_params(str(folder / "again"))
  chex.assert_trees_all_close(trained, params, rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize(
  "changes, named",
  [
    ({"net.width": 32}, "net.width"),
    ({"net.vocab_size": 34, "data.tokenizer": "text8-mdlm"}, "net.vocab_size"),
    ({"net.heads": 4}, "heads is 4"),
    ({"net.mlp_ratio": 2}, "net.mlp_ratio"),
    ({"init_from": "nowhere"}, "nowhere"),
  ],
)
def test_another_network_is_rejected(folder, capsys, changes, named):
  rows = {"data.dir": folder / f"rows_{changes.get('data.tokenizer', 'text8')}"}
  assert train(folder, "rejected", **(rows | changes)) == 2
  error = capsys.readouterr().err
  assert named in error.splitlines()[-1] and "Traceback" not in error
  assert not (folder / "rejected").exists()
