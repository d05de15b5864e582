"""The analyses of a run: each returns its numbers and a plot as PNG.

`run` is (name, probe) -> the probe's results for all rows, with
probe(key, tokens_BL) -> a tree of arrays [B, ...].
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from dsl_jax import likelihood, probes
from dsl_jax.modes import plots, sampling
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.quality import calibration as calibration_lib
from dsl_jax.quality import changes as changes_lib
from dsl_jax.quality import estimate

_RATES = (0.05, 0.1, 0.2)  # of tokens replaced, repair
_PATHS = ("masked", "remask_cap", "remask_loop")  # whose changes are counted


def calibration(cfg, params, run):
  """Compares confidence and accuracy on hidden tokens."""
  probe = functools.partial(
    probes.hidden_predictions,
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    clean_snr=cfg.clean_snr,
  )
  confidence, correct, hidden = run(
    "calibration", lambda key, tokens: probe(params, key, tokens)
  )

  def of(rows):
    where = hidden[rows]
    p = np.clip(confidence[rows][where], 0, 1)
    return calibration_lib.reliability(p, correct[rows][where])

  ece = estimate.jackknife(lambda rows: of(rows).ece, len(hidden))
  found = of(slice(None))
  table = {
    "ece": ece.value,
    "ece_stderr": ece.stderr,
    "confidence": found.confidence_C.tolist(),
    "accuracy": found.accuracy_C.tolist(),
    "count": found.count_C.tolist(),
  }
  return table, plots.reliability(found)


def repair(cfg, params, run):
  """Replaces tokens by random ones and reads the text once, at SNRs."""
  c = cfg.sample
  snrs = [*np.geomspace(c.snr_min, c.snr_max, 6)[2:].tolist(), math.inf]
  probe = functools.partial(
    probes.repair,
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    clean_snr=cfg.clean_snr,
  )
  pairs = [(rate, snr) for rate in _RATES for snr in snrs]
  rate_P, snr_P = np.float32(pairs).T

  def all_pairs(key, tokens):
    keys = jax.random.split(key, len(pairs))
    one = lambda x: probe(params, x[0], tokens, rate=x[1], snr=x[2])
    counts = jax.lax.map(one, (keys, rate_P, snr_P))
    return {name: count_PB.T for name, count_PB in counts.items()}

  counts = run("repair", all_pairs)
  table = []
  for i, (rate, snr) in enumerate(pairs):
    n = {name: count_NP[:, i] for name, count_NP in counts.items()}
    row = {"rate": rate, "snr": "clean" if math.isinf(snr) else round(snr, 2)}
    for key, total in (("repaired", "wrong"), ("kept", "clean")):
      some = n[total].sum() > 0
      found = estimate.ratio(n[key], n[total]) if some else (math.nan,) * 2
      row[key], row[f"{key}_stderr"] = found
    table.append(row)
  lines = {}
  for key in ("repaired", "kept"):
    rows = [row for row in table if row["rate"] == _RATES[1]][:-1]
    lines[key] = [r[key] for r in rows], [r[f"{key}_stderr"] for r in rows]
  title = f"One pass over text with {_RATES[1]:.0%} of its tokens replaced"
  x = np.array(snrs[:-1])
  image = plots.curves(
    title, "SNR at which it is seen", "share", x, lines, log_x=True
  )
  return table, image


def information(cfg, params, run):
  """Measures the mmse curve and the information it adds up to."""
  grid = cfg.eval.snr_grid()
  probe = functools.partial(
    likelihood.mmse_curve,
    denoiser=denoiser_lib.make_denoiser(cfg.net),
    snr_grid=grid,
  )

  def one(key, tokens):  # a curve of every row, for its error
    keys = jax.random.split(key, len(tokens))
    return jax.vmap(lambda k, row: probe(params, k, row[None]))(keys, tokens)

  mmse_NT = run("information", one)
  mmse, error = mmse_NT.mean(axis=0), _error(mmse_NT)
  rate = grid * mmse  # per log SNR: the grid is geometric
  steps = np.diff(np.log(grid)) * (rate[1:] + rate[:-1]) / 2
  steps = np.append(rate[0], steps)
  bits = 0.5 * np.cumsum(steps) / math.log(2)
  table = {
    "snr": grid.tolist(),
    "mmse": mmse.tolist(),
    "mmse_stderr": error.tolist(),
    "bits_per_token": bits.tolist(),
  }
  lines = {"mmse": (mmse, error), "information, bits": (bits, None)}
  title = "What is unknown of a token, and the information gained"
  image = plots.curves(title, "SNR", "per token", grid, lines, log_x=True)
  return table, image


def changes(cfg, params):
  """Counts rewrites and remasks per token along paths, one batch each."""
  table, lines = {}, {}
  for path in dict.fromkeys((cfg.sample.path, *_PATHS)):
    section = dataclasses.replace(cfg.sample, path=path)
    watched = changes_lib.Changes()
    sampling.draw(
      cfg,
      params,
      section,
      section.batch_size,
      callback=lambda row, state, watched=watched: watched.add(
        state.tokens_BL, state.snr_BL
      ),
    )
    length_B = np.full(section.batch_size, cfg.data.length)
    table[path] = {"steps": section.steps, "samples": section.batch_size}
    for key, counts in (
      ("rewrites", watched.rewrites_BL),
      ("remasks", watched.remasks_BL),
    ):
      found = estimate.ratio(counts.sum(axis=1), length_B)
      table[path] |= {key: found.value, f"{key}_stderr": found.stderr}
      table[path][f"{key}_by_position"] = counts.mean(axis=0).tolist()
    lines[path] = table[path]["rewrites_by_position"], None
  x = np.arange(cfg.data.length)
  title = "Committed tokens later replaced by others"
  return table, plots.curves(title, "position", "rewrites", x, lines)


def invariance(cfg, params, other, other_params, run):
  """Measures what being told log SNR is worth, on the same noise."""
  grid = cfg.eval.snr_grid()

  def both(key, tokens):
    losses = [
      probes.loss_by_snr(
        p,
        key,
        tokens,
        denoiser=denoiser_lib.make_denoiser(which.net),
        snr_grid=grid,
      ).T
      for which, p in ((cfg, params), (other, other_params))
    ]
    return losses if other.net.snr_condition else losses[::-1]

  without_NT, given_NT = (x / math.log(2) for x in run("invariance", both))
  gain_NT = without_NT - given_NT
  rows = gain_NT.mean(axis=1)
  table = {
    "snr": grid.tolist(),
    "bits_without": without_NT.mean(axis=0).tolist(),
    "bits_given": given_NT.mean(axis=0).tolist(),
    "gain_by_snr": gain_NT.mean(axis=0).tolist(),
    "gain_by_snr_stderr": _error(gain_NT).tolist(),
    "gain": float(rows.mean()),
    "gain_stderr": float(_error(rows)),
  }
  lines = {"gain": (gain_NT.mean(axis=0), _error(gain_NT))}
  title = "What being told log SNR is worth"
  image = plots.curves(title, "SNR", "bits a token", grid, lines, log_x=True)
  return table, image


def _error(x_N):
  """Standard error of the mean over the first axis."""
  if len(x_N) < 2:
    return np.full(x_N.shape[1:], np.nan)
  return x_N.std(axis=0, ddof=1) / math.sqrt(len(x_N))
