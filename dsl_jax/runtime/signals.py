"""SIGTERM and Ctrl-C before there is anything to save; imports nothing slow."""

import io
import os
import re
import signal
import sys
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OTHER_MODE = r"(^|-mode[= ])(?!train\b)[a-z]"  # in a command line


def _ignore(number, frame):
  """A handler that does nothing: the thread of `end_at_once` acts."""


def restore() -> None:
  """Gives signals back to Python's own handlers, if `end_at_once` took them."""
  if signal.getsignal(signal.SIGTERM) is not _ignore:
    return
  signal.set_wakeup_fd(-1)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


def _report(kind, error, trace):
  """An exception hook: Ctrl-C is one sentence, no crash of other threads."""
  if not issubclass(kind, KeyboardInterrupt):
    return sys.__excepthook__(kind, error, trace)
  sys.stderr.write("stopped by SIGINT\n")
  os._exit(128 + signal.SIGINT)


def end_at_once() -> None:
  """Ends the process on a signal, until another handler is set.

  The code is 0 if it was to train, otherwise 128 and the signal, as a shell has
  it. Python's own handlers would wait until a program is compiled.
  """
  if signal.getsignal(signal.SIGTERM) is _ignore:
    return
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True)
  sys.excepthook = _report
  is_other = re.search(_OTHER_MODE, " ".join(sys.argv[1:]))
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def watch():
    while True:
      number = os.read(reader, 1)[0]
      if signal.getsignal(number) is _ignore:
        name = signal.Signals(number).name
        os.write(1, f"stopped by {name}; there is nothing to save\n".encode())
        os._exit(128 + number if is_other else 0)

  # The handlers come last: before them no signal is lost.
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=watch, daemon=True).start()
  for number in SIGNALS:
    signal.signal(number, _ignore)
