"""Discrete paths: tokens jump between the mask and the commitment."""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks, laws


def _jumps(step, num_steps):
  """0 up to row step[i], inf from row step[i] + 1.

  Built on the host unless traced: a long path may not fit on a device.
  """
  xp = jnp if isinstance(step, jax.core.Tracer) else np
  row = xp.arange(num_steps + 1).reshape(-1, *[1] * step.ndim)
  visible = row > xp.asarray(step)[None]
  return xp.where(visible, xp.float32(xp.inf), xp.float32(0))


def masked(
  key: jax.Array, num_steps: int, batch: int, length: int
) -> jax.Array:
  """MDLM's ancestral sampler: each token jumps from 0 to inf at its own time.

  Returns:
    path, f32 [T+1, B, L]; the jump times are uniform and independent.
  """
  checks.key(key)
  shape = (checks.count("batch", batch), checks.count("length", length))
  num_steps = checks.count("num_steps", num_steps)
  step_BL = jax.random.randint(key, shape, 0, num_steps)
  return _jumps(step_BL, num_steps)


def random_order(
  key: jax.Array, batch: int, length: int, *, tokens_per_step: int = 1
) -> jax.Array:
  """Autoregression in a random order of its own for every sequence.

  Args:
    tokens_per_step: tokens that jump to inf in one row.

  Returns:
    path, f32 [T+1, B, L], T = ceil(L / tokens_per_step).
  """
  checks.key(key)
  shape = (checks.count("batch", batch), checks.count("length", length))
  per_step = checks.count("tokens_per_step", tokens_per_step)
  step_BL = laws.ranks(key, shape) // per_step
  return _jumps(step_BL, -(-length // per_step))


def left_to_right(length: int, *, tokens_per_step: int = 1) -> np.ndarray:
  """Autoregression from left to right.

  Args:
    tokens_per_step: tokens that jump to inf in one row.

  Returns:
    path, f32 [T+1, L], T = ceil(L / tokens_per_step).
  """
  per_step = checks.count("tokens_per_step", tokens_per_step)
  step_L = np.arange(checks.count("length", length)) // per_step
  return _jumps(step_L, -(-length // per_step))
