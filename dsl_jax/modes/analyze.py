"""Analyses of a trained run: calibration, repair, information, changes, SNR."""

import dataclasses
import itertools
import math

import jax
import numpy as np

from dsl_jax import probes
from dsl_jax.data import prepare
from dsl_jax.modes import named_samplers, pages, trained
from dsl_jax.quality import estimate
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage
from dsl_jax.runtime import workdir as workdir_lib

_RATES = (0.05, 0.1, 0.2)  # of tokens replaced, for repair
_PATHS = ("masked", "remask_cap", "remask_loop")  # whose changes are counted
_PLOTS = {  # plot: analysis, column, title
  "mmse": ("information", "mmse", "Error per token"),
  "information": ("information", "bits_per_token", "Information on the text"),
  "invariance": ("invariance", "gain_by_snr", "Bits gained by seeing log SNR"),
}


class Changes:
  """A callback of the sampler that counts rewrites and remasks.

  A rewrite commits another token than was committed before at its position.
  """

  rewrites_BL: np.ndarray | int = 0
  remasks_BL: np.ndarray | int = 0
  _committed_BL: np.ndarray | bool = False
  _last_BL: np.ndarray | int = -1  # token committed last

  def __call__(self, step: int, state) -> None:
    tokens_BL = np.asarray(state.tokens_BL)
    committed_BL = np.isinf(np.asarray(state.snr_BL))
    differs_BL = (self._last_BL >= 0) & (tokens_BL != self._last_BL)
    self.rewrites_BL = self.rewrites_BL + (committed_BL & differs_BL)
    self.remasks_BL = self.remasks_BL + (self._committed_BL & ~committed_BL)
    self._last_BL = np.where(committed_BL, tokens_BL, self._last_BL)
    self._committed_BL = committed_BL


def _watched_sections(cfg):
  """Sample sections of the paths whose changes are counted."""
  for path in dict.fromkeys((cfg.sample.path, *_PATHS)):
    if path != "information":  # needs a curve, and never remasks
      # Only paths that remask have a budget.
      remasks = 0.0 if path == "masked" else cfg.sample.remasks
      yield dataclasses.replace(cfg.sample, path=path, remasks=remasks)


def _mean(name, x_NT):
  """Entries of a mean over rows and its error, NaN for a single row."""
  stderr_T = x_NT.std(axis=0, ddof=1) / math.sqrt(len(x_NT))
  return {name: x_NT.mean(axis=0).tolist(), f"{name}_stderr": stderr_T.tolist()}


def calibration(run: trained.Run) -> dict:
  """Compares confidence and accuracy on hidden tokens."""
  confidence, correct, hidden = run.over_rows(
    "calibration", probes.hidden_predictions, clean_snr=run.cfg.clean_snr
  )

  def diagram(rows):
    where = hidden[rows]
    p = np.clip(confidence[rows][where], 0, 1)
    return estimate.reliability(p, correct[rows][where])

  ece = estimate.jackknife(lambda rows: diagram(rows)["ece"], len(hidden))
  return diagram(slice(None)) | {"ece_stderr": ece.stderr}


def repair(run: trained.Run) -> list[dict]:
  """Replaces tokens at random and predicts all in one call, at several SNRs."""
  c = run.cfg.sample
  snrs = [*np.geomspace(c.snr_min, c.snr_max, 6)[2:].tolist(), math.inf]
  pairs = list(itertools.product(_RATES, snrs))
  rate_P, snr_P = np.array(pairs, np.float32).T

  def all_pairs(params, key, tokens_BL, **options):
    def one(pair):
      key, rate, snr = pair
      return probes.repair(
        params, key, tokens_BL, rate=rate, snr=snr, **options
      )

    keys = jax.random.split(key, len(pairs))
    counts = jax.lax.map(one, (keys, rate_P, snr_P))
    return jax.tree.map(lambda x: x.T, counts)  # [P, B] to [B, P]

  counts = run.over_rows("repair", all_pairs, clean_snr=run.cfg.clean_snr)
  table = []
  for i, (rate, snr) in enumerate(pairs):
    entry = {"rate": rate, "snr": "clean" if math.isinf(snr) else round(snr, 2)}
    for name, of in (("repaired", "wrong"), ("kept", "clean")):
      ratio = estimate.ratio(counts[name][:, i], counts[of][:, i])
      entry |= {name: ratio.value, f"{name}_stderr": ratio.stderr}
    table.append(entry)
  return table


def information(run: trained.Run) -> dict:
  """Measures the mmse curve and its integral, the information."""
  grid = run.cfg.eval.snr_grid()
  mmse_NT = run.mmse("information")
  mmse = _mean("mmse", mmse_NT)
  rate = grid * mmse["mmse"]  # per log SNR: the grid is geometric
  steps = np.diff(np.log(grid)) * (rate[1:] + rate[:-1]) / 2
  bits = 0.5 * np.cumsum([rate[0], *steps]) / math.log(2)
  return {"snr": grid.tolist(), **mmse, "bits_per_token": bits.tolist()}


def changes(run: trained.Run) -> dict:
  """Counts rewrites and remasks per token along paths, one batch each."""
  numbers = {}
  for section in _watched_sections(run.cfg):
    counter, size = Changes(), section.batch_size
    cfg = dataclasses.replace(run.cfg, sample=section)
    named_samplers.sample_batch(
      cfg, run.params, 0, size, rows=1, callback=counter
    )
    entry = {"steps": section.steps, "samples": size}
    for name in ("rewrites", "remasks"):
      count_BL = getattr(counter, f"{name}_BL")
      entry |= _mean(name, count_BL.mean(axis=1))
      entry[f"{name}_by_position"] = count_BL.mean(axis=0).tolist()
    numbers[section.path] = entry
  return numbers


def invariance(run: trained.Run, control: trained.Run) -> dict:
  """Measures the gain of a network that sees log SNR, on the same noise."""
  grid = run.cfg.eval.snr_grid()

  def bits(params, key, tokens_BL, **options):
    nats_TB = probes.loss_by_snr(params, key, tokens_BL, **options)
    return nats_TB.T / math.log(2)

  size_N = run.rows.count_scored()
  without_NT, given_NT = (
    estimate.per_token(one.over_rows("invariance", bits, snr_grid=grid), size_N)
    for one in sorted((run, control), key=lambda x: x.cfg.net.snr_condition)
  )
  gain_NT, numbers = without_NT - given_NT, {"snr": grid.tolist()}
  numbers |= _mean("bits_without", without_NT) | _mean("bits_given", given_NT)
  numbers |= _mean("gain_by_snr", gain_NT)
  return numbers | _mean("gain", gain_NT.mean(axis=1))


def _open_control(run):
  """The run eval.control, which differs in whether it sees log SNR."""
  cfg = run.cfg
  other = workdir_lib.stored(cfg.eval.control).config
  actual = other.net.vocab_size, other.data.length, other.net.snr_condition
  needed = cfg.net.vocab_size, cfg.data.length, not cfg.net.snr_condition
  if actual != needed:
    raise errors.UserError(
      f"eval.control is {cfg.eval.control!r}; name a run whose net.vocab_size, "
      f"data.length and net.snr_condition are {needed}, not {actual}."
    )
  other = dataclasses.replace(other, mesh=cfg.mesh)
  params, _ = trained.open_weights(other, cfg.eval.control)
  # The seed stays that of the run: both see the same noise.
  cfg = dataclasses.replace(cfg, net=other.net)
  return run._replace(cfg=cfg, params=params)


def _plots(report):
  """Yields the plots of the analyses, (name, PNG)."""
  yield "calibration", pages.reliability(report["calibration"])
  rows = [row for row in report["repair"] if row["rate"] == _RATES[1]][:-1]
  repaired = {name: [row[name] for row in rows] for name in rows[0]}
  title = f"One call on text with {_RATES[1]:.0%} of its tokens replaced"
  yield "repair", pages.over_snr(title, repaired, ["repaired", "kept"])
  for name, (analysis, column, title) in _PLOTS.items():
    if analysis in report:
      yield name, pages.over_snr(title, report[analysis], [column])


def _summary(report):
  """All single numbers that have an error, as lines of text."""
  rows = {"hidden tokens": report["calibration"]}
  for row in report["repair"]:
    rows[f"{row['rate']:.0%} replaced, seen at SNR {row['snr']}"] = row
  rows |= report["changes"]
  if "invariance" in report:
    rows["bits per token from seeing log SNR"] = report["invariance"]
  lines = []
  for label, row in rows.items():
    numbers = [
      f"{name} {row[name]:.4f} +- {row[f'{name}_stderr']:.4f}"
      for name in row
      if isinstance(row.get(f"{name}_stderr"), float)
    ]
    lines.append(f"{label}: {', '.join(numbers)}")
  return "\n".join(lines)


def analyze(cfg: config_lib.Config, workdir: str) -> None:
  """Writes WORKDIR/analysis.json and WORKDIR/analysis/*.png.

  Numbers have standard errors over sequences.
  """
  with errors.user_errors():
    errors.require("matplotlib.figure", "demo")
    for section in _watched_sections(cfg):
      named_samplers.check(dataclasses.replace(cfg, sample=section))
    packed = prepare.open_rows(cfg, cfg.eval.split)
    rows_NL = trained.draw_rows(packed.tokens_NL, cfg.eval.sequences, cfg.seed)
    params, step = trained.open_weights(cfg, workdir)
    run = trained.Run(cfg, params, packed._replace(tokens_NL=rows_NL))
    if cfg.eval.control:
      control = _open_control(run)

  report = trained.describe(cfg, step, rows_NL) | {
    "calibration": calibration(run),
    "repair": repair(run),
    "information": information(run),
    "changes": changes(run),
  }
  if cfg.eval.control:
    report["invariance"] = invariance(run, control)
  if jax.process_index() == 0:
    folder = storage.make_folder(f"{workdir}/analysis")
    for name, image in _plots(report):
      (folder / f"{name}.png").write_bytes(image)
    print(_summary(report))
    storage.write_json(f"{workdir}/analysis.json", report)
