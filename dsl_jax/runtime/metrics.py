"""Metrics: sums in, means out; a JSONL file and the console."""

import collections
import json
import math
import pathlib
import time

import jax
import tqdm

from dsl_jax.runtime import storage


class Recorder:
  """Writes what training reports, on process 0 only.

  metrics.jsonl gets one line per report, {"step", "split": "train" |
  "validation", ...}. Lines of steps after `start`, which will be done again,
  are removed. `peak` is in tokens/s; the reached share of it is the MFU. The
  console shows the time left until the last step or the deadline, a time of
  `time.monotonic`.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start: int,
    steps: int,
    log_every: int,
    peak: float | None = None,
    deadline: float = math.inf,
  ):
    self._log_every, self._peak, self._deadline = log_every, peak, deadline
    self._sums: collections.Counter = collections.Counter()
    self._file = None
    if jax.process_index() == 0:
      path = pathlib.Path(workdir) / "metrics.jsonl"
      # Lines of later steps, and those that are not of a report, go.
      storage.filter_jsonl(
        path, lambda row: row.get("step") in range(start + 1)
      )
      self._file = path.open("a", encoding="utf-8")
    self._bar = tqdm.tqdm(
      total=steps,
      initial=start,
      unit="step",
      disable=None if self._file else True,  # None: only on a terminal
    )
    self._clock = 0.0  # set after the first step, which compiles
    self._timed = 0.0  # tokens since then

  def add(self, step: int, sums: dict) -> None:
    """Adds the sums of a step, counted from 1; FloatingPointError if "bad"."""
    sums = {name: float(x) for name, x in sums.items()}
    if sums["bad"]:
      raise FloatingPointError(
        f"loss {sums['nll']} or gradient norm {sums['grad_norm']} is not "
        f"finite at step {step}, batch index {step - 1}"
      )
    self._sums.update(sums, steps=1)
    if self._clock:
      self._timed += sums["tokens"]
    else:
      self.restart_clock()
    self._bar.update(1)
    if step % self._log_every:
      return
    loss = self._sums["nll"] / self._sums["tokens"]
    now = time.monotonic()
    rate = self._timed / (now - self._clock)
    tokens = self._sums["tokens"] / self._sums["steps"]
    left = self._deadline - now
    if rate:
      left = min(left, (self._bar.total - step) * tokens / rate)
    row = {
      "loss": loss,
      "bits": loss / math.log(2),
      "grad_norm": self._sums["grad_norm"] / self._sums["steps"],
      "tokens_per_second": rate,
    }
    if self._peak:
      row["mfu"] = rate / self._peak
    self._bar.set_postfix({"loss": loss, "tokens/s": rate})
    self.write(step, "train", row, f"  {max(left, 0) / 60:.1f} minutes left")
    self._sums.clear()
    self.restart_clock()

  def write(self, step: int, split: str, row: dict, note: str = "") -> None:
    """Writes one line of means."""
    if not self._file:
      return
    self._file.write(json.dumps({"step": step, "split": split} | row) + "\n")
    self._file.flush()
    values = "  ".join(f"{k} {v:.5g}" for k, v in row.items())
    tqdm.tqdm.write(f"step {step}  {split}  {values}{note}")

  def restart_clock(self) -> None:
    """Restarts the timing, so that other work does not count as training."""
    self._clock, self._timed = time.monotonic(), 0.0

  def close(self) -> None:
    """Closes the progress bar and the file."""
    self._bar.close()
    if self._file:
      self._file.close()
