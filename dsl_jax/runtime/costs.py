"""FLOPs of a training step, counted from the shapes of its matrix products.

XLA's own `cost_analysis` counts the body of a loop once, whatever the number of
its iterations, so it cannot be used here. A multiply-add counts as two FLOPs.
"""

from typing import NamedTuple

import jax

from dsl_jax.nets import attention
from dsl_jax.nets.config import NetConfig
from dsl_jax.runtime import chips


class Work(NamedTuple):
  """FLOPs of a training step per token.

  Attributes:
    model: forward, and twice that backward; nothing recomputed.
    exact: executed products of f32 arrays that keep f32 precision.
    default: all other executed products.
  """

  model: float
  exact: float
  default: float

  @property
  def done(self) -> float:
    """All executed products, recomputed ones included."""
    return self.exact + self.default


def _recomputes_attention(net, rows, length, shards):
  """Whether the backward pass computes attention's scores again."""
  queries = length // shards
  if attention.is_fused(net.attention, queries):
    return True
  return attention.num_tiles(rows, queries, length, net.heads) > 1


def work(net: NetConfig, length: int, rows: int = 1, shards: int = 1) -> Work:
  """Counts the matrix products of a training step.

  Args:
    net: the network.
    length: L.
    rows: sequences that a device computes at once.
    shards: number of devices that share the positions of a sequence.

  Returns:
    FLOPs per token.
  """
  M, V, D = net.width, net.vocab_size, net.sphere_dim
  dense = 2 * net.depth * (4 + 2 * net.mlp_ratio) * M * M
  mixing = 4 * net.depth * length * M  # scores and values of attention
  converter_scores = 2 * V * D
  head_scores = 2 * V * (M + D * net.evidence_skip)
  scores = converter_scores + head_scores
  converter_values = 2 * V * M
  # Scores are computed forward and again backward. The converter's are f32 in
  # every network; products with gradients have default precision.
  exact: float = 2 * converter_scores
  if net.dtype == "float32":
    exact += 2 * head_scores
  executed: float = 3 * (dense + mixing + converter_values) + 4 * scores
  if _recomputes_attention(net, rows, length, shards):
    executed += mixing / 2
  if net.remat != "none":
    executed += mixing
  if net.remat == "full":
    executed += dense
  model = 3 * (dense + mixing + scores + converter_values)
  return Work(model, exact, executed - exact)


def seconds(flops: Work, dtype: str, chip: chips.Chip) -> float:
  """Returns the time of a token's matrix products at a chip's peak rates."""
  return flops.exact / chip.exact_flops + flops.default / chip.flops(dtype)


def peak(net: NetConfig, length: int) -> float | None:
  """Returns tokens/s of training at an MFU of 1 on all devices here.

  None if the devices are not in `chips.CHIPS`.
  """
  chip = chips.of_device(jax.devices()[0].device_kind)
  if chip is None:
    return None
  return chip.bf16_flops * jax.device_count() / work(net, length).model
