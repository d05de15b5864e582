"""What a training step costs, counted from shapes.

XLA's own count takes a loop's body once, so it cannot be used here. Only
matrix products count as FLOPs, two for each multiply-add.
"""

from typing import NamedTuple

import jax

from dsl_jax.core import vocab
from dsl_jax.nets import attention
from dsl_jax.nets.config import NetConfig
from dsl_jax.runtime import chips

_VISITS = 8  # of each score in memory: written, read, and again backwards


class Work(NamedTuple):
  """FLOPs of a training step for one token.

  Attributes:
    model: forward and twice that backward, nothing recomputed.
    exact: of products of f32 arrays that keep f32 precision, as they are run.
    usual: of the others, as they are run.
  """

  model: float
  exact: float
  usual: float

  @property
  def done(self) -> float:
    """All products that are run, recomputed ones included."""
    return self.exact + self.usual


def work(net: NetConfig, length: int, rows: int = 1, parts: int = 1) -> Work:
  """Counts a training step's matrix products.

  Args:
    net: the network.
    length: L.
    rows: sequences computed at once.
    parts: devices that share the positions of a sequence.

  Returns:
    FLOPs per token.
  """
  M, V, D = net.width, net.vocab_size, net.sphere_dim
  dense = 2 * net.depth * (4 + 2 * net.mlp_ratio) * M * M
  mixing = 4 * net.depth * length * M
  converter, head = 2 * V * D, 2 * V * (M + D * net.evidence_skip)
  scores = converter + head
  values = 2 * V * M  # of the converter; the loss has none
  model = 3 * (dense + mixing + scores + values)
  # Scores are computed forward and again backward, where the products with
  # their gradients have default precision. The channel is f32 in every net.
  exact = 2 * (converter + head * (net.dtype == "float32"))
  usual = 3 * (dense + mixing + values) + 4 * scores - exact
  if _pieces(net, rows, length, parts) > 1:
    usual += mixing / 2  # scores alone, in the backward pass
  if net.remat != "none":
    usual += mixing
  if net.remat == "full":
    usual += dense
  return Work(model, exact, usual)


def per_token_saved(net: NetConfig) -> int:
  """Bytes the blocks keep of a token for the backward pass, all together."""
  size, M = _size(net), net.width
  products = (5 + net.mlp_ratio) * M * size  # q, k, v, out, MLP in and out
  kept = {
    "full": M * size,
    "dots": M * size + products,
    # Norms, rotations, gelu and dropout besides.
    "none": M * size + 2 * products + 8 * M * 4,
  }
  return net.depth * kept[net.remat]


def activations(
  net: NetConfig, rows: int, length: int, parts: int = 1
) -> float:
  """Estimates the bytes a device needs beside weights and gradients.

  Args:
    net: the network.
    rows: sequences computed at once.
    length: L.
    parts: devices that share the positions of a sequence.

  Returns:
    Bytes: what the blocks keep, one block's attention, slabs of scores.
  """
  tokens, size = rows * length // parts, _size(net)
  scores = net.heads * length * (4 + size)  # of a token with all others
  kept = tokens * per_token_saved(net)
  pieces = _pieces(net, rows, length, parts)
  whole = net.remat == "none" and pieces == 1
  depth = net.depth if whole else 2  # forward and backward
  mixing = tokens * scores * depth / pieces
  if parts > 1:  # keys and values of whole rows
    mixing += 2 * rows * length * net.width * size * depth
  together, run = tokens * parts, -(-net.vocab_size // parts)
  ends = together * net.width * 4 * 6  # queries, means and their gradients
  slab = -(-run // vocab.slabs(together, run))
  slabs = 3 * 4 * together * slab / vocab.pieces(together, slab)
  return kept + mixing + ends + slabs


def traffic(
  net: NetConfig, length: int, tokens: int, passes: int, count: int
) -> float:
  """Estimates bytes to and from memory of the gradients of a step.

  Args:
    net: the network.
    length: L.
    tokens: of the device's rows.
    passes: parts in which they are computed.
    count: parameters of the network.

  Returns:
    Bytes, where no fused kernel keeps attention scores from memory.
  """
  size = _size(net)
  layers = net.depth * 6 * (12 + net.mlp_ratio) * net.width * size
  mixing = net.depth * net.heads * length * (4 + size) * _VISITS / 2
  scores = 2 * net.vocab_size * 4 * _VISITS
  return tokens * (layers + mixing + scores) + passes * 4 * count * 4


def sent_by_attention(net: NetConfig, tokens: int, parts: int) -> float:
  """Counts the bytes a device sends of keys and values in a step.

  They are gathered, once more where the backward pass recomputes them, and
  their gradients scattered.

  Args:
    net: the network.
    tokens: of the device.
    parts: devices that share the positions of a sequence.

  Returns:
    Bytes on a ring.
  """
  visits = 2 + (net.remat != "none")
  values = 2 * tokens * net.width * _size(net)
  return net.depth * visits * (parts - 1) * values


def sent_for_vocabulary(net: NetConfig, tokens: int, parts: int) -> float:
  """Counts the bytes a device sends of what meets the vocabulary in a step.

  Hidden states and z are gathered and their gradients scattered, the means of
  the converter scattered and their gradients gathered. Besides, ids and eight
  sums of f32, each of them sent twice.

  Args:
    net: the network.
    tokens: of the device.
    parts: devices that share the rows of the vocabulary.

  Returns:
    Bytes on a ring.
  """
  hidden = net.width + net.sphere_dim * net.evidence_skip
  floats = 2 * net.width + 2 * net.sphere_dim + 1 + 2 * 8
  return (parts - 1) * tokens * (2 * hidden * _size(net) + 4 * floats)


def seconds(found: Work, dtype: str, chip: chips.Chip) -> float:
  """Time of a token's matrix products at the chip's peak."""
  return found.exact / chip.exact_flops + found.usual / chip.rate(dtype)


def peak(net: NetConfig, length: int) -> float | None:
  """Tokens/s of training at an MFU of one on all devices here, if known."""
  chip = chips.of_device(jax.devices()[0].device_kind)
  if chip is None:
    return None
  return chip.flops * jax.device_count() / work(net, length).model


def per_device(tree) -> int:
  """Bytes a device holds of a tree of abstract arrays with shardings."""
  total = 0
  for x in jax.tree.leaves(tree):
    size = x.dtype.itemsize
    for n in x.sharding.shard_shape(x.shape):
      size *= n
    total += size
  return total


def _pieces(net, rows, length, parts):
  """Pieces of attention's scores; a fused kernel has one for every query."""
  queries = length // parts
  if attention.fused(net.attention, queries):
    return queries
  return attention.pieces(rows, queries, length, net.heads)


def _size(net):
  """Bytes of an element of activations."""
  return 2 if net.dtype == "bfloat16" else 4
