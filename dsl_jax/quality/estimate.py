"""Estimates with standard errors: ratios of sums, and the jackknife."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
  """A number and its standard error, NaN where it cannot be estimated."""

  value: float
  stderr: float


def ratio(total_N: ArrayLike, size_N: ArrayLike, *, group: int = 1) -> Estimate:
  """Estimates a ratio of sums over units, such as nats per token.

  R = sum_i a_i / sum_i b_i, and with r_i = a_i - R b_i summed over groups g
    stderr^2 = G var(r_g) / (sum_i b_i)^2 (the linearised ratio estimator).

  Args:
    total_N: a_i of every unit, such as the nats of a sequence.
    size_N: b_i > 0, such as its tokens.
    group: consecutive units that may depend on each other. Units left over
      count in the value only; with fewer than two groups units are single.

  Returns:
    The estimate; its error is NaN for a single unit.

  Raises:
    ValueError: there are no units, or their sizes add up to 0.
  """
  a, b = np.asarray(total_N, np.float64), np.asarray(size_N, np.float64)
  if not len(a) or not b.sum() > 0:
    raise ValueError(
      f"total_N has {len(a)} units of total size {b.sum()}; give at least one "
      "unit of positive size."
    )
  value = a.sum() / b.sum()
  group = group if len(a) >= 2 * group else 1
  groups = len(a) // group
  if groups < 2:
    return Estimate(float(value), float("nan"))
  residual_G = (a - value * b)[: groups * group].reshape(groups, group).sum(1)
  stderr = np.sqrt(len(a) / group * residual_G.var(ddof=1)) / b.sum()
  return Estimate(float(value), float(stderr))


def jackknife(
  statistic: Callable[[np.ndarray], float], units: int, *, groups: int = 10
) -> Estimate:
  """Estimates a statistic, and its error by leaving out groups of units.

  stderr^2 = (G - 1) / G sum_g (value without g - their mean)^2. No unit is
  repeated, so a statistic that counts distinct things stays valid.

  Args:
    statistic: indices of the units kept -> value.
    units: N, at least 1.
    groups: G, at most N; unit i is in group i mod G.

  Returns:
    The estimate; its error is NaN for a single unit.
  """
  index = np.arange(units)
  value = float(statistic(index))
  groups = min(groups, units)
  if groups < 2:
    return Estimate(value, float("nan"))
  values = [statistic(index[index % groups != g]) for g in range(groups)]
  return Estimate(value, float(np.sqrt((groups - 1) * np.var(values))))
