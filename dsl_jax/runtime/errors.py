"""User errors: one sentence that names the key, the value and the fix."""

import contextlib
import difflib
import importlib
import io
import sys
import types
from collections.abc import Iterable, Iterator

_BUCKET_PACKAGES = ("aiohttp", "gcsfs", "google")  # no OSErrors of theirs


class UserError(ValueError):
  """A mistake of the user: one sentence, its control characters escaped."""

  def __init__(self, text: str):
    shown = (x if x.isprintable() else ascii(x)[1:-1] for x in text)
    super().__init__("".join(shown))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns what the checks before a run raise into one-line `UserError`s."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    package = type(error).__module__.partition(".")[0]
    known = isinstance(error, ValueError | OSError | ImportError)
    if not known and package not in _BUCKET_PACKAGES:
      raise
    raise UserError(" ".join(describe(error).split())) from error


def describe(error: Exception, place: str = "") -> str:
  """Returns what is wrong; of the system's errors the reason and the place."""
  if not isinstance(error, OSError) or not error.strerror:
    return str(error)
  place = str(error.filename or place)
  return f"{error.strerror}{place and f': {place}'}; fix that and start again."


def escape_output() -> None:
  """Makes print escape what the encoding of the terminal lacks."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def nearest(word: str, known: Iterable[str], *, whole: bool = False) -> str:
  """Returns "; did you mean 'x'?", or all known words when none is close.

  What follows the last dot of dotted words is compared too. With `whole` all
  known words follow in any case.
  """
  known = sorted(known)
  last = {name.split(".")[-1]: name for name in known}
  close = difflib.get_close_matches(word, known, 1)
  for match in close or difflib.get_close_matches(word.split(".")[-1], last, 1):
    hint = f"; did you mean {last.get(match, match)!r}?"
    return f"{hint} There are {', '.join(known)}." if whole else hint
  return f"; use one of {', '.join(known)}."


def require(module: str, extra: str) -> types.ModuleType:
  """Imports an optional module; an ImportError names the extra that has it."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ImportError(
      f"the package {error.name!r} is not installed; "
      f"pip install dsl_jax[{extra}]."
    ) from error


@contextlib.contextmanager
def reading(name: str, fix: str) -> Iterator[None]:
  """Turns the exceptions of a library's reader into one sentence."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # every library has its own exceptions
    cause = error.__cause__ or error
    reason = str(cause)[:300].partition("\n")[0].rstrip(".: ")
    raise UserError(
      f"{name} cannot be read ({type(cause).__name__}: {reason}); {fix}"
    ) from error
