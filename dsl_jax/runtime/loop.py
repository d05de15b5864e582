"""Host-side helpers of a training loop: prefetch, and when to stop."""

import concurrent.futures
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


def prefetch(load: Callable, start: int, stop: int) -> Iterator:
  """Loads one batch ahead in a thread.

  Args:
    load: number of a batch -> the batch.
    start: the first batch.
    stop: one past the last.

  Yields:
    (n + 1, load(n)): the number of updates done once the batch is used.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch = pool.submit(load, start)
    for step in range(start + 1, stop + 1):
      ready, batch = batch.result(), pool.submit(load, step)
      yield step, ready


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
