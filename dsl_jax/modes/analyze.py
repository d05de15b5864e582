"""Analyses of a trained run: calibration, repair, information, changes, SNR."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dsl_jax import likelihood, probes
from dsl_jax.data import extras
from dsl_jax.modes import named_samplers, plots, trained
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.quality import calibration as calibration_lib
from dsl_jax.quality import estimate
from dsl_jax.runtime import checkpoint, errors
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib

_RATES = (0.05, 0.1, 0.2)  # of tokens replaced, for repair
_PATHS = ("masked", "remask_cap", "remask_loop")  # whose changes are counted


class Run(NamedTuple):
  """A trained run and the rows on which it is analysed."""

  cfg: config_lib.Config
  params: Any
  mesh: jax.sharding.Mesh
  rows_NL: np.ndarray

  @property
  def denoiser(self) -> denoiser_lib.Denoiser:
    return denoiser_lib.make_denoiser(self.cfg.net)

  def over_rows(self, stream: str, probe: Callable) -> Any:
    """Returns probe(params, key, tokens_BL), a tree of [B, ...], of all rows.

    The keys are those of a named random stream.
    """
    probe = jax.jit(probe, out_shardings=sharding_lib.replicated(self.mesh))
    key = state_lib.stream(self.cfg.seed, stream)
    batches = list(trained.batched(self.rows_NL, self.cfg.eval.batch_size))
    trees = []
    for i, (tokens, mask) in enumerate(tqdm.tqdm(batches, stream, leave=False)):
      tokens_BL = sharding_lib.put_batch(self.mesh, tokens)
      tree = probe(self.params, jax.random.fold_in(key, i), tokens_BL)
      rows = mask.any(axis=1)  # the last batch may be padded
      trees.append(jax.tree.map(lambda x, n=rows: x[n], jax.device_get(tree)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *trees)


class Changes:
  """Counts rewrites and remasks along a path, as a callback of the sampler.

  A rewrite commits a token other than the one committed before at its
  position. A remask takes a commitment back.
  """

  def __init__(self, batch: int, length: int):
    self.rewrites_BL = np.zeros((batch, length), int)
    self.remasks_BL = np.zeros((batch, length), int)
    self._committed_BL = np.zeros((batch, length), bool)
    self._last_BL = np.full((batch, length), -1)  # token committed last

  def __call__(self, row: int, state) -> None:
    tokens_BL = np.asarray(state.tokens_BL)
    committed_BL = np.isinf(np.asarray(state.snr_BL))
    differs_BL = (self._last_BL >= 0) & (tokens_BL != self._last_BL)
    self.rewrites_BL += committed_BL & differs_BL
    self.remasks_BL += self._committed_BL & ~committed_BL
    self._last_BL = np.where(committed_BL, tokens_BL, self._last_BL)
    self._committed_BL = committed_BL


def _watched_sections(cfg):
  """Sample sections of the paths whose changes are counted."""
  for path in dict.fromkeys((cfg.sample.path, *_PATHS)):
    if path == "information":  # needs a curve, and never takes tokens back
      continue
    # Only paths that remask have a budget.
    remasks = 0.0 if path == "masked" else cfg.sample.remasks
    yield dataclasses.replace(cfg.sample, path=path, remasks=remasks)


def _ratio(name, total_N, size_N):
  """Entries of a sum over a sum and its error, NaN where the size is 0."""
  value, stderr = math.nan, math.nan
  if size_N.sum() > 0:
    value, stderr = estimate.ratio(total_N, size_N)
  return {name: value, f"{name}_stderr": stderr}


def _mean(name, x_NT):
  """Entries of a mean over rows and its error."""
  stderr_T = np.full(x_NT.shape[1:], np.nan)
  if len(x_NT) > 1:
    stderr_T = x_NT.std(axis=0, ddof=1) / math.sqrt(len(x_NT))
  return {name: x_NT.mean(axis=0).tolist(), f"{name}_stderr": stderr_T.tolist()}


def calibration(run: Run) -> dict:
  """Compares confidence and accuracy on hidden tokens."""
  probe = functools.partial(
    probes.hidden_predictions,
    denoiser=run.denoiser,
    clean_snr=run.cfg.clean_snr,
  )
  confidence, correct, hidden = run.over_rows("calibration", probe)

  def diagram(rows):
    where = hidden[rows]
    p = np.clip(confidence[rows][where], 0, 1)
    return calibration_lib.reliability(p, correct[rows][where])

  ece = estimate.jackknife(lambda rows: diagram(rows).ece, len(hidden))
  whole = diagram(slice(None))
  return {
    "ece": ece.value,
    "ece_stderr": ece.stderr,
    "confidence": whole.confidence_C.tolist(),
    "accuracy": whole.accuracy_C.tolist(),
    "count": whole.count_C.tolist(),
  }


def repair(run: Run) -> list[dict]:
  """Replaces tokens at random and predicts all in one call, at several SNRs."""
  c = run.cfg.sample
  snrs = [*np.geomspace(c.snr_min, c.snr_max, 6)[2:].tolist(), math.inf]
  pairs = list(itertools.product(_RATES, snrs))
  rate_P, snr_P = np.array(pairs, np.float32).T
  probe = functools.partial(
    probes.repair, denoiser=run.denoiser, clean_snr=run.cfg.clean_snr
  )

  def all_pairs(params, key, tokens_BL):
    def one(pair):
      key, rate, snr = pair
      return probe(params, key, tokens_BL, rate=rate, snr=snr)

    keys = jax.random.split(key, len(pairs))
    counts = jax.lax.map(one, (keys, rate_P, snr_P))
    return jax.tree.map(jnp.transpose, counts)  # [P, B] to [B, P]

  counts = run.over_rows("repair", all_pairs)
  table = []
  for i, (rate, snr) in enumerate(pairs):
    n = {name: count_NP[:, i] for name, count_NP in counts.items()}
    entry = {"rate": rate, "snr": "clean" if math.isinf(snr) else round(snr, 2)}
    entry |= _ratio("repaired", n["repaired"], n["wrong"])
    entry |= _ratio("kept", n["kept"], n["clean"])
    table.append(entry)
  return table


def information(run: Run) -> dict:
  """Measures the mmse curve and its integral, the information."""
  grid = run.cfg.eval.snr_grid()
  curve = functools.partial(
    likelihood.mmse_curve, denoiser=run.denoiser, snr_grid=jnp.asarray(grid)
  )

  def curves(params, key, tokens_BL):  # one for every row, for the error
    keys = jax.random.split(key, len(tokens_BL))
    return jax.vmap(lambda k, row: curve(params, k, row[None]))(keys, tokens_BL)

  numbers = {"snr": grid.tolist()}
  numbers |= _mean("mmse", run.over_rows("information", curves))
  rate = grid * numbers["mmse"]  # per log SNR: the grid is geometric
  steps = np.diff(np.log(grid)) * (rate[1:] + rate[:-1]) / 2
  bits = 0.5 * np.cumsum([rate[0], *steps]) / math.log(2)
  return numbers | {"bits_per_token": bits.tolist()}


def changes(run: Run) -> dict:
  """Counts rewrites and remasks per token along paths, one batch each."""
  numbers = {}
  for section in _watched_sections(run.cfg):
    batch, length = section.batch_size, run.cfg.data.length
    counter = Changes(batch, length)
    named_samplers.draw(run.cfg, run.params, section, batch, callback=counter)
    entry = {"steps": section.steps, "samples": batch}
    for name, count_BL in (
      ("rewrites", counter.rewrites_BL),
      ("remasks", counter.remasks_BL),
    ):
      entry |= _ratio(name, count_BL.sum(axis=1), np.full(batch, length))
      entry[f"{name}_by_position"] = count_BL.mean(axis=0).tolist()
    numbers[section.path] = entry
  return numbers


def invariance(run: Run, control: Run) -> dict:
  """Measures the gain of a network that sees log SNR, on the same noise."""
  grid = run.cfg.eval.snr_grid()
  runs = sorted((run, control), key=lambda one: one.cfg.net.snr_condition)

  def losses(params, key, tokens_BL):
    return [
      probes.loss_by_snr(
        p, key, tokens_BL, denoiser=one.denoiser, snr_grid=grid
      ).T
      for p, one in zip(params, runs)
    ]

  both = run._replace(params=[one.params for one in runs])
  nats = both.over_rows("invariance", losses)
  without_NT, given_NT = (nats_NT / math.log(2) for nats_NT in nats)
  gain_NT = without_NT - given_NT
  numbers = {"snr": grid.tolist()}
  numbers |= _mean("bits_without", without_NT) | _mean("bits_given", given_NT)
  numbers |= _mean("gain_by_snr", gain_NT)
  return numbers | _mean("gain", gain_NT.mean(axis=1))


def load_control(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh, rows_NL: np.ndarray
) -> Run | None:
  """Opens eval.control: a run that differs in whether it sees log SNR.

  Raises:
    errors.UserError: it does not differ in that, or has other rows.
  """
  where = cfg.eval.control
  if not where:
    return None
  other, _ = workdir_lib.stored(where)
  needed = (cfg.net.vocab_size, cfg.data.length, not cfg.net.snr_condition)
  if needed != (
    other.net.vocab_size,
    other.data.length,
    other.net.snr_condition,
  ):
    raise errors.UserError(
      f"eval.control is {where!r}; name a run with net.vocab_size {needed[0]}, "
      f"data.length {needed[1]} and net.snr_condition {needed[2]}."
    )
  replicated = sharding_lib.replicated(mesh)
  params, _ = checkpoint.restore_params(where, sharding=replicated)
  return Run(other, params, mesh, rows_NL)


def pictures(report: dict) -> dict[str, bytes]:
  """Returns the plots of the analyses, PNG by name."""
  rows = [
    row
    for row in report["repair"]
    if row["rate"] == _RATES[1] and row["snr"] != "clean"
  ]
  repaired = {name: [row[name] for row in rows] for name in rows[0]}
  information = report["information"]
  images = {
    "calibration": plots.reliability(report["calibration"]),
    "repair": plots.over_snr(
      f"One call on text with {_RATES[1]:.0%} of its tokens replaced",
      repaired,
      ["repaired", "kept"],
    ),
    "mmse": plots.over_snr("Error per token", information, ["mmse"]),
    "information": plots.over_snr(
      "Information about the text", information, ["bits_per_token"]
    ),
  }
  if "invariance" in report:
    images["invariance"] = plots.over_snr(
      "Gain of a network that sees log SNR, bits per token",
      report["invariance"],
      ["gain_by_snr"],
    )
  return images


def summary(report: dict) -> str:
  """Returns the analyses as lines of text."""

  def number(row, name, digits=3):
    return f"{row[name]:.{digits}f} +- {row[f'{name}_stderr']:.{digits}f}"

  lines = [f"ECE on hidden tokens {number(report['calibration'], 'ece', 4)}"]
  for row in report["repair"]:
    lines.append(
      f"{row['rate']:.0%} replaced, seen at SNR {row['snr']}: repaired "
      f"{number(row, 'repaired')}, kept {number(row, 'kept')}"
    )
  for name, row in report["changes"].items():
    lines.append(
      f"{name}: {number(row, 'rewrites')} rewrites and "
      f"{number(row, 'remasks')} remasks a token"
    )
  if "invariance" in report:
    gain = number(report["invariance"], "gain", 4)
    lines.append(f"seeing log SNR lowers the loss by {gain} bits a token")
  return "\n".join(lines)


def analyze(cfg: config_lib.Config, workdir: str) -> None:
  """Writes WORKDIR/analysis.json and WORKDIR/analysis/*.png.

  Numbers have standard errors over sequences. The gain of seeing log SNR is
  measured if eval.control names a run.

  Args:
    cfg: its eval section gives the number of rows and the SNRs.
    workdir: of a trained run.

  Raises:
    errors.UserError: before any compilation, if settings do not fit.
  """
  with errors.user_errors():
    extras.require("matplotlib.figure", "demo")
    mesh = sharding_lib.make_mesh(cfg.mesh)
    trained.check_batch(
      "eval.batch_size", cfg.eval.batch_size, divisor=mesh.size
    )
    for section in _watched_sections(cfg):
      named_samplers.check(dataclasses.replace(cfg, sample=section))
    packed = trained.open_rows(cfg, "validation")
    rows_NL = trained.draw_rows(packed, cfg.eval.sequences, cfg.seed)
    workdir_lib.compare(workdir, cfg)
    control = load_control(cfg, mesh, rows_NL)
    replicated = sharding_lib.replicated(mesh)
    params, step = checkpoint.restore_params(workdir, sharding=replicated)

  run = Run(cfg, params, mesh, rows_NL)
  report = {
    "train_step": step,
    "split": "validation",
    "rows": "drawn without replacement",
    "sequences": len(rows_NL),
    "length": cfg.data.length,
    "seed": cfg.seed,
    "settings": dataclasses.asdict(cfg.eval),
    "calibration": calibration(run),
    "repair": repair(run),
    "information": information(run),
    "changes": changes(run),
  }
  if control:
    report["invariance"] = invariance(run, control)
  if jax.process_index() == 0:
    folder = pathlib.Path(workdir) / "analysis"
    folder.mkdir(exist_ok=True)
    for name, image in pictures(report).items():
      (folder / f"{name}.png").write_bytes(image)
    print(summary(report))
    workdir_lib.write_json(workdir, "analysis.json", report)
