"""Comparisons of several sides, measured in turns in one process.

A slow minute of a shared machine then affects all sides, and ratios are taken
within each round, so their range shows how reliable the figures are.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def take_turns(
  sides: Mapping[str, Callable[[], object]], rounds: int, *, settle: int = 0
) -> dict[str, list[float]]:
  """Times every side once per round.

  Args:
    sides: name -> a function that returns when its work is done; call each
      once before, so that it is compiled.
    rounds: number of rounds.
    settle: calls at the start of each turn that are not timed. Memory that
      the previous side freed is cold: a first step takes up to twice as long
      as the following ones.

  Returns:
    name -> seconds, one per round.
  """
  seconds = {name: [] for name in sides}
  for _ in range(rounds):
    for name, run in sides.items():
      for _ in range(settle):
        run()
      began = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - began)
  return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> dict:
  """Returns median, lowest and highest of over / under, round by round."""
  ratios = [a / b for a, b in zip(over, under)]
  return {
    "ratio": statistics.median(ratios),
    "ratio_range": [min(ratios), max(ratios)],
  }


def spread(result: Mapping) -> str:
  """Returns a `ratio` as text, "5.10 (4.90 to 5.30)"."""
  low, high = result["ratio_range"]
  return f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"


def peak_memory(argv: Sequence[str]) -> int:
  """Runs a Python module in its own process.

  Args:
    argv: module and arguments; it prints `memory()` as its last line.

  Returns:
    The bytes it printed.
  """
  process = subprocess.run(
    [sys.executable, "-m", *argv], check=True, capture_output=True, text=True
  )
  return int(process.stdout.split()[-1])


def memory() -> int:
  """Returns the peak memory of this process, in bytes."""
  try:  # getrusage would include the process that started this one
    with open("/proc/self/status", encoding="ascii") as file:
      lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) * 1024
  except OSError:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PEAK = 2 * 2048**3  # FLOPs of `peak`


def peak() -> Callable[[], object]:
  """Returns the side of the machine's peak: an f32 product of 2048^3 in JAX."""
  import jax
  import jax.numpy as jnp

  x = jnp.full((2048, 2048), 1e-3)
  product = jax.jit(jnp.matmul)
  return lambda: jax.block_until_ready(product(x, x))


def of_peak(
  flops: float, seconds: Sequence[float], peak_seconds: Sequence[float]
) -> dict:
  """Returns the `ratio` of FLOP/s to those of `peak`, round by round."""
  return ratio([s * flops / PEAK for s in peak_seconds], seconds)


def parser(doc: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags of every comparison."""
  result = argparse.ArgumentParser(description=doc.split("\n")[0])
  result.add_argument("--json", help="also write the figures to this file")
  return result


def write(path: str | None, rows: object) -> None:
  """Writes figures, machine and command as JSON, unless path is None."""
  if not path:
    return
  machine = {"system": platform.platform(), "cores": os.cpu_count()}
  result = {"machine": machine, "command": sys.argv[1:], "rows": rows}
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  pathlib.Path(path).write_text(json.dumps(result, indent=2) + "\n")
