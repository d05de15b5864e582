"""Sampling schedules as arrays of per-token SNRs.

A path has T + 1 rows, [T+1, L] or [T+1, B, L]. Row 0 is 0 (mask) or inf
(prompt), the last row is inf. One network call leads from a row to the next;
tokens may rise, fall, stay or commit, each on its own. Deterministic paths
and the functions that reshape paths work on the host and return NumPy arrays;
random paths take a typed key first and may be traced. In all of them num_steps
is T, the number of network calls, batch B, length L, and the result f32.
"""

from dsl_jax.core.paths.algebra import blocks, check, compact, concat, hold, pad
from dsl_jax.core.paths.grids import (
  geometric,
  information_uniform,
  linear,
  lognormal_quantiles,
)
from dsl_jax.core.paths.jumps import left_to_right, masked, random_order
from dsl_jax.core.paths.remdm import budget_eta, rates, remask
