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
  # Of matrix products and the residual stream, or "bfloat16"; parameters and
  # statistics stay in f32.
  dtype: str = "float32"
  # What the backward pass recomputes: "dots" (all but products) or "full".
  remat: str = "none"
  unroll: int = 0  # blocks per step of the layer scan, 0 for all
  attention: str = "xla"  # or "cudnn" (NVIDIA GPUs, bf16), "splash" (TPUs)
  beta_init: float = 1.0  # inverse temperature of the converter
  mask_prior: float = 0.99  # initial weight of the mask row at z = 0
  evidence_skip: bool = False  # add <z, e(v)> to the logits
  snr_condition: bool = False  # control experiments only: adaLN sees log t

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
