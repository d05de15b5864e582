"""Sizes: the study, the same from a longer base, a quick trial, one GPU."""

import dataclasses
from collections.abc import Mapping, Sequence

from dsl_jax.nets.config import NetConfig
from studies.small import arms, model, train

_LONG = "scratch-S-learned-long"
_MAIN = "A1", "A3", "S-0.75", "A2", "A4"
_FIRST = (*_MAIN, "S", "skip")
_ARMS = ("A7", "A8", "A5", "A5t")
_GAP = tuple(name for name in arms.GAP if name not in _FIRST)
_SCRATCH = "A0", "scratch-masked", "scratch-S-learned", "scratch-dsl", _LONG
_SEEDS = tuple(
  f"{name}.s{seed}" for seed in (1, 2) for name in (*_MAIN, *_ARMS, *_SCRATCH)
)
# Seed 0 from scratch was the reason to test the others.
_SAMPLED = "A0", "A0.s1", "A0.s2", f"{_LONG}.s1", f"{_LONG}.s2"
BUDGETS = (4, 8, 16, 32, 64, 128)  # network calls
_EVERY = {"endpoint": 1, "integral": 2, "masked:32": 8, "geometric:32": 8}


@dataclasses.dataclass(frozen=True)
class Preset:
  """How large everything is.

  Attributes:
    net: the network of all runs.
    base: how the masked model is trained that arms start from.
    arm: how A3 is trained; others differ as `arms.TABLE` says.
    scratch: how A3's law is trained from random weights.
    judge: how the judge is trained.
    runs: names, the most informative first.
    scored: test rows of the endpoint bound.
    every: bound -> of these rows every how many are used.
    drawn: samples of a cell.
    sampled: network -> network calls that texts are sampled with.
    read: the same of texts that a language model reads.
    probed: networks whose repair and calibration are measured.
    results: folder beside this file.
  """

  net: NetConfig
  base: train.Run
  arm: train.Run
  scratch: train.Run
  judge: train.Run
  runs: Sequence[str]
  scored: int = 1024
  every: Mapping[str, int] = dataclasses.field(default_factory=_EVERY.copy)
  drawn: int = 256
  sampled: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
  read: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
  probed: Sequence[str] = ()
  results: str = "results"


SMALL = Preset(
  net=model.NET,
  base=train.Run(steps=12000, batch_size=16, learning_rate=4e-3),
  arm=train.Run(steps=2000, batch_size=16, learning_rate=2e-3),
  scratch=train.Run(steps=4000, batch_size=16, learning_rate=4e-3),
  judge=train.Run(steps=18000, batch_size=16, learning_rate=4e-3),
  runs=(*_FIRST, *_ARMS, *arms.SCRATCH, *_GAP, *_SEEDS),
  sampled=dict.fromkeys(_SAMPLED, (8,)),
  read=dict.fromkeys(("A0", f"{_LONG}.s1", f"{_LONG}.s2"), (8,)),
  probed=("A1", "A3", "S-0.75"),
)
LONG_BASE = dataclasses.replace(
  SMALL,
  base=dataclasses.replace(SMALL.base, steps=3 * SMALL.base.steps),
  runs=(*_FIRST, *(f"{run}.s{i}" for i in (1, 2) for run in _MAIN)),
  sampled={
    **dict.fromkeys(("A1", "S-0.75"), BUDGETS),
    **dict.fromkeys(("A1.s1", "S-0.75.s1"), (8, 16, 32)),
    **dict.fromkeys(("A3", "S"), (8, 32)),
  },
  read=dict.fromkeys(("A1", "S-0.75"), (4, 8)),
  probed=(),
  results="results/long-base",
)
_TOY = NetConfig(
  vocab_size=1024, width=32, depth=1, heads=2, sphere_dim=16, cond_dim=16
)
QUICK = Preset(
  net=_TOY,
  base=train.Run(steps=60, batch_size=16, learning_rate=3e-3),
  arm=train.Run(steps=40, batch_size=16, learning_rate=1e-3),
  scratch=train.Run(steps=40, batch_size=16, learning_rate=3e-3),
  judge=train.Run(steps=40, batch_size=16, learning_rate=3e-3),
  runs=("A1", "A3", "A4", "A5t", "S-information", "S-learned", "scratch-dsl"),
  scored=64,
  every=dict.fromkeys(_EVERY, 1),
  drawn=16,
  sampled={"A3": (4, 8)},
  read={"A3": (8,)},
  probed=("A3",),
  results="results/quick",
)
_LARGE = NetConfig(
  vocab_size=1024,
  width=512,
  depth=8,
  heads=8,
  sphere_dim=32,
  cond_dim=128,
  dtype="bfloat16",
)
GPU = Preset(
  net=_LARGE,
  base=train.Run(steps=6000, batch_size=256, learning_rate=2e-3),
  arm=train.Run(steps=1500, batch_size=256, learning_rate=1e-3),
  scratch=train.Run(steps=2000, batch_size=256, learning_rate=2e-3),
  judge=train.Run(steps=2000, batch_size=256, learning_rate=2e-3),
  runs=("A1", "A3", "S-0.75"),
  results="results/gpu",
)
# The same on a CPU, to try its code.
GPU_TOY = dataclasses.replace(
  GPU,
  net=dataclasses.replace(_TOY, dtype="bfloat16"),
  base=dataclasses.replace(GPU.base, steps=20, batch_size=16),
  arm=dataclasses.replace(GPU.arm, steps=10, batch_size=16),
  scored=64,
  every=dict.fromkeys(_EVERY, 1),
  results="results/quick/gpu",
)
PRESETS = {
  "small": SMALL,
  "long-base": LONG_BASE,
  "quick": QUICK,
  "gpu": GPU,
  "gpu-toy": GPU_TOY,
}
