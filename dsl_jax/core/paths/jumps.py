"""Discrete paths: tokens jump between the mask and the commitment."""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import laws
from dsl_jax.core.paths import grids


def masked(
  key: jax.Array, num_steps: int, batch: int, length: int
) -> jax.Array:
  """MDLM's ancestral sampler: each token jumps from 0 to inf at its own time.

  Args:
    key: typed random key.
    num_steps: T, network calls.
    batch: B.
    length: L.

  Returns:
    path, f32 [T+1, B, L]; the jump times are uniform and independent.
  """
  when = jax.random.randint(key, (batch, length), 0, grids.steps(num_steps))
  return _jumps(when, num_steps)


def random_order(
  key: jax.Array, batch: int, length: int, *, tokens_per_step: int = 1
) -> jax.Array:
  """Autoregression in a random order of its own for every sequence.

  Args:
    key: typed random key.
    batch: B.
    length: L.
    tokens_per_step: tokens that jump to inf in one row.

  Returns:
    path, f32 [T+1, B, L], T = ceil(L / tokens_per_step).
  """
  turn = laws.ranks(key, (batch, length)) // _per_step(tokens_per_step)
  return _jumps(turn, -(-length // tokens_per_step))


def left_to_right(length: int, *, tokens_per_step: int = 1) -> np.ndarray:
  """Autoregression from left to right.

  Args:
    length: L.
    tokens_per_step: tokens that jump to inf in one row.

  Returns:
    path, f32 [T+1, L], T = ceil(L / tokens_per_step).
  """
  turn = np.arange(length) // _per_step(tokens_per_step)
  return np.asarray(_jumps(turn, -(-length // tokens_per_step)))


def _jumps(when, num_steps):
  """0 up to row when[i], inf from row when[i] + 1."""
  row = jnp.arange(num_steps + 1).reshape(-1, *[1] * when.ndim)
  return jnp.where(row > jnp.asarray(when)[None], jnp.inf, jnp.float32(0))


def _per_step(tokens):
  if tokens < 1:
    raise ValueError(f"tokens_per_step is {tokens}; it must be at least 1.")
  return tokens
