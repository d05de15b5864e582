"""Continuous paths: all tokens share one rising grid of SNRs."""

import jax
import numpy as np

from dsl_jax.core import checks

_POSITIVE = "use a finite number above 0"


def _share(rows, length):
  rows = np.concatenate([[0.0], rows, [np.inf]]).astype(np.float32)
  return np.repeat(rows[:, None], checks.count("length", length), axis=1)


def _check_range(snr_min, snr_max):
  for name, value in (("snr_min", snr_min), ("snr_max", snr_max)):
    checks.number(name, value, lambda x: 0 < x < np.inf, _POSITIVE)
  if snr_min > snr_max:
    raise ValueError(
      f"snr_min is {snr_min}; use at most snr_max, which is {snr_max}."
    )


def geometric(
  num_steps: int, length: int, *, snr_min: float, snr_max: float
) -> np.ndarray:
  """All tokens share a geometric grid from snr_min to snr_max.

  Args:
    snr_min: SNR of row 1.
    snr_max: SNR of row T - 1.
  """
  _check_range(snr_min, snr_max)
  rows = checks.count("num_steps", num_steps) - 1
  return _share(np.geomspace(snr_max, snr_min, rows)[::-1], length)


def linear(
  num_steps: int, length: int, *, snr_max: float, snr_min: float | None = None
) -> np.ndarray:
  """All tokens share a linear grid.

  Args:
    snr_max: SNR of row T - 1.
    snr_min: SNR of row 1; None spaces rows 0 to T - 1 evenly.
  """
  n = checks.count("num_steps", num_steps) - 1
  checks.number("snr_max", snr_max, lambda x: 0 < x < np.inf, _POSITIVE)
  snr_min = snr_max / max(n, 1) if snr_min is None else snr_min
  _check_range(snr_min, snr_max)
  return _share(np.linspace(snr_max, snr_min, n)[::-1], length)


def lognormal_quantiles(
  num_steps: int, length: int, *, mu: float, sigma: float
) -> np.ndarray:
  """All tokens share the k/T quantiles of log t ~ N(mu, sigma^2).

  Args:
    mu: mean of the natural logarithm of the SNR.
    sigma: its standard deviation, > 0.
  """
  checks.number("mu", mu, np.isfinite, "it must be finite")
  checks.number("sigma", sigma, lambda x: 0 < x < np.inf, "it must be positive")
  k = np.arange(1, checks.count("num_steps", num_steps)) / num_steps
  return _share(
    np.exp(mu + sigma * np.asarray(jax.scipy.special.ndtri(k))), length
  )


def information_uniform(
  num_steps: int,
  length: int,
  *,
  snr_grid: checks.Array,
  mmse_curve: checks.Array,
) -> np.ndarray:
  """All tokens share rows at equal steps of information.

  I(t) = 1/2 int_0^t mmse is the information the channel has given up to t.
  Row k sits at I = k/(T-1) of what the grid holds (the principle is
  LangFlow's, arXiv 2604.11748).

  Args:
    snr_grid: increasing SNRs where the curve was measured; the last one is
      row T - 1.
    mmse_curve: E|x - xhat|^2 there, from `likelihood.mmse_curve`.
  """
  snr = np.asarray(snr_grid, np.float64)
  mmse = np.asarray(mmse_curve, np.float64)
  if snr.ndim != 1 or snr.shape != mmse.shape or len(snr) < 2:
    raise ValueError(
      f"snr_grid {snr.shape} and mmse_curve {mmse.shape} must be two vectors "
      "of one length, at least 2."
    )
  if not (snr[0] >= 0 and np.all(np.diff(snr) > 0) and np.isfinite(snr[-1])):
    raise ValueError("snr_grid must be finite, non-negative and increasing.")
  if not (np.all(mmse >= 0) and np.isfinite(mmse).all() and mmse.any()):
    raise ValueError("mmse_curve must be finite, non-negative, not all zero.")
  if snr[0] > 0:
    snr, mmse = np.append(0.0, snr), np.append(mmse[0], mmse)
  information = np.append(0, np.cumsum(np.diff(snr) * (mmse[1:] + mmse[:-1])))
  fraction = np.linspace(1, 0, checks.count("num_steps", num_steps))[:-1][::-1]
  rows = np.interp(fraction * information[-1], information, snr)
  return _share(rows, length)
