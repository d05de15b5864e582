"""Means over steps of summed metrics, for a JSONL file and the console."""

import collections
import json
import math
import time

import jax
import tqdm

from dsl_jax.runtime import storage


class Recorder:
  """Writes what training reports, on process 0 only.

  metrics.jsonl gets one line per report, {"step", "split": "train" |
  "validation", ...}. Lines of steps after `start`, which will be done again,
  are removed. `tokens` are those of a step, padding included. `peak` is in
  tokens/s; the reached share of it is the MFU. The console shows the time left
  until the last step or the deadline, a time of `time.monotonic`.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start: int,
    steps: int,
    tokens: int,
    log_every: int,
    peak: float | None = None,
    deadline: float = math.inf,
  ):
    self._log_every, self._peak, self._deadline = log_every, peak, deadline
    self._tokens = tokens
    self._sums: collections.Counter = collections.Counter()
    self._path = storage.to_path(workdir) / "metrics.jsonl"
    self._writes = jax.process_index() == 0
    if self._writes:
      storage.filter_jsonl(
        self._path, lambda row: row.get("step") in range(start + 1)
      )
    self._bar = tqdm.tqdm(
      total=steps,
      initial=start,
      unit="step",
      disable=None if self._writes else True,  # None: only on a terminal
    )
    self._bar.set_description("compiling")
    self._clock = 0.0  # set after the first call, which compiles
    self._timed = 0  # tokens since then

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
      self._timed += self._tokens
    self._bar.set_description("")
    self._bar.update(1)
    if step % self._log_every:
      return
    loss = self._sums["nll"] / self._sums["tokens"]
    row = {
      "loss": loss,
      "bits": loss / math.log(2),
      "grad_norm": self._sums["grad_norm"] / self._sums["steps"],
    }
    left, note = self._deadline - time.monotonic(), ""
    if self._timed:
      rate = self._timed / (time.monotonic() - self._clock)
      row["tokens_per_second"] = rate
      left = min(left, (self._bar.total - step) * self._tokens / rate)
      note = f"  {max(left, 0) / 60:.1f} minutes left"
      if self._peak:
        row["mfu"] = rate / self._peak
    self._bar.set_postfix(row)
    self.write(step, "train", row, note)
    self._sums.clear()
    self.restart_clock()

  def write(self, step: int, split: str, row: dict, note: str = "") -> None:
    """Writes one line of means."""
    if not self._writes:
      return
    line = json.dumps({"step": step, "split": split} | row) + "\n"
    storage.append(self._path, line)
    values = "  ".join(f"{k} {v:.5g}" for k, v in row.items())
    tqdm.tqdm.write(f"step {step}  {split}  {values}{note}")

  def restart_clock(self) -> None:
    """Restarts the timing, so that other work does not count as training."""
    self._clock, self._timed = time.monotonic(), 0

  def close(self) -> None:
    """Closes the progress bar."""
    self._bar.close()
