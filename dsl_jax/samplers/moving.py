"""Vocabulary-wide work at the positions that need it, and nowhere else.

A row of a path usually moves few of the L positions. They are gathered in tiles
of one size, as many as the busiest sequence needs, so that one program pays for
what moves whatever the path. The result at a position depends on its own key
and inputs alone, not on its tile or on other sequences.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dsl_jax.core import vocab

Arrays = tuple[jax.Array, ...]


def apply_in_tiles(
  where_BL: jax.Array,
  fn: Callable[[jax.Array, jax.Array], Arrays],
  x_BLC: jax.Array,
  old: Arrays,
  vocab_size: int,
) -> Arrays:
  """Replaces `old` by fn(position_BK, x_BKC) where asked."""
  B, L = where_BL.shape
  size = max(1, min(L, vocab.WHOLE_SCORES // (B * vocab_size)))
  count_B1 = jnp.sum(where_BL, axis=1, dtype=jnp.int32)[:, None]
  # Positions asked for come first; the padding L is out of range.
  order = jnp.argsort(~where_BL, axis=1, stable=True).astype(jnp.int32)
  order = jnp.where(jnp.arange(L, dtype=jnp.int32)[None] < count_B1, order, L)
  order = jnp.pad(order, ((0, 0), (0, -L % size)), constant_values=L)
  # Batched over sequences, so that a batch over devices stays where it is.
  take = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))
  put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))

  def tile(i, old):
    at = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
    new = fn(at, take(x_BLC, at))
    return tuple(put(o, at, n) for n, o in zip(new, old))

  tiles = (jnp.max(count_B1) + size - 1) // size
  return jax.lax.fori_loop(0, tiles, tile, old)


def apply(
  where_BL: jax.Array,
  fn: Callable[[jax.Array], jax.Array],
  x_BLC: jax.Array,
  old_BLC: jax.Array,
  vocab_size: int,
) -> jax.Array:
  """Replaces `old` by fn(x) where asked, in tiles or everywhere.

  Where most of a sequence is asked for, all positions at once are cheaper than
  gathered ones.
  """

  def everywhere(old):
    return jnp.where(where_BL[..., None], fn(x_BLC), old)

  def in_tiles(old):
    return apply_in_tiles(
      where_BL, lambda _, x: (fn(x),), x_BLC, (old,), vocab_size
    )[0]

  busiest = jnp.max(jnp.sum(where_BL, axis=1, dtype=jnp.int32))
  most = 2 * busiest > where_BL.shape[1]
  return jax.lax.cond(most, everywhere, in_tiles, old_BLC)
