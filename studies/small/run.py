"""Runs the study: python -m studies.small.run STAGE [--rows=DIR] [--work=DIR].

`base` trains the masked model that every arm starts from. A stage that was
interrupted goes on where its last checkpoint stands. Averaged weights (float16)
are renewed in `results/` beside this file at every validation; a finished stage
adds its settings, log and scores.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax

from dsl_jax.nets.denoiser import make_denoiser
from studies.small import data, evaluate, model, train

RESULTS = pathlib.Path(__file__).parent / "results"
BASE = train.Run(steps=32000, batch_size=16, learning_rate=2e-3)
WATCHED = 512  # validation rows whose bound is followed in training
SCORED = 1024  # test rows of the final bounds


def base(args: argparse.Namespace) -> None:
  """Trains the masked model and scores the masked model inside."""
  run = dataclasses.replace(BASE, steps=args.steps or BASE.steps)
  packed = data.prepare(args.rows)
  RESULTS.mkdir(exist_ok=True)
  denoiser = make_denoiser(model.NET)
  masked = model.masked_only(denoiser)
  rows = evaluate.held_out(packed["validation"], WATCHED)
  chars = evaluate.characters(rows)

  def watch(params):
    train.save_params(str(RESULTS / "base.npz"), params)
    found = evaluate.nats(params, rows, "endpoint", denoiser=masked)
    value, error = evaluate.bits(found, chars)
    return {"endpoint": round(value, 4), "error": round(error, 4)}

  diary = train.Diary(str(pathlib.Path(args.work, "base")), watch)
  params = train.train(
    run,
    model.masked_loss(denoiser),
    denoiser.init(jax.random.key(run.seed)),
    packed["train"],
    diary,
  )
  params = train.load_params(str(RESULTS / "base.npz"))
  record(
    "base",
    run,
    train.read_log(diary.workdir),
    {
      "masked inside": score(params, masked, packed, ("endpoint",), draws=4),
      "denoiser": score(params, denoiser, packed, evaluate.BOUNDS),
    },
  )


def score(params, denoiser, packed, bounds, draws=1) -> dict:
  """Returns bits a character and standard error of bounds on test rows.

  With both, the path gap: integral - endpoint, paired by rows.
  """
  rows = evaluate.held_out(packed["test"], SCORED)
  chars = evaluate.characters(rows)
  nats, result = {}, {}
  for name in bounds:
    start = time.process_time()
    nats[name] = evaluate.nats(
      params, rows, name, denoiser=denoiser, draws=draws
    )
    result[name] = evaluate.bits(nats[name], chars)
    print(
      name, result[name], f"{time.process_time() - start:.0f} s", flush=True
    )
  if "integral" in nats and "endpoint" in nats:
    gap = nats["integral"] - nats["endpoint"]
    result["gap"] = evaluate.bits(gap, chars)
  return result


def record(name: str, run: train.Run, log: list[dict], scores: dict) -> None:
  """Writes a run's settings, log, compute and scores to `results/`."""
  rows = run.steps * run.batch_size
  content = {
    "name": name,
    "run": dataclasses.asdict(run),
    "network": dataclasses.asdict(model.NET),
    "tokens": rows * data.LENGTH,
    "cpu_seconds": log[-1]["cpu"],
    "scores": scores,
    "log": log,
  }
  (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
  """Reads the command line and runs a stage."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("stage", choices=("base",))
  parser.add_argument("--rows", default=data.OUT, help="packed rows")
  parser.add_argument("--work", default="runs/study", help="checkpoints")
  parser.add_argument("--steps", type=int, help="another length of the run")
  args = parser.parse_args()
  base(args)


if __name__ == "__main__":
  main()
