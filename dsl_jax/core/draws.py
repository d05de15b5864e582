"""Exact categorical draws from rows of logits, with nucleus truncation."""

import math

import jax
import jax.numpy as jnp

NEG_INF = -1e30  # logit of what is never drawn; finite, so that no NaN arises


def _divide(gap, temperature):
  """Divides differences from the largest logit by the temperature.

  Temperature 0 leaves 0 at the largest logit and rules out all others. Logits
  themselves would overflow at tiny temperatures; beyond 1e20 all finite ones
  are alike, and NEG_INF has to stay apart from them.
  """
  t = jnp.asarray(temperature, jnp.float32)
  return gap * (1.0 / jnp.clip(t, jnp.finfo(jnp.float32).tiny, 1e20))


def _as_float(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def nucleus(
  weights_NV: jax.Array, top_p: jax.Array | float, *, strict: bool
) -> jax.Array:
  """Returns keep_NV, the most probable tokens that together reach top_p.

  The usual rule keeps a token if the more probable ones have less than top_p
  of the mass. The strict rule of the published ReMDM samples keeps it if the
  tokens at least as probable, itself included, have at most top_p: the token
  that crosses top_p is dropped. Tokens of equal probability stay or go
  together; the most probable one always stays.

  The threshold is found by bisection over the bits of non-negative floats,
  whose order is that of the numbers: 30 passes reach it exactly, where a sort
  costs several times more.

  Args:
    weights_NV: probabilities divided by the largest of their row, f32.
    top_p: mass in (0, 1]; 1 keeps everything.
    strict: which of the two rules.
  """
  reaches = jnp.greater if strict else jnp.greater_equal
  goal_N = top_p * jnp.sum(weights_NV, axis=-1)

  def bisect(_, bounds):
    low_N, high_N = bounds  # the mass from `low` upwards reaches the goal
    middle_N = low_N + (high_N - low_N + 1) // 2
    above_NV = weights_NV >= _as_float(middle_N)[:, None]
    mass_N = jnp.sum(jnp.where(above_NV, weights_NV, 0.0), axis=-1)
    enough_N = reaches(mass_N, goal_N)
    low_N = jnp.where(enough_N, middle_N, low_N)
    return low_N, jnp.where(enough_N, high_N, middle_N - 1)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
  start = jnp.zeros(len(goal_N), jnp.int32), jnp.full(len(goal_N), one)
  low_N, _ = jax.lax.fori_loop(0, 30, bisect, start)
  threshold_N1 = _as_float(low_N)[:, None]
  keep_NV = reaches(weights_NV, threshold_N1)
  return keep_NV | (weights_NV >= 1) | (jnp.asarray(top_p) >= 1)


def _categorical(key, logits_V):
  """Draws a group of tokens by its mass, then a token within the group.

  Gumbel noise for every token of a large vocabulary would cost more than the
  logits. Both factors keep their relative precision, so that tokens of any f32
  probability appear at their rate; the default mode of JAX draws noise from
  23 bits and loses tails of 1e-7.
  """
  size = math.isqrt(len(logits_V) - 1) + 1  # about as many groups as members
  padding = (0, -len(logits_V) % size)
  groups_GS = jnp.pad(logits_V, padding, constant_values=NEG_INF)
  groups_GS = groups_GS.reshape(-1, size)
  mass_G = jnp.log(jnp.sum(jnp.exp(groups_GS), axis=-1))
  group_key, member_key = jax.random.split(key)
  group = jax.random.categorical(group_key, mass_G, mode="high")
  member = jax.random.categorical(member_key, groups_GS[group], mode="high")
  token = (group * size + member).astype(jnp.int32)
  return jnp.minimum(token, len(logits_V) - 1)


def truncate(
  logits_NV: jax.Array,
  *,
  temperature: jax.Array | float,
  top_p: jax.Array | float,
  strict: bool = False,
) -> jax.Array:
  """Returns logits after temperature and nucleus, 0 at the largest of a row.

  Args:
    temperature: divides the logits; 0 takes the arg-max.
    top_p, strict: see `nucleus`.
  """
  gap_NV = logits_NV - jnp.max(logits_NV, axis=-1, keepdims=True)
  scaled_NV = _divide(gap_NV, temperature)
  # A Python number decides at trace time: plain sampling needs no nucleus.
  if isinstance(top_p, (int, float)) and top_p >= 1:
    return scaled_NV
  keep_NV = nucleus(jnp.exp(scaled_NV), top_p, strict=strict)
  return jnp.where(keep_NV, scaled_NV, NEG_INF)


def draw(
  key_N: jax.Array, logits_NV: jax.Array, *, truncated: bool = False, **how
) -> tuple[jax.Array, jax.Array]:
  """Draws one token from each row of logits.

  Args:
    key_N: a typed random key for every row.
    truncated: which probability is returned.
    **how: temperature, top_p and strict, see `truncate`.

  Returns:
    tokens_N, int32, and logp_N, f32: the log-probability in nats before
    temperature and truncation, or with `truncated` after them.
  """
  scaled_NV = truncate(logits_NV, **how)
  tokens_N = jax.vmap(_categorical)(key_N, scaled_NV)
  gap_NV = scaled_NV
  if not truncated:
    gap_NV = logits_NV - jnp.max(logits_NV, axis=-1, keepdims=True)
  norm_N = jnp.log(jnp.sum(jnp.exp(gap_NV), axis=-1))
  chosen_N = jnp.take_along_axis(gap_NV, tokens_N[:, None], axis=-1)[:, 0]
  return tokens_N, chosen_N - norm_N
