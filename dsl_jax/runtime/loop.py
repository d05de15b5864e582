"""Host-side helpers of a training loop: prefetch, stops, stalls, a profile."""

import concurrent.futures
import contextlib
import itertools
import math
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from dsl_jax.runtime import signals, storage


def say(text: str) -> None:
  """Prints on one process only."""
  if jax.process_index() == 0:
    print(text)


def calls(
  start: int, stop: int, most: int, *edges: int
) -> Iterator[tuple[int, int]]:
  """Splits steps start..stop-1 into calls (first, count) of at most `most`.

  A call ends at every multiple of each edge that is not 0.
  """
  while start < stop:
    ends = [start - start % edge + edge for edge in edges if edge]
    end = min(start + most, stop, *ends)
    yield start, end - start
    start = end


def prefetch(load: Callable, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
  """Yields (job, load(job)) in order; loads one job ahead in a thread."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    loads: Iterable = ((job, pool.submit(load, job)) for job in jobs)
    for (job, data), _ in itertools.pairwise(itertools.chain(loads, [None])):
      yield job, data.result()


def is_due(step: int, every: int, last: bool) -> bool:
  """Returns whether a task of every so many steps (0: never) is due."""
  return every > 0 and (last or step % every == 0)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Yields step -> whether SIGTERM or Ctrl-C asks all processes to stop.

  Signals are handled from the first call on, when there is a step to save.
  """
  if jax.process_count() > 1:  # JAX receives the signal and all agree on a step
    yield multihost_utils.reached_preemption_sync_point
    return
  received = threading.Event()
  before: dict = {}

  def handle(number, _):
    received.set()
    if number == signal.SIGINT:  # the second one stops at once
      signal.signal(number, signal.default_int_handler)

  def stopping(step):
    if not before:
      before.update({x: signal.signal(x, handle) for x in signals.SIGNALS})
    return received.is_set()

  try:
    yield stopping
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def watch(seconds: float = 300.0) -> Iterator[Callable[[str], None]]:
  """Yields a function to call with what the loop of this host does next.

  Reports on stderr when it was not called for so many seconds. A host that
  reports anything but waiting for the devices is the one that stalls the pod.
  """
  activity, since = "starting", time.monotonic()
  finished = threading.Event()

  def report():
    while not finished.wait(seconds):
      stalled = time.monotonic() - since
      if stalled >= seconds:
        host = f"host {jax.process_index()} of {jax.process_count()}"
        sys.stderr.write(f"{host} stalled for {stalled:.3g} s: {activity}\n")

  def note(next_activity):
    nonlocal activity, since
    activity, since = next_activity, time.monotonic()

  thread = threading.Thread(target=report, daemon=True)
  thread.start()
  try:
    yield note
  finally:
    finished.set()
    thread.join()


@contextlib.contextmanager
def profile(
  workdir: str, start: int, first: int, count: int
) -> Iterator[Callable[[int], None]]:
  """Writes WORKDIR/profile of `count` steps from step `first` (0: none) on.

  Yields a function to call with the number of steps done, from `start` on; a
  window before it is not profiled. Whole programs are: where one makes several
  steps, from the next one on and to its end.
  """
  waiting, end = first > 0 and start < first - 1 + count, None
  folder = storage.to_path(workdir) / "profile"
  scratch = tempfile.TemporaryDirectory()  # JAX writes none to a bucket
  local = folder if storage.is_local(folder) else pathlib.Path(scratch.name)

  def after(step):
    nonlocal waiting, end
    if waiting and step >= first - 1:
      jax.profiler.start_trace(str(local))
      waiting, end = False, step + count
    elif end is not None and step >= end:
      jax.profiler.stop_trace()
      if local != folder:
        storage.copy_folder(local, folder)
      end = None

  after(start)
  try:
    yield after
  finally:
    waiting = False
    after(math.inf)
    scratch.cleanup()
