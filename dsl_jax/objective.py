"""The training objective: cross-entropy to the clean token."""

import chex
import jax
import jax.numpy as jnp

from dsl_jax.core import channel, laws, sphere
from dsl_jax.nets import denoiser as denoiser_lib


def loss(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  law: laws.Law,
  clean_snr: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean cross-entropy over valid positions, unit weight (arXiv 2605.12836).

  L = E_t E_{z ~ z(t)} mean_i -log p(s_i | z), t from the law.

  Args:
    key: typed random key, or one for every sequence, [B]: the noise of a
      sequence then does not depend on the microbatches.
    mask_BL: bool or 0/1, true where the position counts.

  Returns:
    The mean in nats per token, and the sums {"nll", "tokens"} it is made of.
  """
  chex.assert_equal_shape([tokens_BL, mask_BL])
  B, L = tokens_BL.shape
  if key.ndim == 0:
    key = jax.random.split(key, B)
  table_VD = denoiser.table(params)
  x_BLD = sphere.embed(table_VD, tokens_BL)

  def corrupt(key, x_LD):
    law_key, noise_key, drop_key = jax.random.split(key, 3)
    snr_1L = law(law_key, (1, L))
    z = channel.observe(noise_key, x_LD[None], snr_1L, clean_snr=clean_snr)
    return z[0], snr_1L[0], drop_key

  z_BLD, snr_BL, drop_key_B = jax.vmap(corrupt)(key, x_BLD)
  h_BLM = denoiser_lib.hidden_states(
    denoiser, params, z_BLD, snr_BL, key=drop_key_B
  )
  nll_BL = denoiser_lib.nll(denoiser, params, h_BLM, tokens_BL)
  weight_BL = mask_BL.astype(jnp.float32)
  sums = {"nll": jnp.sum(nll_BL * weight_BL), "tokens": jnp.sum(weight_BL)}
  return sums["nll"] / jnp.maximum(sums["tokens"], 1.0), sums
