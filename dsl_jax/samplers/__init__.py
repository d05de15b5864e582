"""Sampling: one driver that runs any path array, and policies that bend it."""

from dsl_jax.samplers import policies
from dsl_jax.samplers.front import Samples, generate, hard_rows, sample

__all__ = ["Samples", "generate", "hard_rows", "policies", "sample"]
