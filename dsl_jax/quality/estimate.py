"""Estimates with standard errors (ratios, jackknife), and calibration."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
  """A number and its standard error, NaN where it cannot be estimated."""

  value: float
  stderr: float


def ratio(total_N: ArrayLike, size_N: ArrayLike, *, group: int = 1) -> Estimate:
  """Estimates a ratio of sums over units, such as nats to tokens of sequences.

  R = sum_i a_i / sum_i b_i, and with r_i = a_i - R b_i summed over groups g
    stderr^2 = G var(r_g) / (sum_i b_i)^2 (the linearised ratio estimator).
  Both are NaN where sum_i b_i is 0.

  Groups are of consecutive units, which may depend on each other. Units left
  over count in the value only; with fewer than two groups units are single.
  """
  a, b = np.asarray(total_N, np.float64), np.asarray(size_N, np.float64)
  if not b.sum() > 0:
    return Estimate(float("nan"), float("nan"))
  value = a.sum() / b.sum()
  group = group if len(a) >= 2 * group else 1
  groups = len(a) // group
  if groups < 2:
    return Estimate(float(value), float("nan"))
  residual_G = (a - value * b)[: groups * group].reshape(groups, group).sum(1)
  stderr = np.sqrt(len(a) / group * residual_G.var(ddof=1)) / b.sum()
  return Estimate(float(value), float(stderr))


def per_token(x_NT: np.ndarray, size_N: np.ndarray) -> np.ndarray:
  """Returns values of rows, [N, T], whose mean is the mean over all tokens.

  Mean and spread of w_i x_i + (1 - w_i) R, with w_i = size_i / mean(size), are
  those of the ratio R = sum_i size_i x_i / sum_i size_i.
  """
  w_N1 = (size_N / size_N.mean()).astype(x_NT.dtype)[:, None]
  return w_N1 * x_NT + (1 - w_N1) * (w_N1 * x_NT).mean(axis=0)


def jackknife(
  statistic: Callable[[np.ndarray], float], units: int, *, groups: int = 10
) -> Estimate:
  """Estimates a statistic, and its error by leaving out groups of units.

  stderr^2 = (G - 1) / G sum_g (value without g - their mean)^2. No unit is
  repeated, so a statistic that counts distinct things stays valid. It is called
  with the indices of the units kept; unit i is in group i mod G.
  """
  index = np.arange(units)
  value = float(statistic(index))
  groups = min(groups, units)
  if groups < 2:
    return Estimate(value, float("nan"))
  values = [statistic(index[index % groups != g]) for g in range(groups)]
  return Estimate(value, float(np.sqrt((groups - 1) * np.var(values))))


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray) -> dict:
  """Bins predictions by confidence, in C = 10 bins (c / C, (c + 1) / C].

  Returns "ece", ECE = sum_c (n_c / N) |accuracy_c - confidence_c| (Guo et al.
  2017), and lists by bin: mean "confidence", "accuracy", both NaN in empty
  bins, and the "count" of predictions.
  """
  bins, p = 10, np.asarray(confidence_N, np.float64)
  with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins, and NaNs
    bin_N = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(bin_N, minlength=bins)
    confidence = np.bincount(bin_N, p, bins) / count
    correct = np.asarray(correct_N, np.float64)
    accuracy = np.bincount(bin_N, correct, bins) / count
  gap = np.where(count > 0, np.abs(accuracy - confidence), 0)
  return {
    "ece": float((count * gap).sum() / len(p)),
    "confidence": confidence.tolist(),
    "accuracy": accuracy.tolist(),
    "count": count.tolist(),
  }
