"""Sampling schedules as arrays of per-token SNRs.

A path is an array over steps, [T+1, L] or [T+1, B, L]: step k leads from row k
to row k + 1 with one network call. Row 0 is 0 (mask) or inf (prompt), the last
row is inf. Tokens may rise, fall, stay or commit, each on its own.

Deterministic paths and the functions that reshape paths work on the host and
return NumPy arrays; random paths take a typed key first and may be traced. In
all of them num_steps is T, batch B, length L, tokens_per_step the number of
tokens that jump to inf in a step, and the result f32.
"""

from dsl_jax.core.paths.algebra import blocks, check, compact, concat, hold, pad
from dsl_jax.core.paths.remdm import budget_eta, rates, remask
from dsl_jax.core.paths.schedules import (
  geometric,
  information_uniform,
  left_to_right,
  linear,
  lognormal_quantiles,
  masked,
  random_order,
)
