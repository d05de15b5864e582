"""Shape and arithmetic of the network."""

import dataclasses
from typing import Any

from dsl_jax.core import checks

_UNROLLED = 128  # blocks; more take minutes to compile
_DTYPE = checks.one_of("float32", "bfloat16")
_REMAT = checks.one_of("none", "dots", "full")
_ATTENTION = checks.one_of("xla", "cudnn", "splash")
_not_negative = checks.within(lambda v: v >= 0, "use 0 (all blocks) or more")
_rate = checks.within(lambda v: 0 <= v < 1, "a rate must lie in [0, 1)")
_weight = checks.within(lambda v: 0 < v < 1, "it must lie in (0, 1)")
_positive = checks.within(lambda v: 0 < v < 1e30, "use a positive f32 number")


def _size(most: int, default: Any = dataclasses.MISSING) -> int:
  """Returns a field of 1 to `most`."""
  fix = f"it must be at least 1, at most {most:,}"
  return checks.within(lambda v: 1 <= v <= most, fix)(default)


@dataclasses.dataclass(frozen=True)
class NetConfig(checks.Section):
  """Shape and arithmetic of the network."""

  vocab_size: int = _size(2**31 - 1)  # V, without the mask
  width: int = _size(2**20)  # M
  depth: int = _size(1000)  # number of blocks
  heads: int = _size(2**20)  # of attention; twice as many divide the width
  sphere_dim: int = _size(2**20)  # D
  _: dataclasses.KW_ONLY
  cond_dim: int = _size(2**20, 128)  # width of adaLN's condition
  mlp_ratio: int = _size(1024, 4)  # hidden width of the MLP over M
  dropout: float = _rate(0.0)  # on the residual branches, in training only
  dtype: str = _DTYPE  # of products and residuals, or bfloat16
  f32_residual: bool = False  # residuals in f32 whatever dtype, as in MDLM
  remat: str = _REMAT  # or recompute "full", or all but wide products, "dots"
  unroll: int = _not_negative(0)  # blocks a scan step, 0 for all (on TPUs 1)
  attention: str = _ATTENTION  # or "cudnn" (NVIDIA GPUs, bf16), "splash" (TPUs)
  beta_init: float = _positive(1.0)  # inverse temperature of the converter
  mask_prior: float = _weight(0.99)  # initial weight of the mask row at z = 0
  evidence_skip: bool = False  # add g <z, e(v)> to the logits, g learned
  snr_condition: bool = False  # control experiments only: adaLN sees log t

  def __post_init__(self):
    super().__post_init__()
    if self.width % (2 * self.heads):
      fix = f"use a multiple of {2 * self.heads}"
      raise ValueError(f"width is {self.width}; {fix}.")
    if min(self.unroll or self.depth, self.depth) > _UNROLLED:
      fix = f"of {self.depth} blocks use 1 to {_UNROLLED}"
      raise ValueError(f"unroll is {self.unroll}; {fix}.")
    if self.attention == "cudnn" and self.dtype != "bfloat16":
      raise ValueError("attention is 'cudnn'; it needs dtype bfloat16.")
