"""Samples of a run for measurements: many batches along one named path."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import tqdm

from dsl_jax import samplers
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import schedules, schema
from dsl_jax.runtime import state as states


def draw(
  cfg: schema.Config,
  params: dict,
  section: schema.Sample,
  num: int,
  *,
  callback: Callable | None = None,
) -> tuple[np.ndarray, int]:
  """Draws samples along the path of a sample section.

  Args:
    cfg: the run.
    params: of its network.
    section: path, steps, batch_size, seed and settings of the sampler.
    num: samples.
    callback: called with (row, state) after every row of a batch; then rows
      that move nothing are run too.

  Returns:
    tokens_NL, int32, and the number of network calls, each over a batch.
  """
  denoiser = denoisers.make_denoiser(dataclasses.replace(cfg.net, dropout=0.0))
  watch = {"rows": 1, "callback": callback} if callback else {}
  key, B = states.stream(section.seed, "sample"), section.batch_size
  cfg = dataclasses.replace(cfg, sample=section)
  tokens, calls = [], 0
  for batch in tqdm.trange(-(-num // B), unit="batch", leave=False):
    path_key, draw_key = jax.random.split(jax.random.fold_in(key, batch))
    made = schedules.build(cfg, path_key, B)
    path = np.asarray(made.path)
    if path.ndim == 2:
      path = np.repeat(path[:, None], B, axis=1)
    found = samplers.sample(
      params,
      draw_key,
      path,
      denoiser=denoiser,
      clean_snr=cfg.clean_snr,
      integrator=section.integrator,
      temperature=section.temperature,
      top_p=section.top_p,
      strict_top_p=section.strict_top_p,
      noise=section.noise,
      policy=made.policy,
      confidence=made.confidence,
      **watch,
    )
    calls += found.calls
    tokens.append(np.asarray(found.tokens_BL))
  return np.concatenate(tokens)[:num], calls
