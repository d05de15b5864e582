"""Discrete Stochastic Localization: trains, evaluates, samples, plans a run.

python -m dsl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  [--config.train.steps=2000 ...]
python -m dsl_jax.main --workdir=runs/quickstart --mode=MODE  # the run's config
  [--config.sample.steps=32 ...]
  [--text=FILE]          # eval, correct, reproduce: a text of your own
  [--table=owt_mauve]    # reproduce: which table
  [--trace=FILE.html]    # sample: also a page that shows a sample appear
python -m dsl_jax.main --config=configs/owt.py --mode=plan --topology=v5e:16x16
python -m dsl_jax.main --workdir=runs/quickstart --mode=report
"""

import importlib
import os
import sys

import jax

from dsl_jax.nets import attention
from dsl_jax.runtime import command, errors

MODES = {
  "train": command.Mode(
    "train",
    "trains, or continues a stopped run",
    required=("config", "workdir"),
  ),
  "eval": command.Mode("evaluate", "bounds on the likelihood: eval.json"),
  "sample": command.Mode("sample", "texts: samples.jsonl"),
  "analyze": command.Mode("analyze", "calibration, repair, information"),
  "reproduce": command.Mode("reproduce", "the tables of the papers"),
  "correct": command.Mode("correct", "marks and repairs tokens of a text"),
  "demo": command.Mode("demo", "a page to write on, at 127.0.0.1"),
  "report": command.Mode("report", "all of it on one page", ("workdir",)),
  "plan": command.Mode(
    "plan", "memory and time on a topology", ("config",), required=()
  ),
}


def join_hosts() -> None:
  """Starts jax.distributed where the environment asks for it."""
  if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
    count, index = (
      int(os.environ[name]) if name in os.environ else None
      for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(address, count, index)
  elif os.environ.get("DSL_DISTRIBUTED") == "1":  # a pod: JAX asks its metadata
    jax.distributed.initialize()


def main(argv: list[str]) -> int:
  """Runs a command line; returns 0, 1 for divergence, 2 for user errors."""
  if "--help" in argv:
    lines = [f"  {name:<10} {mode.description}" for name, mode in MODES.items()]
    print("\n".join([__doc__, "modes:", *lines]))
    return 0
  try:
    with errors.user_errors():
      cfg, workdir, name = command.parse(argv, MODES)
      mode = MODES[name]
      join_hosts()
      if name not in ("plan", "report"):  # which use no devices that are here
        attention.check(cfg.net.attention, jax.default_backend())
    # Only the modules that the mode needs are imported.
    module = importlib.import_module(f"dsl_jax.modes.{mode.module}")
    given = {"config": cfg, "workdir": workdir}
    getattr(module, mode.module)(*(given[flag] for flag in mode.arguments))
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
