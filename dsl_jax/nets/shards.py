"""Sequences and vocabularies that several devices share along a mesh axis.

Within a `jax.shard_map` each of the m devices along the axis computes L / m
positions of the same sequences and holds R = ceil(V / m) vocabulary rows of the
head and of the input embedding, its own. Attention gathers keys and values. The
converter and the loss process all positions with the device's own rows and add
up the sums of the softmax over the devices. On one device every method is the
plain computation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import vocab

# Parameters with a row for every token, of which a device holds its own rows.
ROW_SHARDED = (("embed", "embedding"), ("head", "kernel"))


class Shards(NamedTuple):
  """How one device takes part."""

  axis: str = ""  # of the mesh, "" for one device

  @property
  def num(self) -> int:
    """Number of devices that share a sequence."""
    return jax.lax.axis_size(self.axis) if self.axis else 1

  def own(self, x: jax.Array, *, dim: int = 1) -> jax.Array:
    """Returns this device's positions of an array that has all of them."""
    if not self.axis:
      return x
    size = x.shape[dim] // self.num
    start = jax.lax.axis_index(self.axis) * size
    return jax.lax.dynamic_slice_in_dim(x, start, size, dim)

  def gather(self, x: jax.Array, *, dim: int = 1) -> jax.Array:
    """Returns all positions; undoes `own`."""
    if not self.axis:
      return x
    return jax.lax.all_gather(x, self.axis, axis=dim, tiled=True)

  def num_rows(self, vocab_size: int) -> int:
    """Returns R for a table of so many rows."""
    return -(-vocab_size // self.num)

  def pad_rows(self, x: jax.Array, fill: float = 0.0) -> jax.Array:
    """Returns [V, ...] with rows up to a multiple of the devices."""
    missing = self.num_rows(len(x)) * self.num - len(x)
    widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, widths, constant_values=fill)

  def own_rows(self, x: jax.Array, fill: float = 0.0) -> jax.Array:
    """Returns this device's rows of [V, ...]; `fill` follows the last row."""
    return self.own(self.pad_rows(x, fill), dim=0)

  def nll(
    self,
    h_BLM: jax.Array,
    head_RM: jax.Array,
    tokens_BL: jax.Array,
    *,
    bias_V,
  ) -> jax.Array:
    """`vocab.nll` of all positions on every device; bias_V is whole."""
    if not self.axis:
      return vocab.nll(h_BLM, head_RM, tokens_BL, bias_V=bias_V)
    rows = len(head_RM)
    local_BL = tokens_BL - jax.lax.axis_index(self.axis) * rows
    top_BL, total_BL, target_BL = vocab.softmax_terms(
      h_BLM,
      head_RM,
      jnp.clip(local_BL, 0, rows - 1),
      bias_V=self.own_rows(bias_V, vocab.NEG_INF),
    )
    here_BL = (local_BL >= 0) & (local_BL < rows)
    target_BL = jnp.where(here_BL, target_BL, 0.0)
    target_BL = jax.lax.psum(target_BL, self.axis)
    top_BL, _, total_BL = self._join_sums(top_BL, total_BL)
    return jnp.log(total_BL) + (top_BL - target_BL)

  def expectation(
    self,
    q_BLK: jax.Array,
    keys_VK: jax.Array,
    values_RC: jax.Array,
    *,
    bias_V: jax.Array,
  ) -> jax.Array:
    """`vocab.expectation` of the device's own positions.

    Keys are short, and so is their bias: each device has all of them.
    """
    if not self.axis:
      return vocab.expectation(q_BLK, keys_VK, values_RC, bias_V=bias_V)
    mean_BLC, *sums = vocab.expectation_terms(
      q_BLK,
      self.own_rows(keys_VK),
      values_RC,
      bias_V=self.own_rows(bias_V, vocab.NEG_INF),
    )
    _, own_BL, total_BL = self._join_sums(*sums)
    mean_BLC = mean_BLC * (own_BL / total_BL)[..., None]
    return jax.lax.psum_scatter(
      mean_BLC, self.axis, scatter_dimension=1, tiled=True
    )

  def _join_sums(self, top, total):
    """The maximum over devices, this device's sum relative to it, the sum."""
    highest = jax.lax.pmax(jax.lax.stop_gradient(top), self.axis)
    own = total * jnp.exp(top - highest)
    return highest, own, jax.lax.psum(own, self.axis)


ONE_DEVICE = Shards()
