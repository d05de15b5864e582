"""Samplers by name: from the sample section of a config to tokens.

A new name is an entry in `_PATHS`, and one in `_POLICIES` if it has a policy.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import tqdm
from absl import logging
from jax.experimental import multihost_utils

from dsl_jax import samplers
from dsl_jax.core import paths
from dsl_jax.data import prepare, prompts, tokenizers
from dsl_jax.modes import trained
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.samplers import policies

_CURVE_SEQUENCES = 64  # held-out, on which an mmse curve is measured


class Curve(NamedTuple):
  """A measured mmse curve, for the path "information"."""

  snr_grid: np.ndarray
  mmse: np.ndarray


class _Batch(NamedTuple):
  """What a path may depend on, besides the sample section."""

  key: jax.Array
  size: int
  length: int
  per_step: int  # tokens to commit in every step
  law: config_lib.TrainingLaw
  curve: Curve | None


def _by_policy(c, b):
  """The path of a policy that decides every step: masks, at last inf."""
  path = np.zeros((c.steps + 1, b.length), np.float32)
  path[-1] = np.inf
  return path


def _remask(c, b):
  kind = c.path.removeprefix("remask_")
  eta = paths.budget_eta(c.steps, c.remasks, kind=kind) if c.remasks else c.eta
  return paths.remask(
    b.key, c.steps, b.size, b.length, kind=kind, eta=eta, soft_snr=c.remask_snr
  )


def _blocks(c, b):
  block = min(c.block, b.length)
  steps = max(1, c.steps // math.ceil(b.length / block))
  inner = paths.masked(b.key, steps, b.size, b.length)
  return paths.blocks(b.length, block=block, inner=inner)


def _commit_step(c):
  return min(max(round(c.continuous_share * c.steps), 1), c.steps - 1)


def _hybrid(c, b):
  """Continuous steps, one commitment by confidence, then a masked path.

  Tokens are committed at the upper quartile of the training law. Later all are
  confident, whether or not they fit each other (docs/study.md).
  """
  soft_steps = _commit_step(c)
  high = min(c.snr_max, math.exp(b.law.mu + 0.67 * b.law.sigma))
  soft = paths.geometric(
    soft_steps, b.length, snr_min=min(c.snr_min, high), snr_max=high
  )
  hard = paths.masked(b.key, c.steps - soft_steps, b.size, b.length)
  return paths.concat(soft[:-1], hard)


# Name -> (sample section, batch) -> path.
_PATHS: dict[str, Callable] = {
  "continuous": lambda c, b: paths.geometric(
    c.steps, b.length, snr_min=c.snr_min, snr_max=c.snr_max
  ),
  "linear": lambda c, b: paths.linear(c.steps, b.length, snr_max=c.snr_max),
  "lognormal": lambda c, b: paths.lognormal_quantiles(
    c.steps, b.length, mu=b.law.mu, sigma=b.law.sigma
  ),
  "information": lambda c, b: paths.information_uniform(
    c.steps, b.length, snr_grid=b.curve.snr_grid, mmse_curve=b.curve.mmse
  ),
  "masked": lambda c, b: paths.masked(b.key, c.steps, b.size, b.length),
  "remask_cap": _remask,
  "remask_rescale": _remask,
  "remask_loop": _remask,
  "remask_forward_backward": _remask,
  "remask_conf": _by_policy,
  "random_order": lambda c, b: paths.random_order(
    b.key, b.size, b.length, tokens_per_step=b.per_step
  ),
  "left_to_right": lambda c, b: paths.left_to_right(
    b.length, tokens_per_step=b.per_step
  ),
  "blocks": _blocks,
  "confidence": _by_policy,
  "entropy": _by_policy,
  "threshold": _by_policy,
  "hybrid": _hybrid,
}
# Name -> (sample section, batch, path) -> policy, where a path has one.
_POLICIES: dict[str, Callable] = {
  "remask_conf": lambda c, b, path: policies.remask_low_confidence(
    b.key, c.steps, soft_snr=c.remask_snr
  ),
  "confidence": lambda c, b, path: policies.most_confident(b.per_step),
  "entropy": lambda c, b, path: policies.most_confident(b.per_step),
  "threshold": lambda c, b, path: policies.above(c.commit),
  "hybrid": lambda c, b, path: policies.commit(path, _commit_step(c), c.commit),
}
# What policies see of a candidate; ReMDM keeps it after its nucleus.
_CONFIDENCES = {"entropy": "entropy", "remask_conf": "truncated"}


# Paths that commit an equal number of tokens in every step, at best one.
_BY_TOKENS = ("random_order", "left_to_right", "confidence", "entropy")


def names() -> list[str]:
  """Returns what sample.path may be."""
  return sorted(_PATHS)


def may_fall(name: str) -> bool:
  """Returns whether tokens may lose SNR along a path."""
  return name in _POLICIES or name.startswith("remask")


def check(cfg: config_lib.Config) -> None:
  """Raises a UserError if values of the sample section do not fit its path."""
  c, mistake = cfg.sample, ""
  if c.path not in _PATHS:
    hint = errors.nearest(c.path, _PATHS, whole=True)
    mistake = f"sample.path is {c.path!r}{hint}"
  elif c.path == "hybrid" and c.steps < 2:
    mistake = f"sample.steps is {c.steps}; the hybrid path needs at least 2."
  elif c.path == "lognormal" and not cfg.law.sigma > 0:
    mistake = (
      f"law.sigma is {cfg.law.sigma}; the lognormal path needs one above 0."
    )
  elif c.snr_min > c.snr_max:
    mistake = (
      f"sample.snr_min is {c.snr_min}; it must be at most sample.snr_max, "
      f"which is {c.snr_max}."
    )
  elif c.remasks and c.path not in ("remask_cap", "remask_loop"):
    mistake = (
      f"sample.remasks is {c.remasks}; a budget is defined for remask_cap and "
      "remask_loop, so set it to 0 or choose one of them."
    )
  if mistake:
    raise errors.UserError(mistake)


def build(
  cfg: config_lib.Config,
  key: jax.Array,
  batch: int,
  *,
  curve: Curve | None = None,
) -> tuple[np.ndarray, policies.Policy | Callable | None]:
  """Returns the path cfg.sample.path of B sequences, and its policy if any."""
  check(cfg)
  c, length = cfg.sample, cfg.data.length
  per_step = math.ceil(length / c.steps)
  if per_step > 1 and c.path in _BY_TOKENS:
    note = "%s commits %d tokens in a step; one by one takes sample.steps=%d"
    logging.log_first_n(logging.WARNING, note, 1, c.path, per_step, length)
  b = _Batch(key, batch, length, per_step, cfg.law, curve)
  path = _PATHS[c.path](c, b)
  policy = _POLICIES[c.path](c, b, path) if c.path in _POLICIES else None
  return path, policy


def configure(cfg: config_lib.Config, keys: Mapping) -> config_lib.Config:
  """Returns a config with other keys of its sample section, checked."""
  values = dataclasses.asdict(cfg)
  values["sample"] |= keys
  cfg = config_lib.from_config_dict(values)
  check(cfg)
  return cfg


def parse_prompts(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer
) -> list[prompts.Prompt]:
  """Returns one prompt for every sample, in order."""
  c = cfg.sample
  if c.prompt and c.prompts:
    raise errors.UserError(
      f"sample.prompt is {c.prompt!r} and sample.prompts {c.prompts!r}; set "
      "one of them."
    )
  lines = [("sample.prompt", c.prompt)]
  if c.prompts:
    lines = prompts.load_lines(c.prompts)
  requests = []
  for name, text in lines:
    prompt = prompts.parse(text, tokenizer, cfg.data, name=name)
    requests += [prompt] * c.num
  return requests


def batch_size(
  cfg: config_lib.Config, num: int, mesh: jax.sharding.Mesh
) -> int:
  """Returns the size of batches of `num` samples, a multiple of the devices."""
  return -(-min(num, cfg.sample.batch_size) // mesh.size) * mesh.size


def sample_batch(
  cfg: config_lib.Config,
  params: dict,
  number: int,
  size: int,
  *,
  prompt_mask_BL: np.ndarray | None = None,
  soft_BL: np.ndarray | None = None,
  curve: Curve | None = None,
  **options,
) -> tuple[np.ndarray, int]:
  """Draws one batch along cfg.sample.path, with options of `samplers.sample`.

  The number of the batch and sample.seed determine path and noise. With
  `soft_BL` all tokens are given, and fall to these SNRs, where finite, before
  they follow the path from there.

  Returns tokens_BL, int32, on every host, and the number of network calls.
  """
  c = cfg.sample
  key = jax.random.fold_in(state_lib.stream(c.seed, "sample"), number)
  path_key, key = jax.random.split(key)
  path, policy = build(cfg, path_key, size, curve=curve)
  if prompt_mask_BL is None:
    prompt_mask_BL = np.zeros((size, cfg.data.length), bool)
  path = paths.hold(path, prompt_mask_BL)
  if soft_BL is not None:
    if policy is not None:
      raise errors.UserError(
        f"the sampler {c.path!r} is a policy, which cannot start from finite "
        "SNRs; remask to 0, or choose another sampler, such as 'masked'."
      )
    path = np.maximum(path, soft_BL)
    path = paths.concat(np.full((1, *path.shape[1:]), np.inf), path)
  how = "integrator", "temperature", "top_p", "strict_top_p", "noise"
  samples = samplers.sample(
    params,
    key,
    path,
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    clean_snr=cfg.clean_snr,
    policy=policy,
    confidence=_CONFIDENCES.get(c.path, "probability"),
    **{name: getattr(c, name) for name in how},
    **options,
  )
  tokens_BL = samples.tokens_BL
  if jax.process_count() > 1:  # other hosts hold the other sequences
    tokens_BL = multihost_utils.process_allgather(tokens_BL, tiled=True)
  return np.asarray(tokens_BL), samples.calls


def measure_curve(cfg: config_lib.Config, params: dict) -> Curve:
  """Measures the mmse curve on the first rows of held-out text."""
  with errors.user_errors():
    packed = prepare.open_rows(cfg, "validation")
  rows = packed._replace(tokens_NL=packed.tokens_NL[:_CURVE_SEQUENCES])
  mmse_NT = trained.Run(cfg, params, rows).mmse("mmse")
  return Curve(cfg.eval.snr_grid(), mmse_NT.mean(axis=0))


def draw(
  cfg: config_lib.Config,
  params: dict,
  requests: list[prompts.Prompt],
  callback: Callable | None = None,
) -> Iterator[tuple[np.ndarray, int]]:
  """Draws a sample for every request along cfg.sample.path, in batches.

  A callback of `samplers.sample` sees every step of the first batch.

  Yields tokens_BL, int32, on every host, and the number of network calls.
  """
  c, mesh = cfg.sample, sharding_lib.make_mesh(cfg.mesh)
  curve = measure_curve(cfg, params) if c.path == "information" else None
  options: dict = {"rows": 1, "callback": callback} if callback else {}
  size = batch_size(cfg, len(requests), mesh)
  bar = tqdm.tqdm(
    range(0, len(requests), size),
    "compiling",
    unit="batch",
    leave=False,
    disable=jax.process_index() > 0,
  )
  for number, first in enumerate(bar):
    batch = requests[first : first + size]
    # Batches of one size share a program, so the last one is filled up.
    filled = batch + batch[:1] * (size - len(batch))
    tokens_BL, calls = sample_batch(
      cfg,
      params,
      number,
      size,
      prompt_mask_BL=np.stack([prompt.prompt_mask_L for prompt in filled]),
      prompt_BL=np.stack([prompt.tokens_L for prompt in filled]),
      curve=curve,
      sharding=sharding_lib.batch_sharding(mesh),
      **options,
    )
    options = {}
    bar.set_description("sampling")
    yield tokens_BL[: len(batch)], calls
