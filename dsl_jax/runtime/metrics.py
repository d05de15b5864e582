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


class Recorder:
  """Writes what training reports, on process 0 only.

  metrics.jsonl gets one line per report, {"step", "split": "train" | "valid",
  ...}. Lines after `start` are of steps that will be done again: they go.
  With `peak`, the tokens/s at which the model's products alone would keep the
  devices busy, training lines tell the share of it that is reached, the MFU.
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
    self._sums, self._count = {}, 0
    self._first = jax.process_index() == 0
    if self._first:
      path = pathlib.Path(workdir) / "metrics.jsonl"
      _forget_after(path, start)
      self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
      self._board = _tensorboard(workdir, start)
    # disable=None: a bar on terminals, only lines elsewhere.
    disable = None if self._first else True
    self._bar = tqdm.tqdm(
      total=steps, initial=start, unit="step", disable=disable
    )
    self._clock = None  # the first step compiles, so time starts after it
    self._timed = 0.0  # tokens since then

  def add(self, step: int, sums: dict) -> None:
    """Takes the sums of a step; waits for the device to have them.

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
    self._sums = {k: self._sums.get(k, 0.0) + v for k, v in sums.items()}
    self._count += 1
    if self._clock is None:
      self.restart_clock()
    else:
      self._timed += sums["tokens"]
    self._bar.update(1)
    if step % self._log_every == 0:
      loss = self._sums["nll"] / self._sums["tokens"]
      rate = self._timed / (time.monotonic() - self._clock)
      row = {
        "loss": loss,
        "bits": loss / math.log(2),
        "grad_norm": self._sums["grad_norm"] / self._count,
        "tokens_per_second": rate,
      }
      shown = {"loss": f"{loss:.4f}", "tokens/s": f"{rate:,.0f}"}
      if self._peak:
        row["mfu"] = rate / self._peak
        shown["mfu"] = f"{row['mfu']:.1%}"
      self._bar.set_postfix(shown)
      self.write(step, "train", row)
      self._sums, self._count = {}, 0
      self.restart_clock()

  def write(self, step: int, split: str, row: dict) -> None:
    """Writes one line of means."""
    if not self._first:
      return
    line = {"step": step, "split": split} | row
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as error:
      raise errors.UserError(
        f"{self._file.name} cannot be written ({error.strerror}); make room "
        "there and start again."
      ) from error
    shown = "  ".join(f"{k} {v:.5g}" for k, v in row.items())
    tqdm.tqdm.write(f"step {step}  {split}  {shown}")
    if self._board:
      for key, value in row.items():
        self._board.add_scalar(f"{split}/{key}", value, step)

  def restart_clock(self) -> None:
    """Times from now on, so that other work is not counted as training."""
    self._clock, self._timed = time.monotonic(), 0.0

  def close(self) -> None:
    """Ends the bar and the files."""
    self._bar.close()
    if self._first:
      self._file.close()
      if self._board:
        self._board.close()


def _forget_after(path, step):
  """Drops the lines of later steps, and a last line cut short."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if row["step"] <= step:
      kept.append(line + "\n")
  fresh = path.with_suffix(".tmp")
  fresh.write_text("".join(kept), encoding="utf-8")
  os.replace(fresh, path)


def _tensorboard(workdir, start):
  """Returns a TensorBoard writer where tensorboardX is installed."""
  try:
    import tensorboardX
  except ImportError:
    logging.info("no TensorBoard files: tensorboardX is not installed")
    return None
  return tensorboardX.SummaryWriter(
    os.path.join(workdir, "tensorboard"), purge_step=start + 1
  )
