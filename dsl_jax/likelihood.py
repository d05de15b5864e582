"""Bounds on -log p(x): any path, the I-MMSE integral, the endpoint bound.

Every bound is a Monte-Carlo estimate whose expectation over the data is at
least the entropy, with equality for the exact denoiser where noted.

What is uniform for every sequence, the SNR within an interval or the number of
visible tokens, is drawn in strata: of `GROUP` neighbouring sequences one lies
in each. Every sequence stays uniform, draws of one sequence stay independent,
and so do groups: the spread of group means is a valid standard error.

All functions take the parameters of the denoiser, a typed random key, ids
tokens_BL, and the denoiser. With `draws` independent repetitions nats_B is
their mean and stderr_B the standard error, NaN for a single one. With mask_BL
only tokens where it is true count, though all are seen (MDLM's padded rows).
"""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import channel, checks, laws, paths, sphere, vocab
from dsl_jax.nets import denoiser as denoiser_lib

GROUP = 4  # sequences that share strata


def _check_ids(params, key, tokens_BL, denoiser):
  """Checks the arguments that all bounds share; returns the ids."""
  checks.key(key)
  table_VD = jax.eval_shape(denoiser.table, params)
  checks.ids("tokens_BL", tokens_BL, table_VD.shape[0])
  return jnp.asarray(tokens_BL)


def _strata(key, batch):
  """Uniform numbers below 1, [B]; the last group may be smaller."""
  keys = jax.random.split(key, 3)
  whole, rest = divmod(batch, GROUP)
  starts = [
    laws.ranks(key, shape).reshape(-1) / shape[1]
    for key, shape in zip(keys, ((whole, GROUP), (1, rest)))
    if shape[0] * shape[1]
  ]
  start_B = jnp.concatenate(starts)
  size_B = np.repeat(np.float32([GROUP, rest]), [whole * GROUP, rest])
  return start_B + jax.random.uniform(keys[2], (batch,)) / size_B


def _square_error(params, key, x_BLD, snr_B, denoiser):
  """|x_i - xhat_i(z)|^2, [B, L], with all tokens of a sequence at one SNR."""
  snr_BL = jnp.broadcast_to(snr_B[:, None], x_BLD.shape[:2])
  z_BLD = channel.observe(key, x_BLD, snr_BL, clean_snr=1.0)
  h_BLM = denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
  mean_BLD = denoiser_lib.posterior_mean(denoiser, params, h_BLM)
  return jnp.sum(jnp.square(x_BLD - mean_BLD), axis=-1)


def _repeat(once, key, draws):
  """Mean and standard error of once(key) over independent draws."""
  draws = checks.count("draws", draws)
  nats_SB = jax.lax.map(once, jax.random.split(key, draws))
  deviation_B = jnp.std(nats_SB, axis=0) / np.sqrt(max(draws - 1, 1))
  stderr_B = deviation_B if draws > 1 else jnp.full_like(deviation_B, jnp.nan)
  return jnp.mean(nats_SB, axis=0), stderr_B


def path_nats(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  path: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  mask_BL: jax.Array | None = None,
) -> jax.Array:
  """One draw of the bound along a sampler's path, nats_BL, for that sampler.

  -log p(x) <= E sum_k sum_i c_i(k). Where token i rises by a finite d in
  step k, with y = d e(x) + sqrt(d) eps,
    c = <y, e(x)> - log sum_v p(v|z) exp(<y, e(v)>);
  where it jumps to inf, c = -log p(x|z); else 0. It is the NELBO of the T-step
  sampler with sampled tokens: the autoregressive or masked cross-entropy on
  endpoint paths, and the I-MMSE integral as T grows.

  Args:
    path: rising, [T+1, L] or [T+1, B, L]; positions that begin at inf are a
      prompt and cost nothing.
  """
  tokens_BL = _check_ids(params, key, tokens_BL, denoiser)
  checks.positive("clean_snr", clean_snr)
  if not isinstance(path, jax.core.Tracer):
    paths.check(path, rising=True)
  path = jnp.asarray(path, jnp.float32)
  B, L = tokens_BL.shape
  path = path if path.ndim == 3 else path[:, None]
  if any(n not in (1, m) for n, m in zip(path.shape[1:], (B, L))):
    raise ValueError(
      f"path has rows of shape {path.shape[1:]}; tokens_BL needs {(B, L)}."
    )
  path = jnp.broadcast_to(path, (len(path), B, L))
  table_VD = denoiser.table(params)
  head_VM, bias_V = denoiser.head(params)
  x_BLD = sphere.embed(table_VD, tokens_BL)

  def step(carry, inputs):
    z, cost = carry
    key, snr, next_snr = inputs
    h = denoiser_lib.hidden_states(denoiser, params, z, snr).astype(jnp.float32)
    at_z = vocab.nll(h, head_VM, tokens_BL, bias_V=bias_V)
    z_next = channel.advance(key, z, x_BLD, snr, next_snr, clean_snr=clean_snr)
    # After the evidence y the posterior is p(v|z) exp<y, e(v)> / sum. A finite
    # move contributes the decrease of the token's negative log-likelihood.
    finite = jnp.isfinite(next_snr)
    y = jnp.where(finite[..., None], z_next - z, 0.0)
    at_next = vocab.nll(
      jnp.concatenate([h, y], axis=-1),
      jnp.concatenate([head_VM.astype(jnp.float32), table_VD], axis=-1),
      tokens_BL,
      bias_V=bias_V,
    )
    step_cost = at_z - jnp.where(finite, at_next, 0.0)
    return (z_next, cost + jnp.where(next_snr > snr, step_cost, 0.0)), None

  def stay(carry, inputs):
    return carry, None

  def step_if_moving(carry, inputs):
    _, snr, next_snr = inputs
    return jax.lax.cond(jnp.any(snr != next_snr), step, stay, carry, inputs)

  start_key, key = jax.random.split(key)
  z = channel.observe(start_key, x_BLD, path[0], clean_snr=clean_snr)
  keys = jax.random.split(key, len(path) - 1)
  carry = (z, jnp.zeros((B, L)))
  inputs = (keys, path[:-1], path[1:])
  nats_BL = jax.lax.scan(step_if_moving, carry, inputs)[0][1]
  return nats_BL if mask_BL is None else jnp.where(mask_BL, nats_BL, 0.0)


def integral_nats(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  snr_grid: jax.Array,
  draws: int = 1,
  mask_BL: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The I-MMSE bound along the path on which all tokens share one SNR.

  -log p(x) <= 1/2 sum_i int_0^T E|x_i - xhat_i(z)|^2 dt + E[-log p(x|z_T)],
  with equality for the exact denoiser (arXiv 2605.12836). One SNR is drawn
  uniformly within each interval of the grid, so that the estimate has no
  discretisation error whatever the grid.

  Args:
    snr_grid: increasing, finite SNRs; the last one is the cut-off T.
  """
  tokens_BL = _check_ids(params, key, tokens_BL, denoiser)
  checks.snr_grid(snr_grid)
  grid = jnp.asarray(snr_grid, jnp.float32)
  edges = jnp.concatenate([jnp.zeros(1), grid])
  x_BLD = sphere.embed(denoiser.table(params), tokens_BL)

  def once(key):
    keys = jax.random.split(key, len(edges))

    def interval(total, inputs):
      key, low, high = inputs
      time_key, noise_key = jax.random.split(key)
      snr = low + (high - low) * _strata(time_key, len(tokens_BL))
      error = _square_error(params, noise_key, x_BLD, snr, denoiser)
      error_B = jnp.sum(error, axis=-1, where=mask_BL)
      return total + 0.5 * (high - low) * error_B, None

    inputs = (keys[1:], edges[:-1], edges[1:])
    start = jnp.zeros(len(tokens_BL))
    total, _ = jax.lax.scan(interval, start, inputs)
    snr = jnp.full(tokens_BL.shape, edges[-1])
    z = channel.observe(keys[0], x_BLD, snr, clean_snr=1.0)
    h = denoiser_lib.hidden_states(denoiser, params, z, snr)
    nll_BL = denoiser_lib.nll(denoiser, params, h, tokens_BL)
    return total + jnp.sum(nll_BL, axis=-1, where=mask_BL)

  return _repeat(once, key, draws)


def endpoint_nats(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  draws: int = 1,
  mask_BL: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The masked bound (endpoint path), or endpoint bound for short.

  It is L E_{k ~ U{0..L-1}}[mean cross-entropy when k tokens are visible], and
  equals MDLM's 1/t-weighted NELBO and the autoregressive bound averaged over
  orders.
  """
  tokens_BL = _check_ids(params, key, tokens_BL, denoiser)
  checks.positive("clean_snr", clean_snr)

  def once(key):
    count_key, order_key = jax.random.split(key)
    B, L = tokens_BL.shape
    count_B = (L * _strata(count_key, B)).astype(jnp.int32)
    visible_BL = (
      laws.ranks(order_key, (B, L)) < jnp.minimum(count_B, L - 1)[:, None]
    )
    h_BLM = denoiser_lib.endpoint_hidden_states(
      denoiser, params, tokens_BL, visible_BL, clean_snr=clean_snr
    )
    nll_BL = denoiser_lib.nll(denoiser, params, h_BLM, tokens_BL)
    hidden_BL = 1.0 - visible_BL.astype(jnp.float32)
    nll_B = jnp.sum(nll_BL * hidden_BL, axis=-1, where=mask_BL)
    return L * (nll_B / jnp.sum(hidden_BL, axis=-1))

  return _repeat(once, key, draws)


def mmse_curve(
  params,
  key: jax.Array,
  tokens_BL: jax.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  snr_grid: jax.Array,
  by_sequence: bool = False,
  mask_BL: jax.Array | None = None,
) -> jax.Array:
  """mmse_T = E|x_i - xhat_i|^2 per token, all tokens at one SNR of the grid.

  Args:
    snr_grid: increasing, finite SNRs, [T].
    by_sequence: returns mmse_BT, of every sequence, for standard errors.
  """
  tokens_BL = _check_ids(params, key, tokens_BL, denoiser)
  checks.snr_grid(snr_grid)
  grid = jnp.asarray(snr_grid, jnp.float32)
  x_BLD = sphere.embed(denoiser.table(params), tokens_BL)

  def at(inputs):
    key, snr = inputs
    snr_B = jnp.full(len(tokens_BL), snr)
    error_BL = _square_error(params, key, x_BLD, snr_B, denoiser)
    return jnp.mean(error_BL, axis=-1, where=mask_BL)

  mmse_TB = jax.lax.map(at, (jax.random.split(key, len(grid)), grid))
  size_B = None if mask_BL is None else jnp.sum(mask_BL, -1, jnp.float32)
  return mmse_TB.T if by_sequence else jnp.average(mmse_TB, -1, size_B)
