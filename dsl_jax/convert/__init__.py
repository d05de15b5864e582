"""Weights in and out: MDLM checkpoints, safetensors, Hugging Face folders."""

from dsl_jax.convert import mdlm
