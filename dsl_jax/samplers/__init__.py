"""Sampling: one driver that runs any path array, and policies that bend it."""

from dsl_jax.samplers import policies
from dsl_jax.samplers.driver import generate

__all__ = ["generate", "policies"]
