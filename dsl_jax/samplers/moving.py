"""Vocabulary-wide work at the positions that move, and nowhere else.

A row of a path usually moves few of the L positions. They are gathered in
blocks, as many as the busiest sequence needs, so one program pays for what
moves whatever the path. What a position is given depends on its own key and
inputs alone, never on its block or on other sequences.
"""

import jax
import jax.numpy as jnp

from dsl_jax.core import vocab

BLOCK = vocab.WHOLE  # logits of a block; larger ones waste work where few move


def draw(
  key_B,
  where_BL,
  h_BLM,
  head_VM,
  bias_V,
  *,
  tokens,
  logp,
  temperature,
  top_p,
  strict,
  confidence,
):
  """Draws tokens and their log-confidence where asked, else keeps them."""

  def work(at_BK, h_BKM):
    key_BK = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(key_B, at_BK)
    drawn, sure = vocab.draw(
      key_BK,
      h_BKM,
      head_VM,
      bias_V=bias_V,
      temperature=temperature,
      top_p=top_p,
      strict=strict,
    )
    if confidence == "entropy":
      sure = -vocab.entropy(h_BKM, head_VM, bias_V=bias_V)
    return drawn, sure

  return _blocks(where_BL, work, h_BLM, (tokens, logp), len(head_VM))


def mean(where_BL, h_BLM, head_VM, table_VD, **how):
  """The posterior mean where asked, else zero; how: of `vocab.expectation`."""

  def work(_, h):
    return (vocab.expectation(h, head_VM, table_VD, **how),)

  start = (jnp.zeros((*where_BL.shape, table_VD.shape[-1])),)
  return _everywhere_or_blocks(where_BL, work, h_BLM, start, len(head_VM))[0]


def update(where_BL, embed, z_BLD, rows_BLM, vocab_size):
  """Input embeddings of z where asked, else the old ones."""
  work = lambda _, z: (embed(z).astype(rows_BLM.dtype),)
  old = (rows_BLM,)
  return _everywhere_or_blocks(where_BL, work, z_BLD, old, vocab_size)[0]


def _everywhere_or_blocks(where_BL, work, x_BLC, old, vocab_size):
  """Streams over all positions at once where most of a sequence moves."""
  most = jnp.max(jnp.sum(where_BL, axis=1, dtype=jnp.int32))

  def everywhere(old):
    new = work(None, x_BLC)
    return tuple(jnp.where(_like(where_BL, n), n, o) for n, o in zip(new, old))

  blocks = lambda old: _blocks(where_BL, work, x_BLC, old, vocab_size)
  return jax.lax.cond(2 * most > where_BL.shape[1], everywhere, blocks, old)


def _blocks(where_BL, work, x_BLC, old, vocab_size):
  """Replaces `old` by work(positions_BK, x_BKC) where asked."""
  B, L = where_BL.shape
  size = max(1, min(L, BLOCK // (B * vocab_size)))
  count_B1 = jnp.sum(where_BL, axis=1, dtype=jnp.int32)[:, None]
  # Positions asked for come first, the padding L is out of range.
  order = jnp.argsort(~where_BL, axis=1, stable=True).astype(jnp.int32)
  order = jnp.where(jnp.arange(L, dtype=jnp.int32)[None] < count_B1, order, L)
  order = jnp.pad(order, ((0, 0), (0, -L % size)), constant_values=L)
  # Batched over sequences, so that a batch over devices stays where it is.
  take = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))
  put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))

  def block(i, old):
    at = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
    new = work(at, take(x_BLC, at))
    return tuple(put(o, at, n) for n, o in zip(new, old))

  blocks = (jnp.max(count_B1) + size - 1) // size
  return jax.lax.fori_loop(0, blocks, block, old)


def _like(where_BL, x):
  return where_BL.reshape(*where_BL.shape, *[1] * (x.ndim - 2))
