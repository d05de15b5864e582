"""Probes of a denoiser on given text: calibration, repair, conditionals, SNR.

All functions take the parameters of the denoiser, a typed random key, ids
tokens_BL, and the denoiser. With mask_BL only tokens where it is true count.
"""

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, laws, sphere, vocab
from dsl_jax.nets import denoiser as denoiser_lib


def _best(params, h_BLM, denoiser):
  """The most probable token of every position and its probability."""
  head_VM, bias_V = denoiser.head(params)
  h_BLM = h_BLM.astype(jnp.float32)
  best_BL = vocab.argmax(h_BLM, head_VM, bias_V)
  nll_BL = vocab.nll(h_BLM, head_VM, best_BL, bias_V=bias_V)
  return best_BL, jnp.exp(-nll_BL)


def hidden_predictions(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  mask_BL: jax.Array | bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Predicts the hidden tokens of random endpoints, for calibration.

  Returns:
    confidence_BL, f32: probability of the most probable token; correct_BL,
    bool: whether it is the token; hidden_BL, bool: where that counts.
  """
  visible_BL = laws.visible_subset(key, tokens_BL.shape)
  h_BLM = denoiser_lib.endpoint_hidden_states(
    denoiser, params, tokens_BL, visible_BL, clean_snr=clean_snr
  )
  best_BL, confidence_BL = _best(params, h_BLM, denoiser)
  return confidence_BL, best_BL == tokens_BL, ~visible_BL & mask_BL


def repair(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  rate: float,
  snr: float,
  clean_snr: float,
  mask_BL: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Replaces tokens by random others and predicts all tokens in one pass.

  The text is observed at one SNR, inf for committed tokens: the lower it is,
  the more a prediction depends on the other tokens.

  Args:
    rate: probability that a token is replaced by another one.
    snr: of every token.

  Returns:
    {"wrong", "repaired", "clean", "kept"}, f32 [B]: the number of tokens
    replaced, of these predicted as they were, tokens not replaced, and of these
    predicted as they are.
  """
  where_key, which_key, noise_key = jax.random.split(key, 3)
  table_VD = denoiser.table(params)
  V = len(table_VD)
  wrong_BL = jax.random.uniform(where_key, tokens_BL.shape) < rate
  shift_BL = jax.random.randint(which_key, tokens_BL.shape, 1, max(V, 2))
  seen_BL = jnp.where(wrong_BL, (tokens_BL + shift_BL) % V, tokens_BL)
  x_BLD = sphere.embed(table_VD, seen_BL)
  snr_BL = jnp.full(tokens_BL.shape, snr, jnp.float32)
  z_BLD = channel.observe(noise_key, x_BLD, snr_BL, clean_snr=clean_snr)
  h_BLM = denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
  right_BL = _best(params, h_BLM, denoiser)[0] == tokens_BL

  def count(where_BL):
    return jnp.sum(where_BL, axis=-1, dtype=jnp.float32, where=mask_BL)

  return {
    "wrong": count(wrong_BL),
    "repaired": count(wrong_BL & right_BL),
    "clean": count(~wrong_BL),
    "kept": count(~wrong_BL & right_BL),
  }


def conditional_probabilities(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  groups: int,
) -> tuple[jax.Array, jax.Array]:
  """Leave-one-out conditionals p(s_i | s_-i), hidden a group at a time.

  They are exact with as many groups as tokens; fewer groups are fewer network
  calls and less context.

  Args:
    groups: network calls, 1 to L; the key chooses their tokens.

  Returns:
    p_BL, f32: probability of the given token; best_BL, int32: the most probable
    token.
  """
  L = tokens_BL.shape[1]
  if not 1 <= groups <= L:
    raise ValueError(f"groups is {groups}; use 1 to {L}, the length.")
  group_BL = laws.ranks(key, tokens_BL.shape) % groups

  def probe(result, group):
    hidden_BL = group_BL == group
    h = denoiser_lib.endpoint_hidden_states(
      denoiser, params, tokens_BL, ~hidden_BL, clean_snr=clean_snr
    )
    p_BL = jnp.exp(-denoiser_lib.nll(denoiser, params, h, tokens_BL))
    best_BL, _ = _best(params, h, denoiser)
    new = jax.tree.map(
      lambda new, old: jnp.where(hidden_BL, new, old), (p_BL, best_BL), result
    )
    return new, None

  start = jnp.zeros(tokens_BL.shape), jnp.zeros(tokens_BL.shape, jnp.int32)
  return jax.lax.scan(probe, start, jnp.arange(groups))[0]


def loss_by_snr(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  snr_grid: jax.Array,
  mask_BL: jax.Array | None = None,
) -> jax.Array:
  """Cross-entropy with all tokens at one SNR, nats_TB, per token.

  Two denoisers given one key see the same noise, which makes their difference
  more precise than either: the probe of the invariance theorem, by which a
  denoiser gains nothing from the SNR as an input.
  """
  x_BLD = sphere.embed(denoiser.table(params), tokens_BL)

  def at(inputs):
    key, snr = inputs
    snr_BL = jnp.full(tokens_BL.shape, snr)
    z_BLD = channel.observe(key, x_BLD, snr_BL, clean_snr=1.0)
    h_BLM = denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
    nll_BL = denoiser_lib.nll(denoiser, params, h_BLM, tokens_BL)
    return jnp.mean(nll_BL, axis=-1, where=mask_BL)

  grid = jnp.asarray(snr_grid, jnp.float32)
  return jax.lax.map(at, (jax.random.split(key, len(grid)), grid))
