"""Discrete Stochastic Localization: trains, evaluates, samples, plans a run.

dsl-jax --config=quickstart --workdir=DIR [--config.train.steps=2000 ...]
dsl-jax MODE --workdir=DIR [--config.sample.steps=32 ...]  # the run's config
dsl-jax plan --config=owt --topology=v5e:16x16

`python -m dsl_jax.main` is the same command where it is not installed.
"""

import importlib
import os
import signal
import sys

from dsl_jax.runtime import signals

if __name__ == "__main__":  # the other imports take seconds
  signals.end_at_once()

import jax

from dsl_jax.nets import attention
from dsl_jax.runtime import command, errors, storage
from dsl_jax.runtime import workdir as workdir_lib

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
  "demo": command.Mode("demo", "an interactive page, at 127.0.0.1"),
  "report": command.Mode("report", "a page of all results", ("workdir",)),
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
  if jax.process_count() > 1:  # JAX handles SIGTERM now
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: list[str] | None = None) -> int:
  """Runs a command line; returns 0, 1 for divergence, 2 for user errors."""
  errors.escape_output()
  if argv is None:
    signals.end_at_once()
    argv = sys.argv
  if len(argv) == 1 or {"-h", "--help"} & set(argv):
    samplers = importlib.import_module("dsl_jax.modes.named_samplers").names()
    print(command.help_text(__doc__, MODES))
    print(f"\nsamplers, as --config.sample.path=NAME:\n  {', '.join(samplers)}")
    return 0
  workdir = ""
  try:
    with errors.user_errors():
      cfg, workdir, name = command.parse(argv, MODES)
      mode = MODES[name]
      if name != "train":
        signals.restore()
      if name not in ("plan", "report"):  # which use no devices that are here
        join_hosts()
        attention.check(cfg.net.attention, jax.default_backend())
      writes = "workdir" in mode.arguments and name != "demo"
      is_shipped = workdir in workdir_lib.shipped()
      if writes and (is_shipped or storage.to_path(workdir).exists()):
        workdir_lib.check_writable(workdir)
    # Only the modules that the mode needs are imported.
    module = importlib.import_module(f"dsl_jax.modes.{mode.module}")
    given = {"config": cfg, "workdir": workdir}
    getattr(module, mode.module)(*(given[flag] for flag in mode.arguments))
  except (errors.UserError, OSError) as error:  # a full disk at any time
    print(f"error: {errors.describe(error, workdir)}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
