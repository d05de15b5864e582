"""Named samplers: from the sample section of a config to paths and policies."""

import math
from typing import NamedTuple

import jax
import numpy as np

from dsl_jax.core import paths
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.samplers import policies


class Schedule(NamedTuple):
  """What `samplers.sample` runs.

  Attributes:
    path: [T+1, L] or [T+1, B, L].
    policy: or None.
    confidence: what the policy sees, "probability" or "entropy".
    falls: whether tokens may lose SNR, whatever this draw of the path does.
  """

  path: np.ndarray
  policy: object = None
  confidence: str = "probability"
  falls: bool = False


class Curve(NamedTuple):
  """A measured mmse curve, of the path "information"."""

  snr_grid: np.ndarray
  mmse: np.ndarray


def build(
  cfg: config_lib.Config,
  key: jax.Array,
  batch: int,
  *,
  curve: Curve | None = None,
) -> Schedule:
  """Returns the sampler that cfg.sample.path names.

  Args:
    cfg: its sample section, its length, and its law for "lognormal".
    key: typed random key, for random paths.
    batch: B.
    curve: of the model, for the path "information".

  Returns:
    The schedule.

  Raises:
    errors.UserError: unknown name, or values that do not fit it.
  """
  check(cfg)
  args = (cfg.sample, key, batch, cfg.data.length)
  if cfg.sample.path == "lognormal":
    law = {"mu": cfg.law.mu, "sigma": cfg.law.sigma}
    steps = cfg.sample.steps
    return Schedule(paths.lognormal_quantiles(steps, args[-1], **law))
  if cfg.sample.path == "information":
    grid = {"snr_grid": curve.snr_grid, "mmse_curve": curve.mmse}
    grid = paths.information_uniform(cfg.sample.steps, args[-1], **grid)
    return Schedule(grid)
  return _NAMED[cfg.sample.path](*args)


def names() -> list[str]:
  """Returns what sample.path may be."""
  return sorted([*_NAMED, "lognormal", "information"])


def check(cfg: config_lib.Config) -> None:
  """Refuses a sample section whose values do not fit its path.

  Raises:
    errors.UserError: names the key, its value and the mend.
  """
  c = cfg.sample
  if c.path not in names():
    raise errors.UserError(
      f"sample.path is {c.path!r}" + errors.nearest(c.path, names())
    )
  if c.steps > 10**5:
    raise errors.UserError(f"sample.steps is {c.steps}; use at most 100,000.")
  if c.path == "hybrid" and c.steps < 2:
    raise errors.UserError(
      f"sample.steps is {c.steps}; the hybrid path needs at least 2."
    )
  if c.path == "lognormal" and not cfg.law.sigma > 0:
    raise errors.UserError(
      f"law.sigma is {cfg.law.sigma}; the lognormal path needs one above 0."
    )
  if c.snr_min > c.snr_max:
    raise errors.UserError(
      f"sample.snr_min is {c.snr_min}; it must be at most sample.snr_max, "
      f"which is {c.snr_max}."
    )
  if c.remasks and c.path not in ("remask_cap", "remask_loop"):
    raise errors.UserError(
      f"sample.remasks is {c.remasks}; a budget is defined for remask_cap and "
      "remask_loop, so set it to 0 or choose one of them."
    )


def _geometric(c, key, batch, length):
  snr = {"snr_min": c.snr_min, "snr_max": c.snr_max}
  return Schedule(paths.geometric(c.steps, length, **snr))


def _linear(c, key, batch, length):
  return Schedule(paths.linear(c.steps, length, snr_max=c.snr_max))


def _masked(c, key, batch, length):
  return Schedule(paths.masked(key, c.steps, batch, length))


def _remask(kind):
  def schedule(c, key, batch, length):
    eta = c.eta
    if c.remasks:
      eta = paths.budget_eta(c.steps, c.remasks, kind=kind)
    how = {"kind": kind, "eta": eta, "soft_snr": c.remask_snr}
    path = paths.remask(key, c.steps, batch, length, **how)
    return Schedule(path, falls=True)

  return schedule


def _remask_conf(c, key, batch, length):
  policy = policies.remask_unsure(key, c.steps, soft_snr=c.remask_snr)
  return Schedule(_open(c, length), policy)


def _random_order(c, key, batch, length):
  per_step = math.ceil(length / c.steps)
  order = paths.random_order(key, batch, length, tokens_per_step=per_step)
  return Schedule(order)


def _left_to_right(c, key, batch, length):
  per_step = math.ceil(length / c.steps)
  return Schedule(paths.left_to_right(length, tokens_per_step=per_step))


def _blocks(c, key, batch, length):
  block = min(c.block, length)
  inner = max(1, c.steps // math.ceil(length / block))
  inner = paths.masked(key, inner, batch, length)
  return Schedule(paths.blocks(length, block=block, inner=inner))


def _confident(confidence):
  def schedule(c, key, batch, length):
    policy = policies.most_confident(math.ceil(length / c.steps))
    return Schedule(_open(c, length), policy, confidence)

  return schedule


def _threshold(c, key, batch, length):
  return Schedule(_open(c, length), policies.above(c.commit))


def _hybrid(c, key, batch, length):
  """Continuous rows, one commitment by confidence, then a masked path."""
  first = round(c.continuous_share * c.steps)
  first = min(max(first, 1), c.steps - 1)
  soft = paths.geometric(first, length, snr_min=c.snr_min, snr_max=c.snr_max)
  hard = paths.masked(key, c.steps - first, batch, length)
  path = paths.concat(soft[:-1], hard)
  return Schedule(path, policies.commit(path, len(soft) - 1, c.commit))


def _open(c, length):
  """The frame of a policy that decides every row: masks, at last inf."""
  path = np.zeros((c.steps + 1, length), np.float32)
  path[-1] = np.inf
  return path


_NAMED = {
  "continuous": _geometric,
  "linear": _linear,
  "masked": _masked,
  "remask_cap": _remask("cap"),
  "remask_rescale": _remask("rescale"),
  "remask_loop": _remask("loop"),
  "remask_forward_backward": _remask("forward_backward"),
  "remask_conf": _remask_conf,
  "random_order": _random_order,
  "left_to_right": _left_to_right,
  "blocks": _blocks,
  "confidence": _confident("probability"),
  "entropy": _confident("entropy"),
  "threshold": _threshold,
  "hybrid": _hybrid,
}
