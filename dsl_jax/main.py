"""Trains, evaluates, samples, plans a run, and what builds on these.

python -m dsl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  --mode=train|eval|sample|analyze|reproduce|correct
  [--text=FILE] [--table=owt_mauve] [--config.train.steps=2000 ...]
  [--trace=FILE.html]  # sample: also a page of the first sample's way
python -m dsl_jax.main --config=configs/owt.py --mode=plan --topology=v5e:16x16
"""

import importlib
import os
import sys

import jax

from dsl_jax.runtime import build, command, errors

# Mode -> (module, function); a module is imported when its mode is asked for.
MODES = {
  "train": ("train", "train"),
  "eval": ("evaluate", "evaluate"),
  "sample": ("sample", "sample"),
  "analyze": ("analyze", "analyze"),
  "reproduce": ("reproduce", "reproduce"),
  "correct": ("correct", "correct"),
  "plan": ("plan", "plan"),
}


def main(argv: list[str]) -> int:
  """Runs a command line.

  Args:
    argv: program name and arguments.

  Returns:
    The exit code: 0, 1 for a run that diverged, 2 for a user's mistake.
  """
  if "--help" in argv:
    print(__doc__)
    return 0
  try:
    with errors.user_errors():
      cfg, workdir, mode = command.parse(argv, list(MODES), ["plan"])
      join_hosts()
      if mode != "plan":  # which compiles for devices that are not here
        build.check_devices(cfg)
    module, function = MODES[mode]
    # Only what the mode needs is imported.
    run = getattr(importlib.import_module(f"dsl_jax.modes.{module}"), function)
    run(*([cfg] if mode == "plan" else [cfg, workdir]))
  except errors.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def join_hosts() -> None:
  """Starts jax.distributed where the environment asks for it."""
  env, numbers = os.environ, ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  if "JAX_COORDINATOR_ADDRESS" in env:
    numbers = [int(env[name]) if name in env else None for name in numbers]
    jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], *numbers)
  elif env.get("DSL_DISTRIBUTED") == "1":  # a pod: JAX asks its metadata
    jax.distributed.initialize()


if __name__ == "__main__":
  sys.exit(main(sys.argv))
