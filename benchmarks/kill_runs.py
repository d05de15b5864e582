"""Kills a training run at random moments and checks that it ends the same.

python -m benchmarks.kill_runs --kills=30 --processes=2

A tiny run is trained without interruption, then again in another workdir with
kill -9 on all its processes, at moments spread over the whole run: a third
during the start, a third at any step, a third while a checkpoint is written.
Every restart may resume at most 2 train.checkpoint_every steps before the last
reported one (the steps since the last save, and those taken while it was being
written), and the weights at the end must be the same bits.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from dsl_jax.data import packing, tokenizers

ROOT = pathlib.Path(__file__).parent.parent
L, EVERY = 16, 20


def make_rows(folder: pathlib.Path) -> None:
  """Packs random letters: 60 rows for training, 16 held out."""
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer, rng = tokenizers.load("text8"), np.random.default_rng(0)
  for split, count in (("train", 60), ("validation", 16)):
    text = tokenizer.decode(rng.integers(0, 27, count * L))
    packing.write(
      str(folder),
      split,
      [text],
      tokenizer,
      length=L,
      origin=packing.Origin("text", "random", "text8"),
    )


def arguments(
  workdir: pathlib.Path, rows: pathlib.Path, **changes
) -> list[str]:
  """Returns the arguments of `dsl_jax.main` for a tiny run.

  Args:
    workdir: of the run.
    rows: from `make_rows`.
    **changes: to the config, "train__steps" for train.steps.
  """
  settings = {
    "net.width": 8,
    "net.depth": 1,
    "net.heads": 2,
    "net.dropout": 0.1,
    "data.corpus": "text:none",
    "data.length": L,
    "data.dir": rows,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.eval_batches": 1,
    "train.checkpoint_every": EVERY,
    "train.max_minutes": 0.0,
    "eval.batch_size": 8,
  } | {name.replace("__", "."): value for name, value in changes.items()}
  return [
    f"--config={ROOT / 'configs/quickstart.py:letters'}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in settings.items()),
  ]


def start(
  workdir: pathlib.Path,
  rows: pathlib.Path,
  *,
  processes: int = 1,
  devices: int = 1,
  program: tuple[str, str] = ("-m", "dsl_jax.main"),
  **changes,
) -> list[subprocess.Popen]:
  """Starts a tiny run on several processes of this machine.

  Args:
    workdir: of the run, shared by all.
    rows: from `make_rows`.
    processes: each stands for a host.
    devices: fake devices of every process.
    program: arguments of Python.
    **changes: see `arguments`.

  Returns:
    The processes; stdout and stderr of each are one pipe.
  """
  command = [sys.executable, *program, *arguments(workdir, rows, **changes)]
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  started = []
  for number in range(processes):
    environment = os.environ | {
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(rows / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": "--xla_backend_optimization_level=0 "
      f"--xla_force_host_platform_device_count={devices}",
    }
    if processes > 1:
      environment |= {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
      }
    started.append(
      subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return started


def finish(started: list[subprocess.Popen], seconds: float = 300) -> str:
  """Waits for success of all; returns the output of the first one."""
  printed = [process.communicate(timeout=seconds)[0] for process in started]
  for process, text in zip(started, printed):
    if process.returncode:
      raise RuntimeError(f"exit code {process.returncode}:\n{text}")
  return printed[0]


def kill(started: list[subprocess.Popen], number: int) -> None:
  """Sends a signal to all processes and waits."""
  for process in started:
    process.send_signal(number)
  for process in started:
    process.communicate()


def reported(workdir: pathlib.Path) -> dict[int, float]:
  """Returns {step: training loss} from the metrics of a run."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  losses = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:  # cut short by the kill
      continue
    if row["split"] == "train":
      losses[row["step"]] = row["loss"]
  return losses


def newest(workdir: pathlib.Path) -> int:
  """Returns the step of the newest complete checkpoint, or 0."""
  steps = (pathlib.Path(workdir) / "checkpoints").glob("*")
  return max([0, *(int(p.name) for p in steps if p.name.isdigit())])


def same_weights(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Returns whether two runs ended with the same bits."""
  from dsl_jax.runtime import checkpoint

  for ema in (True, False):
    a, b = (checkpoint.restore_params(w, ema=ema) for w in (one, other))
    leaves = [
      np.concatenate([x.ravel() for x in _leaves(t)]) for t, _ in (a, b)
    ]
    if a[1] != b[1] or leaves[0].tobytes() != leaves[1].tobytes():
      return False
  return True


def _leaves(tree):
  import jax

  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def writing(workdir: pathlib.Path) -> bool:
  """Returns whether a checkpoint is being written, or was when killed."""
  return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def _wait(condition, started):
  """Waits until a condition holds while the processes are running."""
  until = time.monotonic() + 180
  while not condition() and time.monotonic() < until:
    if any(process.poll() is not None for process in started):
      finish(started)
      raise RuntimeError("the run ended early; increase --steps")
    time.sleep(0.005)


def _wait_for_step(workdir, step, started):
  _wait(lambda: max([0, *reported(workdir)]) >= step, started)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--steps", type=int, default=3000)
  parser.add_argument("--every", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  chance = random.Random(args.seed)
  settings = {
    "processes": args.processes,
    "train__steps": args.steps,
    "train__checkpoint_every": args.every,
  }
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    make_rows(root / "rows")
    whole, killed = root / "whole", root / "killed"
    began = time.monotonic()
    finish(start(whole, root / "rows", **settings))
    print(f"undisturbed: {time.monotonic() - began:.1f} s", flush=True)
    span = 0.9 * args.steps
    goals = sorted(chance.uniform(0, span) for _ in range(args.kills))
    lost, last, during = [], 0, dict.fromkeys(("start", "step", "save"), 0)
    for number, goal in enumerate(goals):
      moment = tuple(during)[number % 3]
      started = start(killed, root / "rows", **settings)
      if moment == "start":
        time.sleep(chance.uniform(0, 5))
      else:
        # At least one step further, so that the run progresses.
        _wait_for_step(killed, max(goal, last + 1), started)
      if moment == "save":
        _wait(lambda: writing(killed), started)
      time.sleep(chance.uniform(0, 0.02))
      kill(started, signal.SIGKILL)
      last, saved = max([0, *reported(killed)]), newest(killed)
      lost.append(last - saved)
      if moment == "step" and writing(killed):
        moment = "save"
      during[moment] += 1
      print(f"kill {number + 1}: step {last}, saved {saved}", flush=True)
    finish(start(killed, root / "rows", **settings))
    same = same_weights(whole, killed)
    print(
      f"{len(lost)} kills on {args.processes} processes up to step {last} of "
      f"{args.steps}, {during}: same bits {same}, at most {max(lost)} steps "
      f"lost of {2 * args.every} allowed"
    )
  sys.exit(not same or max(lost) > 2 * args.every)


if __name__ == "__main__":
  main()
