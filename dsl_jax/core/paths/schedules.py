"""Rising paths, fixed before sampling.

Continuous ones share a grid of SNRs among all tokens. On discrete ones each
token jumps from the mask to the commitment.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks, laws


def _share(snr, length):
  snr = np.concatenate([[0.0], snr, [np.inf]]).astype(np.float32)
  return np.repeat(snr[:, None], checks.count("length", length), axis=1)


def _check_range(snr_min, snr_max):
  checks.positive("snr_min", snr_min)
  checks.positive("snr_max", snr_max)
  if snr_min > snr_max:
    raise ValueError(
      f"snr_min is {snr_min}; use at most snr_max, which is {snr_max}."
    )


def geometric(
  num_steps: int, length: int, *, snr_min: float, snr_max: float
) -> np.ndarray:
  """All tokens share a geometric grid, snr_min in row 1 to snr_max in T - 1."""
  _check_range(snr_min, snr_max)
  n = checks.count("num_steps", num_steps) - 1
  return _share(np.geomspace(snr_max, snr_min, n)[::-1], length)


def linear(
  num_steps: int, length: int, *, snr_max: float, snr_min: float | None = None
) -> np.ndarray:
  """All tokens share a linear grid, snr_min in row 1 to snr_max in T - 1.

  Without snr_min rows 0 to T - 1 are evenly spaced.
  """
  n = checks.count("num_steps", num_steps) - 1
  checks.positive("snr_max", snr_max)
  snr_min = snr_max / max(n, 1) if snr_min is None else snr_min
  _check_range(snr_min, snr_max)
  return _share(np.linspace(snr_max, snr_min, n)[::-1], length)


def lognormal_quantiles(
  num_steps: int, length: int, *, mu: float, sigma: float
) -> np.ndarray:
  """All tokens share the k/T quantiles of log t ~ N(mu, sigma^2), sigma > 0."""
  checks.number("mu", mu, np.isfinite, "it must be finite")
  checks.positive("sigma", sigma)
  k = np.arange(1, checks.count("num_steps", num_steps)) / num_steps
  normal = np.asarray(jax.scipy.special.ndtri(k))
  return _share(np.exp(mu + sigma * normal), length)


def information_uniform(
  num_steps: int,
  length: int,
  *,
  snr_grid: checks.Array,
  mmse_curve: checks.Array,
) -> np.ndarray:
  """All tokens share a grid at equal steps of information.

  I(t) = 1/2 int_0^t mmse is the information the channel has given up to t.
  Row k of the path is at I = k/(T-1) of what the grid holds (the principle is
  LangFlow's, arXiv 2604.11748).

  Args:
    snr_grid: increasing SNRs where the curve was measured; the last one is
      row T - 1.
    mmse_curve: E|x - xhat|^2 there, from `likelihood.mmse_curve`.
  """
  checks.snr_grid(snr_grid)
  snr = np.asarray(snr_grid, np.float64)
  mmse = np.asarray(mmse_curve, np.float64)
  if snr.shape != mmse.shape or len(snr) < 2:
    raise ValueError(
      f"snr_grid {snr.shape} and mmse_curve {mmse.shape} must be two vectors "
      "of one length, at least 2."
    )
  if not (np.all(mmse >= 0) and np.isfinite(mmse).all() and mmse.any()):
    raise ValueError("mmse_curve must be finite, non-negative, not all zero.")
  if snr[0] > 0:
    snr, mmse = np.append(0.0, snr), np.append(mmse[0], mmse)
  information = np.append(0, np.cumsum(np.diff(snr) * (mmse[1:] + mmse[:-1])))
  fraction = np.linspace(1, 0, checks.count("num_steps", num_steps))[:-1][::-1]
  return _share(np.interp(fraction * information[-1], information, snr), length)


def _jumps(step, num_steps):
  """0 up to row step[i], inf from row step[i] + 1."""
  # On the host unless traced: a long path may not fit on a device.
  xp = jnp if isinstance(step, jax.core.Tracer) else np
  row = xp.arange(num_steps + 1).reshape(-1, *[1] * step.ndim)
  visible = row > xp.asarray(step)[None]
  return xp.where(visible, xp.float32(xp.inf), xp.float32(0))


def masked(
  key: jax.Array, num_steps: int, batch: int, length: int
) -> jax.Array:
  """MDLM's ancestral sampler: each token jumps from 0 to inf at its own time.

  The times are uniform and independent.
  """
  checks.key(key)
  shape = (checks.count("batch", batch), checks.count("length", length))
  num_steps = checks.count("num_steps", num_steps)
  step_BL = jax.random.randint(key, shape, 0, num_steps)
  return _jumps(step_BL, num_steps)


def random_order(
  key: jax.Array, batch: int, length: int, *, tokens_per_step: int = 1
) -> jax.Array:
  """Autoregression in a random order of its own for every sequence.

  T = ceil(L / tokens_per_step).
  """
  checks.key(key)
  shape = (checks.count("batch", batch), checks.count("length", length))
  per_step = checks.count("tokens_per_step", tokens_per_step)
  step_BL = laws.ranks(key, shape) // per_step
  return _jumps(step_BL, -(-length // per_step))


def left_to_right(length: int, *, tokens_per_step: int = 1) -> np.ndarray:
  """Autoregression from left to right, T = ceil(L / tokens_per_step)."""
  per_step = checks.count("tokens_per_step", tokens_per_step)
  step_L = np.arange(checks.count("length", length)) // per_step
  return _jumps(step_L, -(-length // per_step))
