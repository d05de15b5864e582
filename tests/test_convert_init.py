"""A run that starts from an MDLM: the paper's config on a tiny one."""

import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from dsl_jax import convert, main
from dsl_jax.convert import mapping
from dsl_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
SIZES = mapping.Sizes(rows=28, width=16, depth=2, cond_dim=8)
HEADS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny MDLM of 27 tokens and the mask."""
  folder = tmp_path_factory.mktemp("init")
  rng = np.random.default_rng(0)
  tensors = {
    f"backbone.{entry.key}": rng.standard_normal(
      entry.expected(SIZES), np.float32
    )
    for entry in mapping.entries(SIZES.depth)
  }
  buffer = mapping.inverse_frequencies(SIZES.width // HEADS)
  tensors[f"backbone.{mapping.BUFFER}"] = buffer
  safetensors_numpy.save_file(tensors, folder / "mdlm.safetensors")
  return folder


def run(folder, name, **changes):
  settings = {
    "init_from": folder / "mdlm.safetensors",
    "net.vocab_size": 27,
    "net.width": 16,
    "net.depth": 2,
    "net.heads": HEADS,
    "net.cond_dim": 8,
    "net.sphere_dim": 4,
    "data.corpus": "kjv",
    "data.tokenizer": "text8",
    "data.length": 16,
    "data.wrap": False,
    "data.dir": folder / "rows",
    "train.batch_size": 8,
    "train.steps": 1,
    "train.eval_every": 0,
    "net.remat": "none",
    "eval.batch_size": 8,
    "optim.learning_rate": 1e-30,  # moves no number of float32
  }
  return main.main(
    [
      *("main", f"--config={ROOT / 'configs/owt.py'}"),
      f"--workdir={folder / name}",
      *(f"--config.{key}={x}" for key, x in (settings | changes).items()),
    ]
  )


def test_owt_config_starts_from_the_masked_model(folder, capsys):
  assert run(folder, "run") == 0
  source = folder / "mdlm.safetensors"
  want, cfg = convert.mdlm.load(source, sphere_dim=4)
  found, step = checkpoint.restore_params(str(folder / "run"))
  assert step == 1 and set(found) == set(want)
  for name in ("embed", "cond", "blocks", "final", "head"):
    for a, b in zip(*(_leaves(tree[name]) for tree in (found, want))):
      np.testing.assert_allclose(a, b, rtol=1e-6)
  shown = capsys.readouterr().out
  assert f"fingerprint {convert.fingerprint.compute(want, cfg)}" in shown


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
def test_another_network_is_refused_in_one_sentence(
  folder, capsys, changes, named
):
  rows = {"data.dir": folder / f"rows_{changes.get('data.tokenizer', 'text8')}"}
  assert run(folder, "refused", **(rows | changes)) == 2
  error = capsys.readouterr().err
  assert named in error.splitlines()[-1] and "Traceback" not in error
  assert not (folder / "refused").exists()


def _leaves(tree):
  if not isinstance(tree, dict):
    return [np.asarray(tree)]
  return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
