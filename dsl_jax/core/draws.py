"""Exact categorical draws from long rows of logits.

Gumbel noise for every token of a large vocabulary costs more than the logits
themselves. Two short draws do the same: first the group a token is in, by the
mass of the group, then the token within it.
"""

import math

import jax
import jax.numpy as jnp

from dsl_jax.core import truncate


def categorical(key_N: jax.Array, logits_NV: jax.Array) -> jax.Array:
  """Draws from softmax(logits), p(v) = p(group of v) p(v | its group).

  Both factors keep their relative precision, so that tokens of any f32
  probability appear at their rate.

  Args:
    key_N: a typed random key for every row.
    logits_NV: f32.

  Returns:
    tokens_N, int32.
  """
  N, V = logits_NV.shape
  size = math.isqrt(V - 1) + 1  # of a group: about as many groups as members
  padding = ((0, 0), (0, -V % size))
  logits = jnp.pad(logits_NV, padding, constant_values=truncate.NEVER)
  logits = logits.reshape(N, -1, size)
  # The default mode draws its noise from 23 bits and loses tails of 1e-7.
  pick = jax.vmap(lambda key, x: jax.random.categorical(key, x, mode="high"))
  keys = jax.vmap(jax.random.split)(key_N)
  group = pick(keys[:, 0], jax.nn.logsumexp(logits, axis=-1))
  within = jnp.take_along_axis(logits, group[:, None, None], axis=1)[:, 0]
  token = group * size + pick(keys[:, 1], within)
  return jnp.minimum(token, V - 1).astype(jnp.int32)


def tokens(
  key_N: jax.Array,
  logits_NV: jax.Array,
  *,
  temperature: jax.Array | float = 1.0,
  top_p: jax.Array | float = 1.0,
  strict: bool = False,
) -> jax.Array:
  """Draws tokens after temperature and nucleus truncation.

  Args:
    key_N: a typed random key for every row.
    logits_NV: f32.
    temperature: divides the logits; 0 takes the arg-max.
    top_p: nucleus mass in (0, 1], applied after the temperature.
    strict: the nucleus rule of `truncate.nucleus`.

  Returns:
    tokens_N, int32.
  """
  shaped = truncate.temper(logits_NV, temperature)
  # Python numbers decide here, so that plain sampling costs no bisection.
  if not (isinstance(top_p, (int, float)) and top_p >= 1):
    shaped = truncate.nucleus(shaped, top_p, strict=strict)
  return categorical(key_N, shaped)
