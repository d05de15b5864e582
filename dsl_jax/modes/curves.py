"""The mmse curve of a checkpoint, kept beside it: WORKDIR/mmse.json."""

import json
import pathlib

import jax
import numpy as np
from absl import logging

from dsl_jax import likelihood
from dsl_jax.data import batches
from dsl_jax.modes import named_samplers
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

_SEQUENCES = 64  # held-out rows a curve is measured on


def load(workdir: str, step: int) -> named_samplers.Curve | None:
  """Returns the curve of a checkpoint that was measured before.

  Args:
    workdir: of the run.
    step: of the checkpoint; curves of other steps are passed over.
  """
  for name in ("mmse.json", "eval.json"):
    try:
      found = json.loads((pathlib.Path(workdir) / name).read_text())
      if found["train_step"] == step:
        return named_samplers.Curve(
          np.asarray(found["snr_grid"], float), np.asarray(found["mmse"], float)
        )
    except (OSError, ValueError, KeyError, TypeError):
      continue  # not there, or no curve
  return None


def measure(
  cfg: config_lib.Config, workdir: str, params, step: int, held_out
) -> named_samplers.Curve:
  """Measures the curve on held-out rows and keeps it.

  Args:
    cfg: its eval section gives the grid.
    workdir: of the run.
    params: of the checkpoint.
    step: of the checkpoint.
    held_out: packed rows, from `inputs.open_split`.

  Returns:
    The curve.
  """
  c = cfg.eval
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  grid = c.snr_grid()
  curve = jax.jit(
    lambda params, key, tokens_BL: likelihood.mmse_curve(
      params, key, tokens_BL, denoiser=denoiser, snr_grid=grid
    )
  )
  count = min(_SEQUENCES, len(held_out.tokens_NL))
  size = min(c.batch_size, count)
  parts = batches.eval_batches(held_out, size, count // size * size)
  key = state_lib.stream(cfg.seed, "mmse")
  curves = [
    curve(params, jax.random.fold_in(key, i), tokens)
    for i, (tokens, _) in enumerate(parts)
  ]
  mmse = np.mean(curves, axis=0, dtype=np.float64)
  found = {"train_step": step, "snr_grid": grid.tolist(), "mmse": mmse.tolist()}
  if jax.process_index() == 0:
    workdir_lib.write_json(workdir, "mmse.json", found)
    logging.info("measured the mmse curve of step %d", step)
  return named_samplers.Curve(grid, mmse)
