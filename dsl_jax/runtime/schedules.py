"""Named paths: from the sample section of a config to arrays."""

import jax
import numpy as np

from dsl_jax.core import paths
from dsl_jax.runtime import errors, schema
from dsl_jax.samplers import policies


def build(
  cfg: schema.Sample, key: jax.Array, batch: int, length: int
) -> tuple[np.ndarray, jax.tree_util.Partial | None]:
  """Returns the path that cfg.path names, and its policy if it needs one.

  Args:
    cfg: the sample section.
    key: typed random key, for random paths.
    batch: B.
    length: L.

  Returns:
    path, [T+1, L] or [T+1, B, L], and a policy or None.

  Raises:
    errors.UserError: unknown name.
  """
  if cfg.path == "hybrid":
    return _hybrid(cfg, key, batch, length)
  return _named(cfg)(cfg.steps, key, batch, length), None


def names() -> list[str]:
  """Returns what sample.path may be."""
  return sorted([*_NAMED, "hybrid"])


def _geometric(cfg, steps, key, batch, length):
  return paths.geometric(
    steps, length, snr_min=cfg.snr_min, snr_max=cfg.snr_max
  )


def _linear(cfg, steps, key, batch, length):
  return paths.linear(steps, length, snr_max=cfg.snr_max)


def _masked(cfg, steps, key, batch, length):
  return paths.masked(key, steps, batch, length)


def _remask(kind):
  def path(cfg, steps, key, batch, length):
    return paths.remask(key, steps, batch, length, kind=kind, eta=cfg.eta)

  return path


def _random_order(cfg, steps, key, batch, length):
  per_step = -(-length // steps)
  return paths.random_order(key, batch, length, tokens_per_step=per_step)


def _left_to_right(cfg, steps, key, batch, length):
  return paths.left_to_right(length, tokens_per_step=-(-length // steps))


def _blocks(cfg, steps, key, batch, length):
  block = min(cfg.block, length)
  inner = max(1, steps * block // length)
  inner = paths.masked(key, inner, batch, length)
  return paths.blocks(length, block=block, inner=inner)


_NAMED = {
  "continuous": _geometric,
  "linear": _linear,
  "masked": _masked,
  "remask_cap": _remask("cap"),
  "remask_rescale": _remask("rescale"),
  "remask_loop": _remask("loop"),
  "random_order": _random_order,
  "left_to_right": _left_to_right,
  "blocks": _blocks,
}


def _named(cfg):
  if cfg.path not in _NAMED:
    raise errors.UserError(
      f"sample.path is {cfg.path!r}" + errors.nearest(cfg.path, names())
    )
  return lambda *args: _NAMED[cfg.path](cfg, *args)


def _hybrid(cfg, key, batch, length):
  """Continuous rows, one commitment by confidence, then a masked path."""
  if cfg.steps < 2:
    raise errors.UserError(
      f"sample.steps is {cfg.steps}; the hybrid path needs at least 2."
    )
  first = round(cfg.continuous_share * cfg.steps)
  first = min(max(first, 1), cfg.steps - 1)
  soft = _geometric(cfg, first, key, batch, length)[:-1]
  hard = paths.masked(key, cfg.steps - first, batch, length)
  path = paths.concat(soft, hard)
  return path, policies.commit(path, len(soft), cfg.commit)
