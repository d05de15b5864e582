"""Trains, evaluates or samples.

python -m dsl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  --mode=train|eval|sample [--config.train.steps=2000 ...]
  [--trace=FILE.html]  # sample: also a page of the first sample's way
"""

import os
import sys

import jax

from dsl_jax.runtime import command, errors


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
      argv, trace = command.take(argv, "trace")
      cfg, workdir, mode = command.parse(argv, ("train", "eval", "sample"))
      if trace and mode != "sample":
        raise errors.UserError(f"--trace is {trace}; it needs --mode=sample.")
      join_hosts()
    if mode == "train":
      from dsl_jax import train

      train.train(cfg, workdir)
    elif mode == "eval":
      from dsl_jax import evaluate

      evaluate.evaluate(cfg, workdir)
    else:
      from dsl_jax import generate

      generate.generate(cfg, workdir, trace)
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
