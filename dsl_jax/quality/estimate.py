"""Means with standard errors, jackknife, and bootstrap intervals."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A number and its standard error, NaN where it cannot be told."""

  value: float
  stderr: float


def ratio(
  total_N: np.ndarray, size_N: np.ndarray, *, group: int = 1
) -> Estimate:
  """Estimates a sum over a sum, such as nats per token, from units.

  R = sum_i a_i / sum_i b_i, and with r_i = a_i - R b_i summed over groups g
    stderr^2 = G var(r_g) / (sum_i b_i)^2 (the linearised ratio estimator).

  Args:
    total_N: a_i of every unit, say nats of a sequence.
    size_N: b_i > 0, say its tokens.
    group: neighbouring units that may depend on one another; units left over
      count in the value alone. With fewer than two groups units stand alone.

  Returns:
    The estimate; its error is NaN for a single unit.

  Raises:
    ValueError: there are no units, or sizes do not add up to more than 0.
  """
  a, b = np.asarray(total_N, np.float64), np.asarray(size_N, np.float64)
  if not len(a) or not b.sum() > 0:
    raise ValueError(
      f"{len(a)} units of total size {b.sum()} tell nothing; give at least one."
    )
  value = a.sum() / b.sum()
  group = group if len(a) >= 2 * group else 1
  groups = len(a) // group
  if groups < 2:
    return Estimate(float(value), float("nan"))
  left = (a - value * b)[: groups * group].reshape(groups, group).sum(axis=1)
  stderr = np.sqrt(len(a) / group * left.var(ddof=1)) / b.sum()
  return Estimate(float(value), float(stderr))


def jackknife(
  statistic: Callable[[np.ndarray], float], units: int, *, groups: int = 10
) -> Estimate:
  """Estimates a statistic of units, its error by leaving out groups of them.

  stderr^2 = (G - 1) / G sum_g (value without g - their mean)^2. Units are left
  out, never repeated, so that counts of different things stay right.

  Args:
    statistic: numbers of the units kept -> value.
    units: N, at least 1.
    groups: G, at most N; unit i is in group i mod G.

  Returns:
    The estimate; its error is NaN for a single unit.
  """
  place = np.arange(units)
  value = float(statistic(place))
  groups = min(groups, units)
  if groups < 2:
    return Estimate(value, float("nan"))
  left = [statistic(place[place % groups != g]) for g in range(groups)]
  return Estimate(value, float(np.sqrt((groups - 1) * np.var(left))))


def bootstrap(
  statistic: Callable[[np.random.Generator], float],
  value: float,
  *,
  seed: int,
  replicates: int = 200,
  level: float = 0.95,
) -> tuple[float, float, float]:
  """Returns the standard error and an interval of a statistic.

  The interval is that of the replicates moved to the value: resampling adds
  noise, which shifts statistics such as MAUVE to one side.

  Args:
    statistic: a random generator -> the statistic of a resampled data set.
    value: the statistic of the data.
    seed: of the resampling.
    replicates: resampled data sets.
    level: mass of the interval.

  Returns:
    stderr, low, high.
  """
  rng = np.random.default_rng(seed)
  found = np.array([statistic(rng) for _ in range(replicates)])
  tail = 50 * (1 - level)
  low, high = np.percentile(found, [tail, 100 - tail]) - found.mean() + value
  return float(found.std(ddof=1)), float(low), float(high)
