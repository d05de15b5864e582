"""Runs the study: python -m studies.small.run STAGE [--preset=small] [...].

A stage is `base`, `law`, `A0`, a name of `arms.TABLE` (`A3.s1` is A3 with seed
1), `judge`, `probes:NAME`, `samples:NAME:CALLS` or, after that, its reading by
a language model, `smollm:NAME:CALLS`; `all` runs every stage that has no result
yet, the most informative first. Several processes may work on `all` at once. A
stage that was interrupted goes on where its last checkpoint stands. Results are
in `results/` beside this file: settings, compute, log and scores (JSON).
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dsl_jax.nets.denoiser import Denoiser, make_denoiser
from studies.small import (
  arms,
  controls,
  data,
  evaluate,
  judge,
  model,
  presets,
  store,
  texts,
  train,
)

HERE = pathlib.Path(__file__).parent
WATCHED = 256  # validation rows whose bound is followed in training
_LAW_GRID = np.geomspace(0.02, 400.0, 60)
_LAW_DRAWS = 4000
_RENEWED_ON = 64  # validation rows that a law is renewed on
MASKED = ("endpoint", "masked:32")  # bounds of a masked model
_PAUSE = 5.0  # seconds between looks at another process's work
KEPT = ("A1", "A3", "S", "S-0.75")  # whose weights go to results/


def base(study: store.Study) -> None:
  """Trains the masked model that every arm starts from."""
  run, net = study.preset.base, study.preset.net
  denoiser = make_denoiser(net)
  watch = _watcher(study, model.masked_only(denoiser))
  diary = train.Diary(str(study.work / "base"), watch)
  params = train.train(
    run,
    model.masked_loss(denoiser),
    denoiser.init(jax.random.key(run.seed)),
    study.packed["train"],
    diary,
  )
  train.save_params(str(study.results / "base.npz"), params)
  log = train.read_log(diary.workdir)
  study.write("base", _content(arms.Arm(loss="masked"), run, net, log))


def law(study: store.Study) -> None:
  """Sets the log-normal law from the posterior of one token seen alone.

  The density of log t is in proportion to t mmse(t); the normal has its mean
  and standard deviation.
  """
  tokens = np.asarray(study.packed["train"].tokens_NL)[:, 1:-1]
  V = study.preset.net.vocab_size
  prior_V = np.bincount(tokens.ravel(), minlength=V) / tokens.size
  denoiser = make_denoiser(study.preset.net)
  table_VD = np.asarray(denoiser.table(study.base()), np.float64)
  mmse = controls.single_token_mmse(table_VD, prior_V, _LAW_GRID, _LAW_DRAWS)
  density, log = _LAW_GRID * mmse, np.log(_LAW_GRID)
  mean = np.sum(density * log) / np.sum(density)
  spread = np.sqrt(np.sum(density * (log - mean) ** 2) / np.sum(density))
  found = arms.Law(
    round(float(mean), 2),
    round(float(spread), 2),
    tuple(np.round(_LAW_GRID, 5).tolist()),
    tuple(np.round(density, 5).tolist()),
  )
  study.write("law", dataclasses.asdict(found))


def untouched(study: store.Study) -> None:
  """Scores the base: the masked model inside, and the fresh denoiser."""
  net = study.preset.net
  params, denoiser = study.base(), make_denoiser(net)
  scores = score(study, "A0", params, model.masked_only(denoiser), MASKED)
  fresh = ("endpoint", "integral")
  rest = score(study, "A0-denoiser", params, denoiser, fresh)
  study.write("A0", {"name": "A0", "scores": scores, "denoiser": rest})


def one_arm(study: store.Study, name: str) -> None:
  """Trains and scores one arm."""
  arm, preset = arms.find(name), study.preset
  run = preset.scratch if arm.scratch else preset.arm
  steps = arms.num_steps(arm, preset.net, run, data.LENGTH)
  run = arms.settings(arm, run, steps)
  denoiser = arms.network(arm, preset.net)
  first = None if arm.scratch else study.base()
  masked = arm.loss == "masked"
  watched = model.masked_only(denoiser) if masked else denoiser
  renew = None
  if arm.law == "information":
    rows = evaluate.held_out(study.packed["validation"], _RENEWED_ON)
    renew = controls.renew_law(denoiser, rows, evaluate.SNR_GRID)
  diary = train.Diary(
    str(study.work / name),
    _watcher(study, watched, arm.clean_snr),
    renew,
    watch_every=max(steps // 6, 1),
    renew_every=max(steps // 6, 1),
  )
  try:
    params = train.train(
      run,
      arms.objective(arm, denoiser, study.law()),
      arms.start(arm, preset.net, first, study.law()),
      study.packed["train"],
      diary,
    )
  except train.Diverged as error:
    log = train.read_log(diary.workdir)
    content = _content(arm, run, preset.net, log)
    study.write(name, {"name": name, "diverged": str(error)} | content)
    return
  train.save_params(str(study.work / name / "average.npz"), params)
  if study.read(name) is not None:
    return  # only its weights were missing
  if name in KEPT:
    path = str(study.results / f"{name}.npz")
    train.save_change(path, params, study.base())
  content = _content(arm, run, preset.net, train.read_log(diary.workdir))
  bounds = MASKED if masked else tuple(evaluate.DRAWS)
  if arm.unequal_norms:
    bounds = bounds[:-1]
  scores = score(
    study, name, study.weights(name), watched, bounds, arm.clean_snr
  )
  study.write(name, {"name": name} | content | {"scores": scores})


def train_judge(study: store.Study) -> None:
  """Trains the autoregressive judge on the rows of the study."""
  run, net = study.preset.judge, study.preset.net
  rows = evaluate.held_out(study.packed["validation"], WATCHED)
  chars = evaluate.characters(rows)

  def watch(params):
    value, error = evaluate.bits(judge.read(params, rows, net.heads)[0], chars)
    return {"bits": round(value, 4), "error": round(error, 4)}

  diary = train.Diary(str(study.work / "judge"), watch)
  params = train.train(
    run,
    judge.loss(net.heads),
    judge.init(jax.random.key(run.seed), net, data.LENGTH),
    study.packed["train"],
    diary,
  )
  train.save_params(str(study.results / "judge.npz"), params)
  log = train.read_log(diary.workdir)
  content = {"name": "judge", "run": dataclasses.asdict(run), "log": log}
  study.write("judge", content)


def score(
  study: store.Study,
  name: str,
  params: dict,
  denoiser: Denoiser,
  bounds: Sequence[str],
  clean_snr: float = model.CLEAN_SNR,
) -> dict[str, Any]:
  """Returns bits a character and standard error of bounds on test rows.

  The bound of a sampler's finite steps holds for unit norms only. With the
  integral also the path gap: integral - endpoint, paired by rows. The nats of
  every row are kept in `results/nats/NAME.npz` for paired differences.

  Args:
    study: where.
    name: of the run.
    params: averaged.
    denoiser: of the run.
    bounds: names in `evaluate.DRAWS`.
    clean_snr: of the run.
  """
  every = study.preset.every
  nats: dict[str, np.ndarray] = {}
  result: dict[str, Any] = {}
  rows_NL = evaluate.held_out(study.packed["test"], study.preset.scored)
  chars_N = evaluate.characters(rows_NL)
  for bound in bounds:
    step, draws = every[bound], evaluate.DRAWS[bound]
    nats[bound] = evaluate.nats(
      params,
      rows_NL[::step],
      bound,
      denoiser=denoiser,
      clean_snr=clean_snr,
      draws=draws,
    )
    result[bound] = evaluate.bits(nats[bound], chars_N[::step])
    print(name, bound, result[bound], flush=True)
    if bound == "integral":
      gap = nats["integral"] - nats["endpoint"][::step]
      result["gap"] = evaluate.bits(gap, chars_N[::step])
  folder = study.results / "nats"
  folder.mkdir(parents=True, exist_ok=True)
  np.save(folder / "characters.npy", chars_N.astype(np.int16))
  np.savez_compressed(
    folder / f"{name}.npz",
    **{k: x.astype(np.float32) for k, x in nats.items()},  # type: ignore[arg-type]
  )
  if "integral" in bounds:
    rows = evaluate.held_out(study.packed["validation"], WATCHED)
    result["mmse"] = evaluate.mmse(params, rows, denoiser)
  return result


def stages(preset: presets.Preset) -> list[str]:
  """Returns the names of all stages, the most informative first."""
  after = [f"probes:{name}" for name in preset.probed]
  for kind, cells in (("samples", preset.sampled), ("smollm", preset.read)):
    for calls in presets.BUDGETS:
      names = [name for name, every in cells.items() if calls in every]
      after += [f"{kind}:{name}:{calls}" for name in names]
  judged = ["judge"] if preset.sampled else []
  return ["base", "law", "A0", *preset.runs, *judged, *after]


def run_stage(study: store.Study, name: str) -> bool:
  """Runs a stage unless it has a result or another process works on it.

  Returns:
    Whether it ran.
  """
  if study.read(name.replace(":", "-")) is not None:
    return False
  with store.Claim(study.work, name) as mine:
    if not mine:
      return False
    print(f"stage {name}", flush=True)
    _run(study, name)
  return True


def _run(study, name):
  known = {"base": base, "law": law, "A0": untouched, "judge": train_judge}
  kind, _, of = name.partition(":")
  before = {"base": (), "judge": (), "law": ("base",)}
  for stage in before.get(kind, ("base", "law")):
    _wait_for(study, stage)
  if name in known:
    known[name](study)
  elif kind not in ("samples", "smollm", "probes"):
    one_arm(study, name)
  else:
    network, _, calls = of.partition(":")
    while not study.has_weights(network):  # few are in `results/`
      with store.Claim(study.work, network) as mine:
        if mine:
          one_arm(study, network)
        else:
          time.sleep(_PAUSE)
    if kind == "samples":
      _wait_for(study, "judge")
    if kind == "probes":
      texts.probe(study, network)
    elif kind == "samples":
      texts.samples(study, network, int(calls))
    else:
      texts.read_by_smollm(study, network, int(calls))


def _wait_for(study, name):
  """Runs a stage that has no result, or waits for the process that does."""
  while study.read(name) is None:
    if not run_stage(study, name):
      time.sleep(_PAUSE)


def _watcher(study, denoiser, clean_snr=model.CLEAN_SNR):
  """Parameters -> the endpoint bound on validation rows."""
  count = min(WATCHED, study.preset.scored)
  rows = evaluate.held_out(study.packed["validation"], count)
  chars = evaluate.characters(rows)

  def watch(params):
    found = evaluate.nats(
      params, rows, "endpoint", denoiser=denoiser, clean_snr=clean_snr
    )
    value, error = evaluate.bits(found, chars)
    return {"endpoint": round(value, 4), "error": round(error, 4)}

  return watch


def _content(arm, run, net, log) -> dict[str, Any]:
  """Settings, compute and log of a run."""
  flops = arms.flops(arm, net, run.batch_size, data.LENGTH)
  return {
    "arm": dataclasses.asdict(arm),
    "run": dataclasses.asdict(run),
    "network": dataclasses.asdict(arms.network_config(arm, net)),
    "tokens": run.steps * run.batch_size * data.LENGTH,
    "flops": run.steps * flops,
    "cpu_seconds": log[-1]["cpu"] if log else None,
    "log": log,
  }


def open_study(args: argparse.Namespace) -> store.Study:
  """Returns the study that the command line names."""
  preset = presets.PRESETS[args.preset]
  results = pathlib.Path(args.results or HERE / preset.results)
  results.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(args.work) / args.preset
  return store.Study(preset, data.prepare(args.rows), results, work)


def main() -> None:
  """Reads the command line and runs stages."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("stage", help="`all`, or names with commas between")
  parser.add_argument("--preset", default="small", choices=presets.PRESETS)
  parser.add_argument("--rows", default=data.OUT, help="packed rows")
  parser.add_argument("--work", default="runs/study", help="checkpoints")
  parser.add_argument("--results", help="folder, if not the preset's")
  args = parser.parse_args()
  study = open_study(args)
  names = args.stage.split(",")
  if names == ["all"]:
    names = stages(study.preset)
  for name in names:
    start = time.time()
    if run_stage(study, name):
      print(f"{name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
  main()
