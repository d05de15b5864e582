"""Sizes of the study: the small one, a quick trial of the chain, one GPU."""

import dataclasses
from collections.abc import Mapping, Sequence

from dsl_jax.nets.config import NetConfig
from studies.small import model, train

_ARMS = ("A1", "A3", "A2", "A4", "A7", "A8", "A5", "A5t")
_SKIP = (
  "skip",
  "skip-0.75",
  "skip-converter-1",
  "skip-prior-0.5",
  "skip-long",
  "skip-snr",
)
_SCRATCH = ("scratch-dsl", "scratch-masked")
_GAP = (
  "skip-bound-0.5",
  "skip-0.5",
  "skip-bound",
  "share-0.75",
  "information",
  "long",
  "bound-weight",
  "per-token",
  "rate-2",
  "paper-converter",
  "clean-50",
  "clean-200",
  "share-0.5",
  "share-0.1",
  "skip-learned",
)
_SEEDS = ("A1.s1", "A3.s1", "A2.s1", "A4.s1", "A1.s2", "A3.s2")
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
    budgets: network calls.
    sampled: networks that texts are sampled from.
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
  budgets: Sequence[int] = (4, 8, 16, 32, 64, 128)
  sampled: Sequence[str] = ("A1", "A3", "skip", "skip-0.75")
  results: str = "results"


SMALL = Preset(
  net=model.NET,
  base=train.Run(steps=16000, batch_size=16, learning_rate=4e-3),
  arm=train.Run(steps=3000, batch_size=16, learning_rate=2e-3),
  scratch=train.Run(steps=4000, batch_size=16, learning_rate=4e-3),
  judge=train.Run(steps=6000, batch_size=16, learning_rate=4e-3),
  runs=(*_ARMS[:2], *_SKIP, *_ARMS[2:], *_GAP, *_SCRATCH, *_SEEDS),
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
  runs=("A1", "A3", "A4", "A5t", "information", "skip-learned", "scratch-dsl"),
  scored=64,
  every=dict.fromkeys(_EVERY, 1),
  drawn=32,
  budgets=(4, 8),
  sampled=("A1", "A3"),
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
  base=train.Run(steps=6000, batch_size=256, learning_rate=1e-3),
  arm=train.Run(steps=1500, batch_size=256, learning_rate=5e-4),
  scratch=train.Run(steps=2000, batch_size=256, learning_rate=1e-3),
  judge=train.Run(steps=2000, batch_size=256, learning_rate=1e-3),
  runs=("A1", "A3", "skip"),
  sampled=(),
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
PRESETS = {"small": SMALL, "quick": QUICK, "gpu": GPU, "gpu-toy": GPU_TOY}
