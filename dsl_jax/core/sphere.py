"""Token tables on the unit sphere.

Unit norms make the posterior independent of the SNR (arXiv 2605.12836).
"""

import chex
import jax
import jax.numpy as jnp

from dsl_jax.core import vocab


def unit_rows(weight_VD: jax.Array) -> jax.Array:
  """Scales vocabulary rows to norm one: table_VD, f32; zeros stay zero."""
  chex.assert_rank(weight_VD, 2)
  w = weight_VD.astype(jnp.float32)
  square = jnp.sum(w * w, axis=-1, keepdims=True)
  return w * jax.lax.rsqrt(jnp.maximum(square, 1e-30))


def embed(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
  """Looks up the vectors of tokens, x_i = e(s_i).

  Args:
    tokens_BL: ids in [0, V); an id outside gives NaN, never another token.

  Returns:
    x_BLD, same dtype as the table.
  """
  return table_VD.at[tokens_BL].get(
    mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
  )


def nearest(table_VD: jax.Array, z_BLD: jax.Array) -> jax.Array:
  """Returns the nearest tokens, argmax_v <z, e(v)>.

  On a table of unit rows the largest inner product is the smallest distance.

  Returns:
    tokens_BL, int32; the lowest id where several tie.
  """
  return vocab.argmax(z_BLD, table_VD)
