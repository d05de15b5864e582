"""Shape and arithmetic of the network."""

import dataclasses

_SIZES = (
  "vocab_size",
  "width",
  "depth",
  "heads",
  "sphere_dim",
  "cond_dim",
  "mlp_ratio",
)
_WORDS = {
  "dtype": ("float32", "bfloat16"),
  "remat": ("none", "dots", "full"),
  "attention": ("xla", "cudnn", "splash"),
}


def _reject(name, value, fix):
  raise ValueError(f"{name} is {value!r}; {fix}.")


@dataclasses.dataclass(frozen=True)
class NetConfig:
  """Shape and arithmetic of the network.

  Attributes:
    vocab_size: V, without the mask.
    width: M.
    depth: number of blocks.
    heads: attention heads; they divide the width.
    sphere_dim: D.
    cond_dim: width of adaLN's condition.
    mlp_ratio: hidden width of the MLP over M.
    dropout: rate on the residual branches, in training only.
    dtype: of matrix products and the residual stream; parameters and
      statistics stay in f32.
    remat: what the backward pass recomputes: "none", "dots" (all but matrix
      products) or "full".
    unroll: blocks per step of the layer scan, 0 for all.
    attention: "xla", "cudnn" (NVIDIA GPUs, bf16) or "splash" (TPUs).
    beta_init: the converter's inverse temperature at the start.
    mask_prior: weight of the mask row at z = 0 at the start.
    evidence_skip: add <z, e(v)> to the logits.
    snr_condition: control experiments only: adaLN also sees log t.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  sphere_dim: int
  _: dataclasses.KW_ONLY
  cond_dim: int = 128
  mlp_ratio: int = 4
  dropout: float = 0.0
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 0
  attention: str = "xla"
  beta_init: float = 1.0
  mask_prior: float = 0.99
  evidence_skip: bool = False
  snr_condition: bool = False

  def __post_init__(self):
    for name in _SIZES:
      if getattr(self, name) < 1:
        _reject(name, getattr(self, name), "it must be at least 1")
    for name, known in _WORDS.items():
      if getattr(self, name) not in known:
        _reject(name, getattr(self, name), f"use {' or '.join(known)}")
    heads = self.heads
    for name, valid, fix in (
      ("unroll", self.unroll >= 0, "use 0 (all blocks) or more"),
      (
        "width",
        self.width % (2 * heads) == 0,
        f"use a multiple of {2 * heads}",
      ),
      ("dropout", 0 <= self.dropout < 1, "a rate must lie in [0, 1)"),
      ("mask_prior", 0 < self.mask_prior < 1, "it must lie in (0, 1)"),
      ("beta_init", 0 < self.beta_init < 1e30, "use a positive f32 number"),
    ):
      if not valid:
        _reject(name, getattr(self, name), fix)
    if self.attention == "cudnn" and self.dtype != "bfloat16":
      _reject("attention", "cudnn", "it needs dtype bfloat16")
