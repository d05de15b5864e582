"""A tiny run for the modes that score, and a judge of letters."""

import pathlib

import numpy as np
import pytest

from dsl_jax import main
from dsl_jax.data import corpora, packing, tokenizers
from dsl_jax.quality import judge as judges
from dsl_jax.runtime import command

CONFIG = pathlib.Path(__file__).parent.parent / "configs/quickstart.py"
TINY = {
  "data.corpus": "text:none",
  "net.width": 16,
  "net.depth": 1,
  "net.heads": 2,
  "net.sphere_dim": 4,
  "data.length": 16,
  "train.steps": 2,
  "train.batch_size": 8,
  "train.eval_every": 0,
  "train.log_every": 1,
  "train.checkpoint_every": 2,
  "eval.batch_size": 8,
  "eval.sequences": 11,
  "eval.snr_points": 3,
  "eval.samples": 6,
  "eval.judge": "letters",
  "sample.steps": 3,
  "sample.batch_size": 4,
}


class LetterJudge:
  """A judge of single letters, so that no test needs a real one."""

  name, context, bos_id, eos_id = "letters", 64, None, None

  def __init__(self, spec="letters"):
    if spec != "letters":
      raise ValueError(f"the judge {spec!r} cannot be loaded; give a folder.")

  def encode(self, text):
    return np.array([ord(x) % 32 for x in text])

  def nats(self, ids):
    return np.log(27.0) + 0.01 * (ids[1:] - ids[:-1])

  def features(self, ids):
    return np.bincount(ids, minlength=33)[:33].astype(np.float32)


def quickstart(*extra):
  """The quickstart's config with changes."""
  argv = ["main", f"--config={CONFIG}", "--workdir=x", "--mode=reproduce"]
  return command.parse([*argv, *extra], main.MODES)[0]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  """A folder with a trained run, and (mode, *flags, **keys) -> argv."""
  root = tmp_path_factory.mktemp("scoring")
  (root / "rows").mkdir()
  chapters = corpora.kjv().splits["validation"]
  for split, text in (("train", chapters[:1]), ("validation", chapters[1:2])):
    packing.write(
      str(root / "rows"),
      split,
      text,
      tokenizers.load("text8"),
      length=16,
      origin=packing.Origin("text", "two chapters", "text8"),
    )

  def of(mode, *extra, workdir="run", **changes):
    settings = TINY | {"data.dir": str(root / "rows")} | changes
    return [
      "main",
      f"--config={CONFIG}",
      f"--workdir={root / workdir}",
      f"--mode={mode}",
      *(f"--config.{key}={value}" for key, value in settings.items()),
      *extra,
    ]

  assert main.main(of("train")) == 0
  return root, of


@pytest.fixture
def run(arguments, monkeypatch):
  """The folder, and a function that runs a mode and returns its exit code."""
  monkeypatch.setattr(judges, "CausalJudge", LetterJudge)
  root, of = arguments
  return root, lambda *args, **kwargs: main.main(of(*args, **kwargs))
