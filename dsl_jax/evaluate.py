"""Evaluation: bounds on the likelihood of held-out text, with their errors."""

import dataclasses
import functools
import json
import math
import os
import pathlib

import jax
import numpy as np
import tqdm

from dsl_jax import inputs, likelihood
from dsl_jax.core import paths
from dsl_jax.data import batches, ngrams
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import checkpoint, errors, partition, schema
from dsl_jax.runtime import state as states
from dsl_jax.runtime import workdir as workdirs

_NGRAM_VOCABULARY = 256  # up to here n-grams are a fair, quick yardstick


def evaluate(cfg: schema.Config, workdir: str) -> None:
  """Scores held-out rows with the averaged weights; writes WORKDIR/eval.json.

  Bits per token, each with its standard error over sequences (which includes
  that over noise draws): the masked endpoint bound, the I-MMSE integral up to
  eval.snr_max, and the path bound of the masked sampler of sample.steps calls;
  then the mmse curve, and for small vocabularies n-gram models of order 2 and
  3 fitted to the training rows.

  Args:
    cfg: its eval section says how much.
    workdir: of a trained run.

  Raises:
    errors.UserError: nothing trained, or data that do not fit; found before
      any compilation.
  """
  with errors.user_errors():
    schema.validate(cfg)
    mesh = partition.make_mesh(cfg.mesh)
    train_rows = inputs.open_split(cfg, "train")
    held_out = inputs.open_split(cfg, "validation")
    inputs.check_batch(
      "eval.batch_size", cfg.eval.batch_size, held_out, mesh.size
    )
    workdirs.compare(workdir, cfg, train_rows.manifest["data_sha256"])
    whole = partition.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=whole)

  scores = _scores(cfg, mesh)
  nats, curves = {}, []
  c, key = cfg.eval, states.stream(cfg.seed, "eval")
  parts = list(batches.eval_batches(held_out, c.batch_size, c.sequences))
  for i, (tokens, mask) in enumerate(tqdm.tqdm(parts, unit="batch")):
    rows = mask.any(axis=1)
    tokens_BL = partition.put_rows(mesh, tokens)
    found = scores(params, jax.random.fold_in(key, i), tokens_BL)
    found = jax.device_get(found)
    curves.append((rows.sum(), found.pop("mmse")))
    for name, nats_B in found.items():
      nats.setdefault(name, []).append(nats_B[rows])

  weights, curves = zip(*curves)
  bits = {name: _bits(np.concatenate(x), cfg) for name, x in nats.items()}
  if cfg.net.vocab_size <= _NGRAM_VOCABULARY:
    for order in (2, 3):
      value = ngrams.bits(
        train_rows.tokens_NL, held_out.tokens_NL, cfg.net.vocab_size, order
      )
      bits[f"ngram_{order}"] = {"bits_per_token": float(value)}
  result = {
    "train_step": step,
    "split": "validation",
    "sequences": int(sum(weights)),
    "length": cfg.data.length,
    "seed": cfg.seed,
    "settings": dataclasses.asdict(c) | {"sample_steps": cfg.sample.steps},
    "bounds": bits,
    "snr_grid": _grid(c).tolist(),
    "mmse": np.average(curves, axis=0, weights=weights).tolist(),
  }
  if jax.process_index() == 0:
    target = pathlib.Path(workdir) / "eval.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2))
    os.replace(temporary, target)
    print(table(bits))


def table(bounds: dict) -> str:
  """Returns the bounds as lines of text, bits and perplexity per token."""
  lines = [f"{'bound':<22}{'bits/token':>12}{'+-':>9}{'perplexity':>13}"]
  for name, row in bounds.items():
    bits, error = row["bits_per_token"], row.get("stderr", math.nan)
    shown = "" if math.isnan(error) else f"{error:.4f}"
    lines.append(f"{name:<22}{bits:>12.4f}{shown:>9}{2**bits:>13.5g}")
  return "\n".join(lines)


def _scores(cfg, mesh):
  """Returns the jitted (params, key, tokens) -> nats_B of every bound, mmse."""
  net = dataclasses.replace(cfg.net, dropout=0.0)
  denoiser, c = denoisers.make_denoiser(net), cfg.eval
  steps, length = cfg.sample.steps, cfg.data.length

  @functools.partial(jax.jit, out_shardings=partition.replicated(mesh))
  def scores(params, key, tokens_BL):
    shared = {"denoiser": denoiser}
    clean = shared | {"clean_snr": cfg.clean_snr}
    grid = shared | {"snr_grid": _grid(c)}
    keys = jax.random.split(key, 5)
    path = paths.masked(keys[0], steps, len(tokens_BL), length)
    masked = likelihood.path_nats(params, keys[1], tokens_BL, path, **clean)
    return {
      "endpoint": likelihood.endpoint_nats(
        params, keys[2], tokens_BL, draws=c.draws, **clean
      )[0],
      "integral": likelihood.integral_nats(
        params, keys[3], tokens_BL, draws=c.draws, **grid
      )[0],
      f"masked_{steps}_steps": masked.sum(axis=-1),
      "mmse": likelihood.mmse_curve(params, keys[4], tokens_BL, **grid),
    }

  return scores


def _grid(c):
  return np.geomspace(c.snr_min, c.snr_max, c.snr_points)


def _bits(nats_N, cfg):
  """Mean and standard error over sequences, in bits per token."""
  bits = nats_N / (cfg.data.length * math.log(2))
  error = bits.std(ddof=1) / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
  return {"bits_per_token": float(bits.mean()), "stderr": float(error)}
