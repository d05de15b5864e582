"""What floor 3 asks of a denoiser: hidden states and what the head reads."""

import functools

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, sphere, vocab
from dsl_jax.nets import runs
from dsl_jax.nets.denoiser import Denoiser


def see(denoiser: Denoiser, params, z_BLD, snr_BL, *, key=None) -> jax.Array:
  """Calls `hidden`, with the SNR if the denoiser is a control that sees it."""
  if getattr(denoiser, "sees_snr", False):
    return denoiser.hidden(params, z_BLD, key=key, snr_BL=snr_BL)
  return denoiser.hidden(params, z_BLD, key=key)


def see_endpoint(
  denoiser: Denoiser, params, tokens_BL, visible_BL, *, clean_snr
) -> jax.Array:
  """Hidden states where tokens are committed or masked."""
  x_BLD = sphere.embed(denoiser.table(params), tokens_BL)
  z_BLD = channel.hard(x_BLD, visible_BL, clean_snr=clean_snr)
  snr_BL = jnp.where(visible_BL, jnp.inf, jnp.float32(0))
  return see(denoiser, params, z_BLD, snr_BL)


def nll(denoiser: Denoiser, params, h_BLM, tokens_BL) -> jax.Array:
  """-log p(s_i | z), [B, L], nats."""
  head_VM, bias_V = denoiser.head(params)
  found = vocab.nll
  if along(denoiser):
    found = functools.partial(runs.nll, name=along(denoiser))
  return found(
    h_BLM, head_VM, tokens_BL, bias_V=bias_V, implementation=way(denoiser)
  )


def mean(denoiser: Denoiser, params, h_BLM) -> jax.Array:
  """The posterior mean xhat_i = sum_v p(v|z) e(v), [B, L, D], f32."""
  head_VM, bias_V = denoiser.head(params)
  table_VD = denoiser.table(params)
  return vocab.expectation(
    h_BLM, head_VM, table_VD, bias_V=bias_V, implementation=way(denoiser)
  )


def way(denoiser: Denoiser) -> str:
  """How to go over the vocabulary; denoisers from elsewhere need not say."""
  return getattr(denoiser, "vocab", "auto")


def along(denoiser: Denoiser) -> str:
  """Mesh axis along which devices share the work on a sequence, or ""."""
  return getattr(denoiser, "along", "")
