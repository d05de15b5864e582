"""Sampling: one sampler for any array of SNRs, and policies."""

from dsl_jax.samplers import policies
from dsl_jax.samplers.sampler import Options, Samples, generate, sample
