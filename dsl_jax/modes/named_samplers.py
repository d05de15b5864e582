"""Samplers by name: from the sample section of a config to tokens.

A new name is a function that returns a `Schedule`, and an entry in `_NAMED`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging
from jax.experimental import multihost_utils

from dsl_jax import likelihood, samplers
from dsl_jax.core import paths
from dsl_jax.data import batches, packing
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib
from dsl_jax.samplers import policies

_CURVE_SEQUENCES = 64  # held-out rows that an mmse curve is measured on


class Schedule(NamedTuple):
  """What `samplers.sample` runs."""

  path: np.ndarray  # [T+1, L] or [T+1, B, L]
  policy: policies.Policy | Callable | None = None
  confidence: str = "probability"  # what the policy sees, or "entropy"
  falls: bool = False  # tokens may lose SNR, in this or another draw


class Curve(NamedTuple):
  """A measured mmse curve, for the path "information"."""

  snr_grid: np.ndarray
  mmse: np.ndarray


class _Batch(NamedTuple):
  """What a named sampler may depend on."""

  key: jax.Array
  size: int
  length: int
  law: config_lib.TrainingLaw
  curve: Curve | None


def _open_path(steps, length):
  """The path of a policy that decides every row: masks, at last inf."""
  path = np.zeros((steps + 1, length), np.float32)
  path[-1] = np.inf
  return path


def _continuous(c, b):
  return Schedule(
    paths.geometric(c.steps, b.length, snr_min=c.snr_min, snr_max=c.snr_max)
  )


def _linear(c, b):
  return Schedule(paths.linear(c.steps, b.length, snr_max=c.snr_max))


def _lognormal(c, b):
  return Schedule(
    paths.lognormal_quantiles(c.steps, b.length, mu=b.law.mu, sigma=b.law.sigma)
  )


def _information(c, b):
  return Schedule(
    paths.information_uniform(
      c.steps, b.length, snr_grid=b.curve.snr_grid, mmse_curve=b.curve.mmse
    )
  )


def _masked(c, b):
  return Schedule(paths.masked(b.key, c.steps, b.size, b.length))


def _remask(kind):
  def schedule(c, b):
    eta = c.eta
    if c.remasks:
      eta = paths.budget_eta(c.steps, c.remasks, kind=kind)
    path = paths.remask(
      b.key,
      c.steps,
      b.size,
      b.length,
      kind=kind,
      eta=eta,
      soft_snr=c.remask_snr,
    )
    return Schedule(path, falls=True)

  return schedule


def _remask_conf(c, b):
  policy = policies.remask_low_confidence(b.key, c.steps, soft_snr=c.remask_snr)
  return Schedule(_open_path(c.steps, b.length), policy)


def _random_order(c, b):
  per_step = math.ceil(b.length / c.steps)
  return Schedule(
    paths.random_order(b.key, b.size, b.length, tokens_per_step=per_step)
  )


def _left_to_right(c, b):
  per_step = math.ceil(b.length / c.steps)
  return Schedule(paths.left_to_right(b.length, tokens_per_step=per_step))


def _blocks(c, b):
  block = min(c.block, b.length)
  steps = max(1, c.steps // math.ceil(b.length / block))
  inner = paths.masked(b.key, steps, b.size, b.length)
  return Schedule(paths.blocks(b.length, block=block, inner=inner))


def _most_confident(confidence):
  def schedule(c, b):
    policy = policies.most_confident(math.ceil(b.length / c.steps))
    return Schedule(_open_path(c.steps, b.length), policy, confidence)

  return schedule


def _threshold(c, b):
  return Schedule(_open_path(c.steps, b.length), policies.above(c.commit))


def _hybrid(c, b):
  """Continuous rows, one commitment by confidence, then a masked path."""
  first = round(c.continuous_share * c.steps)
  first = min(max(first, 1), c.steps - 1)
  soft = paths.geometric(first, b.length, snr_min=c.snr_min, snr_max=c.snr_max)
  hard = paths.masked(b.key, c.steps - first, b.size, b.length)
  path = paths.concat(soft[:-1], hard)
  return Schedule(path, policies.commit(path, len(soft) - 1, c.commit))


# Name -> (sample section, batch) -> schedule.
_NAMED = {
  "continuous": _continuous,
  "linear": _linear,
  "lognormal": _lognormal,
  "information": _information,
  "masked": _masked,
  "remask_cap": _remask("cap"),
  "remask_rescale": _remask("rescale"),
  "remask_loop": _remask("loop"),
  "remask_forward_backward": _remask("forward_backward"),
  "remask_conf": _remask_conf,
  "random_order": _random_order,
  "left_to_right": _left_to_right,
  "blocks": _blocks,
  "confidence": _most_confident("probability"),
  "entropy": _most_confident("entropy"),
  "threshold": _threshold,
  "hybrid": _hybrid,
}


def names() -> list[str]:
  """Returns what sample.path may be."""
  return sorted(_NAMED)


def check(cfg: config_lib.Config) -> None:
  """Raises a UserError if values of the sample section do not fit its path."""
  c = cfg.sample
  if c.path not in _NAMED:
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


def build(
  cfg: config_lib.Config,
  key: jax.Array,
  batch: int,
  *,
  curve: Curve | None = None,
) -> Schedule:
  """Returns the schedule of B sequences that cfg.sample.path names."""
  check(cfg)
  c, b = cfg.sample, _Batch(key, batch, cfg.data.length, cfg.law, curve)
  return _NAMED[c.path](c, b)


def batch_size(section: config_lib.Sample, mesh: jax.sharding.Mesh) -> int:
  """Returns section.batch_size, rounded up to a multiple of the devices."""
  return -(-section.batch_size // mesh.size) * mesh.size


def sample_batch(
  cfg: config_lib.Config,
  params: dict,
  number: int,
  size: int,
  *,
  prompt_mask_BL: np.ndarray | None = None,
  curve: Curve | None = None,
  **options,
) -> tuple[np.ndarray, int]:
  """Draws one batch along cfg.sample.path.

  Args:
    cfg: the run.
    params: of its network.
    number: of the batch; with sample.seed it determines path and noise.
    size: sequences.
    prompt_mask_BL: true at prompt tokens; None for no prompt.
    curve: for the path "information".
    **options: to `samplers.sample`, such as prompt_BL.

  Returns:
    tokens_BL, int32, on every host, and the network calls.
  """
  c = cfg.sample
  key = jax.random.fold_in(state_lib.stream(c.seed, "sample"), number)
  path_key, key = jax.random.split(key)
  schedule = build(cfg, path_key, size, curve=curve)
  if prompt_mask_BL is None:
    prompt_mask_BL = np.zeros((size, cfg.data.length), bool)
  samples = samplers.sample(
    params,
    key,
    paths.hold(schedule.path, prompt_mask_BL),
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    clean_snr=cfg.clean_snr,
    integrator=c.integrator,
    temperature=c.temperature,
    top_p=c.top_p,
    strict_top_p=c.strict_top_p,
    noise=c.noise,
    policy=schedule.policy,
    confidence=schedule.confidence,
    **options,
  )
  tokens_BL = samples.tokens_BL
  if jax.process_count() > 1:  # other hosts hold the other rows
    tokens_BL = multihost_utils.process_allgather(tokens_BL, tiled=True)
  return np.asarray(tokens_BL), samples.calls


def draw(
  cfg: config_lib.Config,
  params: dict,
  section: config_lib.Sample,
  num: int,
  *,
  mesh: jax.sharding.Mesh | None = None,
  callback: Callable | None = None,
) -> tuple[np.ndarray, int]:
  """Draws samples as a sample section says, on the devices of a mesh if given.

  A callback is called with (row, state) after every row of a batch.

  Returns:
    tokens_NL, int32, and the number of network calls, each over a batch.
  """
  cfg = dataclasses.replace(cfg, sample=section)
  size = section.batch_size
  options: dict = {}
  if callback is not None:
    options = {"rows": 1, "callback": callback}
  if mesh is not None:
    options["sharding"] = sharding_lib.batch_sharding(mesh)
    size = batch_size(section, mesh)
  results = [
    sample_batch(cfg, params, number, size, **options)
    for number in tqdm.trange(-(-num // size), unit="batch", leave=False)
  ]
  tokens, calls = zip(*results)
  return np.concatenate(tokens)[:num], sum(calls)


def load_curve(workdir: str, step: int) -> Curve | None:
  """Returns the mmse curve that was measured on the checkpoint of a step."""
  for name in ("mmse.json", "eval.json"):
    try:
      saved = json.loads((pathlib.Path(workdir) / name).read_text())
      if saved["train_step"] == step:
        return Curve(
          np.asarray(saved["snr_grid"], float), np.asarray(saved["mmse"], float)
        )
    except (OSError, ValueError, KeyError, TypeError):
      continue  # no such file, or no curve in it
  return None


def measure_curve(
  cfg: config_lib.Config,
  workdir: str,
  params: dict,
  step: int,
  held_out: packing.Packed,
) -> Curve:
  """Measures the mmse curve on held-out rows and writes WORKDIR/mmse.json."""
  denoiser, grid = denoiser_lib.make_denoiser(cfg.net), cfg.eval.snr_grid()

  @jax.jit
  def curve(params, key, tokens_BL):
    return likelihood.mmse_curve(
      params, key, tokens_BL, denoiser=denoiser, snr_grid=grid
    )

  count = min(_CURVE_SEQUENCES, len(held_out.tokens_NL))
  size = min(cfg.eval.batch_size, count)
  rows = batches.eval_batches(held_out, size, count // size * size)
  key = state_lib.stream(cfg.seed, "mmse")
  curves = [
    curve(params, jax.random.fold_in(key, i), tokens_BL)
    for i, (tokens_BL, _) in enumerate(rows)
  ]
  mmse = np.mean(curves, axis=0, dtype=np.float64)
  if jax.process_index() == 0:
    workdir_lib.write_json(
      workdir,
      "mmse.json",
      {"train_step": step, "snr_grid": grid.tolist(), "mmse": mmse.tolist()},
    )
    logging.info("measured the mmse curve of step %d", step)
  return Curve(grid, np.asarray(mmse))
