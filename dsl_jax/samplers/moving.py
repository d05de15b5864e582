"""Vocabulary-wide work at the positions that move, and nowhere else.

A row of a path usually moves few of the L positions. They are gathered in
blocks of BLOCK, as many blocks as the busiest sequence needs, so one program
pays for what moves whatever the path; when most of a sequence moves, all of it
is done at once.
"""

import jax
import jax.numpy as jnp

from dsl_jax.core import vocab

BLOCK = 32


def draw(
  key, where_BL, h_BLM, head_VM, bias_V, *, tokens, logp, strict, **shape
):
  """Draws tokens and their log-probability where asked, else keeps them."""

  def work(i, h):
    block_key = jax.random.fold_in(key, i)
    return vocab.draw(
      block_key, h, head_VM, bias_V=bias_V, strict=strict, **shape
    )

  return _blocks(where_BL, work, h_BLM, (tokens, logp))


def mean(where_BL, h_BLM, head_VM, bias_V, table_VD):
  """The posterior mean where asked, else zero."""

  def work(_, h):
    return (vocab.expectation(h, head_VM, table_VD, bias_V=bias_V),)

  start = jnp.zeros((*where_BL.shape, table_VD.shape[-1]))
  return _blocks(where_BL, work, h_BLM, (start,))[0]


def entropy(where_BL, h_BLM, head_VM, bias_V):
  """Entropy of the model's prediction in nats where asked, else zero."""
  work = lambda _, h: (vocab.entropy(h, head_VM, bias_V=bias_V),)
  return _blocks(where_BL, work, h_BLM, (jnp.zeros(where_BL.shape),))[0]


def update(where_BL, embed, z_BLD, rows_BLM):
  """Input embeddings of z where asked, else the old ones."""
  work = lambda _, z: (embed(z).astype(rows_BLM.dtype),)
  return _blocks(where_BL, work, z_BLD, (rows_BLM,))[0]


def _blocks(where_BL, work, x_BLC, old):
  """Replaces `old` by work(block, x) at least where asked."""
  B, L = where_BL.shape
  count = jnp.max(jnp.sum(where_BL, axis=1, dtype=jnp.int32))
  blocks = (count + BLOCK - 1) // BLOCK

  def everywhere(old):
    # A key of its own: no block has the number L.
    new = work(jnp.int32(L), x_BLC)
    return tuple(jnp.where(_like(where_BL, n), n, o) for n, o in zip(new, old))

  def somewhere(old):
    # Positions asked for come first, the padding L is out of range.
    order = jnp.argsort(~where_BL, axis=1, stable=True).astype(jnp.int32)
    asked = jnp.sum(where_BL, axis=1, dtype=jnp.int32)[:, None]
    turn = jnp.arange(L, dtype=jnp.int32)[None]
    order = jnp.where(turn < asked, order, L)
    order = jnp.pad(order, ((0, 0), (0, BLOCK)), constant_values=L)
    sequence = jnp.arange(B)[:, None]

    def block(i, old):
      at = jax.lax.dynamic_slice_in_dim(order, i * BLOCK, BLOCK, axis=1)
      new = work(i, x_BLC.at[sequence, at].get(mode="fill", fill_value=0))
      return tuple(
        o.at[sequence, at].set(n, mode="drop") for n, o in zip(new, old)
      )

    return jax.lax.fori_loop(0, blocks, block, old)

  if L <= BLOCK:
    nothing = lambda old: old
    return jax.lax.cond(count > 0, everywhere, nothing, old)
  return jax.lax.cond(count > L // 2, everywhere, somewhere, old)


def _like(where_BL, x):
  return where_BL.reshape(*where_BL.shape, *[1] * (x.ndim - 2))
