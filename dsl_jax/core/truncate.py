"""Temperature and nucleus truncation of logits."""

import jax
import jax.numpy as jnp

NEVER = -1e30  # a logit that is never drawn, finite so that no NaN can arise


def temper(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """Divides logits by the temperature; 0 keeps the arg-max alone.

  Args:
    logits: [..., V], f32.
    temperature: >= 0.

  Returns:
    logits, [..., V].
  """
  t = jnp.asarray(temperature, jnp.float32)
  # Shifting by the maximum keeps logits / tiny temperatures finite.
  shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
  cold = jnp.where(shifted < 0, NEVER, 0.0)
  return jnp.where(t > 0, shifted / jnp.where(t > 0, t, 1.0), cold)


def nucleus(
  logits: jax.Array, top_p: jax.Array | float, *, strict: bool = False
) -> jax.Array:
  """Keeps the most probable tokens up to a mass, without a sort.

  The usual rule keeps the smallest set whose mass reaches top_p. The strict
  rule, used by the published ReMDM samples, keeps the sorted prefix whose mass
  stays at or below top_p, the first token always: the token that crosses
  top_p is dropped. Tokens of exactly equal probability stay or go together.

  The threshold is found by bisection on the bit pattern of the probability,
  which orders positive floats: exact after 31 halvings.

  Args:
    logits: [..., V], f32.
    top_p: mass in (0, 1]; 1 keeps everything.
    strict: which of the two rules.

  Returns:
    logits, [..., V], with dropped tokens at a value never drawn.
  """
  p = jax.nn.softmax(logits, axis=-1)
  bits = jax.lax.bitcast_convert_type(p, jnp.int32)
  top_p = jnp.asarray(top_p, jnp.float32)
  high = jnp.max(bits, axis=-1, keepdims=True)

  def mass(least):
    return jnp.sum(jnp.where(bits >= least, p, 0.0), axis=-1, keepdims=True)

  def halve(_, bounds):
    low, high = bounds
    # The threshold that is still allowed stays in `low` (usual rule: mass
    # reaches top_p) or in `high` (strict rule: mass stays within top_p).
    middle = low + (high - low + (0 if strict else 1)) // 2
    if strict:
      fits = mass(middle) <= top_p
      above = jnp.minimum(middle + 1, high)
      return jnp.where(fits, low, above), jnp.where(fits, middle, high)
    reaches = mass(middle) >= top_p
    return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle - 1)

  low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
  return jnp.where((bits >= low) | (top_p >= 1), logits, NEVER)
