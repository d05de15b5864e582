"""Host-side helpers of a training loop: prefetch, stops, stalls, a profile."""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils


def calls(
  start: int, stop: int, most: int, *edges: int
) -> Iterator[tuple[int, int]]:
  """Cuts a run into calls of several steps that cross no edge.

  Args:
    start: the first step.
    stop: one past the last.
    most: steps of a call.
    *edges: a call ends on every multiple of these, 0 for none.

  Yields:
    (first, count): of each call.
  """
  while start < stop:
    ends = [start + most, stop]
    ends += [start - start % edge + edge for edge in edges if edge]
    yield start, min(ends) - start
    start = min(ends)


def prefetch(load: Callable, jobs: Iterable) -> Iterator:
  """Loads one job ahead in a thread.

  Args:
    load: job -> what it needs.
    jobs: in order.

  Yields:
    (job, load(job)).
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    ahead = None
    for job in itertools.chain(jobs, [None]):
      following = job and (job, pool.submit(load, job))
      if ahead:
        yield ahead[0], ahead[1].result()
      ahead = following


def due(step: int, every: int, last: bool) -> bool:
  """Returns whether something done every so many steps (0: never) is due."""
  return every > 0 and (last or step % every == 0)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
  """Turns SIGTERM into a question the loop asks after every step.

  Yields:
    step -> whether to stop there; the same answer on every process.
  """
  if jax.process_count() > 1:  # JAX listens for the notice and agrees on it
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watch(seconds: float = 300.0) -> Iterator[Callable[[str], None]]:
  """Reports on stderr when this host's loop stands still.

  Every host reports what it waits for, so the one that holds up a pod is the
  one that does not wait for the devices.

  Args:
    seconds: without news after which to report, and again after as many.

  Yields:
    A function to call with what the host does next.
  """
  doing, news, over = ["starting"], threading.Event(), threading.Event()

  def report():
    still = 0.0
    while not over.is_set():
      if news.wait(seconds):
        news.clear()
        still = 0.0
        continue
      still += seconds
      host = f"host {jax.process_index()} of {jax.process_count()}"
      print(f"{host} stands still for {still:g} s: {doing[0]}", file=sys.stderr)

  def note(what):
    doing[0] = what
    news.set()

  thread = threading.Thread(target=report, daemon=True)
  thread.start()
  try:
    yield note
  finally:
    over.set()
    news.set()
    thread.join()


@contextlib.contextmanager
def profile(workdir: str, first: int, count: int) -> Iterator[Callable]:
  """Writes WORKDIR/profile for `count` steps from the step `first` on.

  Args:
    workdir: of the run.
    first: 0 for no profile.
    count: steps.

  Yields:
    A function to call with the number of every step that is over.
  """
  running = False

  def after(step):
    nonlocal running
    if first and not running and first - 1 <= step < first - 1 + count:
      jax.profiler.start_trace(os.path.join(workdir, "profile"))
      running = True
    elif running and step >= first - 1 + count:
      jax.profiler.stop_trace()
      running = False

  try:
    yield after
  finally:
    if running:
      jax.profiler.stop_trace()
