"""Temperature and nucleus truncation of scores."""

import jax
import jax.numpy as jnp

NEVER = -1e30  # a score that is never drawn, finite so that no NaN can arise


def temper(gap: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """Divides differences from a largest score by the temperature.

  Temperature 0 leaves 0 where the largest is reached, and else what is never
  drawn. Scores themselves would overflow at tiny temperatures. Beyond 1e20 all
  finite scores are alike, and NEVER has to stay apart from them.

  Args:
    gap: [...], at most 0, f32.
    temperature: >= 0.

  Returns:
    gap / temperature, [...].
  """
  t = jnp.asarray(temperature, jnp.float32)
  return gap * (1.0 / jnp.clip(t, jnp.finfo(jnp.float32).tiny, 1e20))


def dropped(
  above: jax.Array, top_p: jax.Array | float, *, strict: bool = False
) -> jax.Array:
  """Whether a token lies outside the nucleus.

  The usual rule keeps the smallest set of most probable tokens whose mass
  reaches top_p. The strict rule, used by the published ReMDM samples, keeps
  the sorted prefix whose mass stays at or below top_p: the token that crosses
  top_p is dropped. Tokens of exactly equal probability stay or go together.
  The most probable token always stays, which `draws.outside` sees to.

  Args:
    above: [...], mass of the tokens more probable than this one; for the
      strict rule of those at least as probable.
    top_p: mass in (0, 1]; 1 keeps everything.
    strict: which of the two rules.

  Returns:
    bool, [...]; False where `above` is NaN.
  """
  top_p = jnp.asarray(top_p, jnp.float32)
  return (above > top_p if strict else above >= top_p) & (top_p < 1)
