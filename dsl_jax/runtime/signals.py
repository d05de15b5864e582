"""SIGTERM and Ctrl-C before there is anything to save; imports nothing slow."""

import os
import signal
import sys
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _leave_to_the_watch(number, frame):
  """A handler that does nothing: the watching thread ends the process."""


def restore() -> None:
  """Gives signals back to Python's own handlers, if `end_at_once` took them."""
  if signal.getsignal(signal.SIGTERM) is not _leave_to_the_watch:
    return
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once() -> None:
  """Ends the process on a signal, with code 0, until another handler is set.

  Python's own handlers would wait until a program is compiled.
  """
  if signal.getsignal(signal.SIGTERM) is _leave_to_the_watch:
    return
  sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def watch():
    while True:
      number = os.read(reader, 1)[0]
      if signal.getsignal(number) is _leave_to_the_watch:
        name = signal.Signals(number).name
        os.write(1, f"stopped by {name}; there is nothing to save\n".encode())
        os._exit(0)

  # The handlers come last: before them no signal is lost.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=watch, daemon=True).start()
  for number in SIGNALS:
    signal.signal(number, _leave_to_the_watch)
