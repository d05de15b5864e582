"""Host-side helpers of a training loop: prefetch, stops, stalls, a profile."""

import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

Job = TypeVar("Job")
Data = TypeVar("Data")


def calls(
  start: int, stop: int, most: int, *edges: int
) -> Iterator[tuple[int, int]]:
  """Splits steps start..stop-1 into calls of several steps.

  Args:
    start: the first step.
    stop: one past the last.
    most: steps of a call.
    *edges: a call ends at every multiple of these, 0 for none.

  Yields:
    (first, count) of each call.
  """
  while start < stop:
    ends = [start - start % edge + edge for edge in edges if edge]
    end = min(start + most, stop, *ends)
    yield start, end - start
    start = end


def prefetch(
  load: Callable[[Job], Data], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Data]]:
  """Yields (job, load(job)) in order; loads one job ahead in a thread."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ahead = None
    for job in jobs:
      following = job, pool.submit(load, job)
      if ahead:
        yield ahead[0], ahead[1].result()
      ahead = following
    if ahead:
      yield ahead[0], ahead[1].result()


def due(step: int, every: int, last: bool) -> bool:
  """Returns whether a task of every so many steps (0: never) is due."""
  return every > 0 and (last or step % every == 0)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Turns SIGTERM into a question that the loop asks after every step.

  Yields:
    step -> whether to stop there; the same answer on every process.
  """
  if jax.process_count() > 1:  # JAX receives the signal and all agree on a step
    yield multihost_utils.reached_preemption_sync_point
    return
  received = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: received.set())
  try:
    yield lambda step: received.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watch(seconds: float = 300.0) -> Iterator[Callable[[str], None]]:
  """Reports on stderr when the loop of this host is stalled.

  Every host reports what it waits for, so the one that holds up a pod is the
  one that does not wait for the devices.

  Args:
    seconds: between checks whether there was progress since the last one.

  Yields:
    A function to call with what the host does next.
  """
  activity, since = "starting", time.monotonic()
  finished = threading.Event()

  def report():
    while not finished.wait(seconds):
      stalled = time.monotonic() - since
      if stalled >= seconds:
        host = f"host {jax.process_index()} of {jax.process_count()}"
        print(
          f"{host} stalled for {stalled:.3g} s: {activity}", file=sys.stderr
        )

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
  workdir: str, first: int, count: int
) -> Iterator[Callable[[int], None]]:
  """Writes WORKDIR/profile for `count` steps from the step `first` on.

  Args:
    workdir: of the run.
    first: 0 for no profile.
    count: steps.

  Yields:
    A function to call with the number of steps done, at the start and after
    every call.
  """
  running = False

  def after(step):
    nonlocal running
    inside = first and first - 1 <= step < first - 1 + count
    if inside and not running:
      jax.profiler.start_trace(os.path.join(workdir, "profile"))
    elif running and not inside:
      jax.profiler.stop_trace()
    running = inside

  try:
    yield after
  finally:
    if running:
      jax.profiler.stop_trace()
