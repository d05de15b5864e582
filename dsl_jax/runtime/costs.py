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
  """FLOPs of a training step per token."""

  model: float  # forward, and twice that backward; nothing recomputed
  done: float  # executed, recomputed products included
  exact: float  # those of `done` on f32 arrays that keep f32 precision


def work(net: NetConfig, length: int, rows: int = 1, shards: int = 1) -> Work:
  """Counts the matrix products of a training step.

  A device computes so many rows at once; `shards` devices share a sequence.
  """
  M, V, D = net.width, net.vocab_size, net.sphere_dim
  dense = 2 * net.depth * (4 + 2 * net.mlp_ratio) * M * M
  mixing = 4 * net.depth * length * M  # scores and values of attention
  converter_scores = 2 * V * D
  head_scores = 2 * V * (M + D * net.evidence_skip)
  scores = converter_scores + head_scores
  converter_values = 2 * V * M
  model = 3 * (dense + mixing + scores + converter_values)
  # Scores are computed forward and again backward. The converter's are f32 in
  # every network; products with gradients have default precision.
  exact: float = 2 * converter_scores
  if net.dtype == "float32":
    exact += 2 * head_scores
  done: float = model + scores
  queries = length // shards
  tiles = attention.num_tiles(rows, queries, length, net.heads)
  if attention.is_fused(net.attention, queries) or tiles > 1:
    done += mixing / 2  # the backward pass computes attention's scores again
  if net.remat != "none":
    done += mixing
  if net.remat == "full":
    done += dense
  return Work(model, done, exact)


def peak(net: NetConfig, length: int) -> float | None:
  """Returns tokens/s of training at an MFU of 1, None on unknown devices."""
  flops = chips.bf16_flops(jax.devices()[0].device_kind)
  return flops and flops * jax.device_count() / work(net, length).model
