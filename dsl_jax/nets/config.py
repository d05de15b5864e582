"""Shape and arithmetic of the network."""

import dataclasses

from dsl_jax.core import alternatives


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
    vocab: how head and converter go over the vocabulary: "auto", "streamed",
      "reference" (keeps all scores) or "tokamax" (an optional package).
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
  vocab: str = "auto"
  beta_init: float = 1.0
  mask_prior: float = 0.99
  evidence_skip: bool = False
  snr_condition: bool = False

  def __post_init__(self):
    for name in (
      "vocab_size",
      "width",
      "depth",
      "heads",
      "sphere_dim",
      "cond_dim",
      "mlp_ratio",
    ):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1.")
    if self.unroll < 0:
      raise ValueError(f"unroll is {self.unroll}; use 0 (all blocks) or more.")
    if self.width % (2 * self.heads):
      raise ValueError(
        f"width is {self.width}; use a multiple of 2 heads = {2 * self.heads}."
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; a rate lies in [0, 1).")
    if self.attention == "cudnn" and self.dtype != "bfloat16":
      raise ValueError(
        f"attention is 'cudnn' and dtype is {self.dtype!r}; cudnn takes "
        "bfloat16."
      )
    if not 0 < self.mask_prior < 1:
      raise ValueError(f"mask_prior is {self.mask_prior}; use one in (0, 1).")
    if not 0 < self.beta_init < 1e30:
      raise ValueError(
        f"beta_init is {self.beta_init}; use a positive number that float32 "
        "holds."
      )
    for name, known in (
      ("dtype", ("float32", "bfloat16")),
      ("remat", ("none", "dots", "full")),
      ("attention", ("xla", "cudnn", "splash")),
      ("vocab", alternatives.NAMES),
    ):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(known)}.")
