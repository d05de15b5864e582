"""Sequences and vocabularies that several devices share along a mesh axis.

Within a `jax.shard_map` each of the m devices along the axis computes L / m
positions of the same sequences and holds R = ceil(V / m) vocabulary rows of the
head and of the input embedding, its own. Attention gathers keys and values. The
converter and the loss process all positions with the device's own rows, and
`vocab` adds up the sums of the softmax over the devices. On one device every
method returns all that it is given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Parameters with a row for every token, of which a device holds its own rows.
ROW_SHARDED = (("embed", "embedding"), ("head", "kernel"))


class Shards(NamedTuple):
  """The mesh axis, and what a device along it does."""

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


ONE_DEVICE = Shards()
