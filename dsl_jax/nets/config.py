"""Shape and arithmetic of the network."""

import dataclasses

_MOST = 2**20  # of a size
_SIZES = {  # and what they may be at most
  "vocab_size": 2**31 - 1,
  "width": _MOST,
  "depth": 1000,
  "heads": _MOST,
  "sphere_dim": _MOST,
  "cond_dim": _MOST,
  "mlp_ratio": 1024,
}
_UNROLLED = 128  # blocks; more take minutes to compile
_WORDS = {
  "dtype": ("float32", "bfloat16"),
  "remat": ("none", "dots", "full"),
  "attention": ("xla", "cudnn", "splash"),
}


@dataclasses.dataclass(frozen=True)
class NetConfig:
  """Shape and arithmetic of the network."""

  vocab_size: int  # V, without the mask
  width: int  # M
  depth: int  # number of blocks
  heads: int  # of attention; twice their number divides the width
  sphere_dim: int  # D
  _: dataclasses.KW_ONLY
  cond_dim: int = 128  # width of adaLN's condition
  mlp_ratio: int = 4  # hidden width of the MLP over M
  dropout: float = 0.0  # on the residual branches, in training only
  dtype: str = "float32"  # of products and residuals, or bfloat16
  f32_residual: bool = False  # residuals in f32 whatever dtype, as in MDLM
  # Recomputed in the backward pass: none, all but attention and the wide
  # products ("dots"), or all of a block ("full").
  remat: str = "none"
  # Blocks per step of the layer scan, 0 for all; to train on TPUs 0 is 1.
  unroll: int = 0
  attention: str = "xla"  # or "cudnn" (NVIDIA GPUs, bf16), "splash" (TPUs)
  beta_init: float = 1.0  # inverse temperature of the converter
  mask_prior: float = 0.99  # initial weight of the mask row at z = 0
  evidence_skip: bool = False  # add <z, e(v)> to the logits
  snr_condition: bool = False  # control experiments only: adaLN sees log t

  def __post_init__(self):
    for name, most in _SIZES.items():
      in_range = 1 <= getattr(self, name) <= most
      self._check(name, in_range, f"it must be at least 1, at most {most:,}")
    for name, known in _WORDS.items():
      fix = f"use {' or '.join(known)}"
      self._check(name, getattr(self, name) in known, fix)
    fits = self.width % (2 * self.heads) == 0
    self._check("width", fits, f"use a multiple of {2 * self.heads}")
    self._check("unroll", self.unroll >= 0, "use 0 (all blocks) or more")
    unrolled = min(self.unroll or self.depth, self.depth)
    fix = f"of {self.depth} blocks use 1 to {_UNROLLED}"
    self._check("unroll", unrolled <= _UNROLLED, fix)
    self._check("dropout", 0 <= self.dropout < 1, "a rate must lie in [0, 1)")
    self._check("mask_prior", 0 < self.mask_prior < 1, "it must lie in (0, 1)")
    in_range = 0 < self.beta_init < 1e30
    self._check("beta_init", in_range, "use a positive f32 number")
    runs = self.attention != "cudnn" or self.dtype == "bfloat16"
    self._check("attention", runs, "it needs dtype bfloat16")

  def _check(self, name, valid, fix):
    if not valid:
      raise ValueError(f"{name} is {getattr(self, name)!r:.80}; {fix}.")
