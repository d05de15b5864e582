"""The network of the study and the losses that train it."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from dsl_jax import objective
from dsl_jax.core import channel, laws, sphere, vocab
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.nets.config import NetConfig
from dsl_jax.nets.denoiser import Denoiser

NET = NetConfig(
  vocab_size=1024, width=128, depth=4, heads=4, sphere_dim=32, cond_dim=64
)
CLEAN_SNR = 100.0


class Loss(Protocol):
  """What training minimises."""

  def __call__(
    self, params: dict, key: jax.Array, tokens_BL: jax.Array
  ) -> jax.Array:
    """Returns a scalar in nats per token for one batch."""


def masked_loss(denoiser: Denoiser) -> Loss:
  """The masked model's bound, E_k[mean cross-entropy of the hidden tokens].

  k ~ U{0..L-1} tokens are visible; METHOD section 5 has the equality with
  MDLM's 1/t-weighted form. Times L it is the bound of a sequence. k is drawn
  in strata over the batch, one shift for all, as MDLM draws t.

  Args:
    denoiser: its `hidden_tokens` is trained; the converter is not touched.
  """

  def loss(params, key, tokens_BL):
    shift_key, order_key = jax.random.split(key)
    B, L = tokens_BL.shape
    row_B = jnp.arange(B, dtype=jnp.float32)
    place_B = (row_B + jax.random.uniform(shift_key)) / B
    visible_B1 = jnp.minimum(L * place_B, L - 1).astype(jnp.int32)[:, None]
    hidden_BL = laws.ranks(order_key, (B, L)) >= visible_B1
    V = len(denoiser.table(params))
    h_BLM = denoiser.hidden_tokens(params, jnp.where(hidden_BL, V, tokens_BL))
    head_VM, bias_V = denoiser.head(params)
    nll_BL = vocab.nll(h_BLM, head_VM, tokens_BL, bias_V=bias_V)
    weight_BL = hidden_BL.astype(jnp.float32)
    return jnp.mean(jnp.sum(nll_BL * weight_BL, -1) / jnp.sum(weight_BL, -1))

  return loss


def dsl_loss(
  denoiser: Denoiser, draw: Callable[[dict], laws.Law], clean_snr: float
) -> Loss:
  """The library's objective with a law.

  Args:
    denoiser: functions of the network.
    draw: parameters -> the law that draws the SNR of every token.
    clean_snr: scale of a committed token.
  """

  def loss(params, key, tokens_BL):
    return objective.loss(
      params,
      key,
      tokens_BL,
      jnp.ones_like(tokens_BL),
      denoiser=denoiser,
      law=draw(params),
      clean_snr=clean_snr,
    )[0]

  return loss


def bound_weighted_loss(
  denoiser: Denoiser, draw: Callable[[dict], laws.Law], clean_snr: float
) -> Loss:
  """The objective with the masked bound's weight on hidden tokens.

  Where a sequence has tokens at an SNR of at most 1 and others, the mean is
  over the former alone, as in the masked bound; elsewhere it is over all.

  Args:
    denoiser: functions of the network.
    draw: parameters -> the law that draws the SNR of every token.
    clean_snr: scale of a committed token.
  """

  def loss(params, key, tokens_BL):
    law_key, noise_key = jax.random.split(key)
    snr_BL = draw(params)(law_key, tokens_BL.shape)
    x_BLD = sphere.embed(denoiser.table(params), tokens_BL)
    z_BLD = channel.observe(noise_key, x_BLD, snr_BL, clean_snr=clean_snr)
    h_BLM = denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
    nll_BL = denoiser_lib.nll(denoiser, params, h_BLM, tokens_BL)
    hidden_BL = snr_BL <= 1
    none_B1 = ~jnp.any(hidden_BL, axis=1, keepdims=True)
    weight_BL = (hidden_BL | none_B1).astype(jnp.float32)
    mean_B = jnp.sum(nll_BL * weight_BL, 1) / jnp.sum(weight_BL, 1)
    return jnp.mean(mean_B)

  return loss


def masked_only(denoiser: Denoiser) -> Denoiser:
  """The masked model inside, for the bounds of endpoint paths.

  z = 0 is the mask, any other z the nearest token; no converter.

  Args:
    denoiser: the network.
  """

  def hidden(params, z_BLD, *, key=None):
    del key
    table_VD = denoiser.table(params)
    tokens_BL = sphere.nearest(table_VD, z_BLD)
    seen_BL = jnp.any(z_BLD != 0, axis=-1)
    ids_BL = jnp.where(seen_BL, tokens_BL, len(table_VD))
    return denoiser.hidden_tokens(params, ids_BL)

  return denoiser._replace(hidden=hidden, embed=None, trunk=None)
