"""Metrics: sums in, means out; a JSONL file, the console and TensorBoard."""

import json
import math
import os
import pathlib
import time

import jax
import tqdm
from absl import logging

from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib


def _remove_after(workdir, step):
  """Removes the lines of later steps, and a last line cut short."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except ValueError:
      continue
  workdir_lib.write(workdir, path.name, "".join(kept))


def _tensorboard(workdir, start):
  """Returns a TensorBoard writer if tensorboardX is installed."""
  try:
    import tensorboardX
  except ImportError:
    logging.info("no TensorBoard files: tensorboardX is not installed")
    return None
  return tensorboardX.SummaryWriter(
    os.path.join(workdir, "tensorboard"), purge_step=start + 1
  )


class Recorder:
  """Writes what training reports, on process 0 only.

  metrics.jsonl gets one line per report, {"step", "split": "train" |
  "validation", ...}. Lines of steps after `start`, which will be done again,
  are removed. With `peak`, the tokens/s at which the matrix products alone
  would keep the devices busy, training lines have the reached share, the MFU.
  """

  def __init__(
    self,
    workdir: str,
    *,
    start: int,
    steps: int,
    log_every: int,
    peak: float | None = None,
  ):
    self._log_every, self._peak = log_every, peak
    self._totals: dict[str, float] = {}
    self._count = 0  # steps in the totals
    self._file = self._board = None
    if jax.process_index() == 0:
      _remove_after(workdir, start)
      path = pathlib.Path(workdir) / "metrics.jsonl"
      self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
      self._board = _tensorboard(workdir, start)
    self._bar = tqdm.tqdm(
      total=steps,
      initial=start,
      unit="step",
      disable=None if self._file else True,  # None: only on a terminal
    )
    self._clock: float | None = None  # set after the first step, which compiles
    self._timed = 0.0  # tokens since then

  def add(self, step: int, sums: dict) -> None:
    """Adds the sums of a step; waits until the device has computed them.

    Args:
      step: updates done after it, from 1.
      sums: {"nll", "tokens", "grad_norm", "bad"}.

    Raises:
      FloatingPointError: the step's loss or gradient was not finite.
    """
    sums = {k: float(v) for k, v in jax.device_get(sums).items()}
    if sums["bad"]:
      raise FloatingPointError(
        f"loss {sums['nll']} or gradient norm {sums['grad_norm']} is not "
        f"finite at step {step}, batch index {step - 1}"
      )
    for name, value in sums.items():
      self._totals[name] = self._totals.get(name, 0.0) + value
    self._count += 1
    if self._clock is None:
      self.restart_clock()
    else:
      self._timed += sums["tokens"]
    self._bar.update(1)
    if step % self._log_every == 0:
      self._report(step)

  def _report(self, step):
    """Writes the means since the last report."""
    loss = self._totals["nll"] / self._totals["tokens"]
    rate = self._timed / (time.monotonic() - self._clock)
    row = {
      "loss": loss,
      "bits": loss / math.log(2),
      "grad_norm": self._totals["grad_norm"] / self._count,
      "tokens_per_second": rate,
    }
    shown = {"loss": f"{loss:.4f}", "tokens/s": f"{rate:,.0f}"}
    if self._peak:
      row["mfu"] = rate / self._peak
      shown["mfu"] = f"{row['mfu']:.1%}"
    self._bar.set_postfix(shown)
    self.write(step, "train", row)
    self._totals, self._count = {}, 0
    self.restart_clock()

  def write(self, step: int, split: str, row: dict) -> None:
    """Writes one line of means."""
    if not self._file:
      return
    try:
      self._file.write(json.dumps({"step": step, "split": split} | row) + "\n")
      self._file.flush()
    except OSError as error:
      raise errors.UserError(
        f"{self._file.name} cannot be written ({error.strerror}); make room "
        "there and start again."
      ) from error
    values = "  ".join(f"{k} {v:.5g}" for k, v in row.items())
    tqdm.tqdm.write(f"step {step}  {split}  {values}")
    if self._board:
      for key, value in row.items():
        self._board.add_scalar(f"{split}/{key}", value, step)

  def restart_clock(self) -> None:
    """Restarts the timing, so that other work does not count as training."""
    self._clock, self._timed = time.monotonic(), 0.0

  def close(self) -> None:
    """Closes the progress bar and the files."""
    for output in (self._bar, self._file, self._board):
      if output is not None:
        output.close()
