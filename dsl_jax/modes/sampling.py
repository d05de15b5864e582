"""Batches of samples along the path that a config names."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from dsl_jax import samplers
from dsl_jax.core import paths
from dsl_jax.modes import named_samplers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib


def batch_size(section: config_lib.Sample, mesh: jax.sharding.Mesh) -> int:
  """Sequences of a batch: section.batch_size, or what devices can share."""
  return -(-section.batch_size // mesh.size) * mesh.size


def batch(
  cfg: config_lib.Config,
  params: dict,
  number: int,
  size: int,
  *,
  known_BL: np.ndarray | None = None,
  curve: named_samplers.Curve | None = None,
  **extra,
) -> tuple[np.ndarray, int]:
  """Draws one batch along cfg.sample.path.

  Args:
    cfg: the run.
    params: of its network.
    number: of the batch; with sample.seed it fixes path and noise.
    size: sequences.
    known_BL: where prompt tokens stand; None for none.
    curve: for the path "information".
    **extra: to `samplers.sample`.

  Returns:
    tokens_BL, int32, on every host, and the network calls.
  """
  c = cfg.sample
  key = jax.random.fold_in(state_lib.stream(c.seed, "sample"), number)
  path_key, key = jax.random.split(key)
  made = named_samplers.build(cfg, path_key, size, curve=curve)
  if known_BL is None:
    known_BL = np.zeros((size, cfg.data.length), bool)
  found = samplers.sample(
    params,
    key,
    paths.hold(made.path, known_BL),
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    clean_snr=cfg.clean_snr,
    integrator=c.integrator,
    temperature=c.temperature,
    top_p=c.top_p,
    strict_top_p=c.strict_top_p,
    noise=c.noise,
    policy=made.policy,
    confidence=made.confidence,
    **extra,
  )
  tokens_BL = found.tokens_BL
  if jax.process_count() > 1:  # other hosts hold the other rows
    tokens_BL = multihost_utils.process_allgather(tokens_BL, tiled=True)
  return np.asarray(tokens_BL), found.calls


def draw(
  cfg: config_lib.Config,
  params: dict,
  section: config_lib.Sample,
  num: int,
  *,
  mesh: jax.sharding.Mesh | None = None,
  callback: Callable | None = None,
) -> tuple[np.ndarray, int]:
  """Draws samples along the path of a sample section.

  Args:
    cfg: the run.
    params: of its network.
    section: path, steps, batch_size, seed and settings of the sampler.
    num: samples.
    mesh: devices to spread the batches on; None for the whole of each.
    callback: called with (row, state) after every row of a batch; then rows
      that move nothing are run too.

  Returns:
    tokens_NL, int32, and the number of network calls, each over a batch.
  """
  watch = {"rows": 1, "callback": callback} if callback else {}
  cfg, size = dataclasses.replace(cfg, sample=section), section.batch_size
  if mesh is not None:
    watch["sharding"] = sharding_lib.rows(mesh)
    size = batch_size(section, mesh)
  found = [
    batch(cfg, params, number, size, **watch)
    for number in tqdm.trange(-(-num // size), unit="batch", leave=False)
  ]
  tokens, calls = zip(*found)
  return np.concatenate(tokens)[:num], sum(calls)
