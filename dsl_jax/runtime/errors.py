"""User errors: one sentence that names the key, the value and the mend."""

import contextlib
import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake in what the user asked for, told in one sentence."""


@contextlib.contextmanager
def user_errors():
  """Turns what the checks before a run raise into one-line `UserError`s."""
  try:
    yield
  except UserError:
    raise
  except (ValueError, OSError, ImportError) as error:
    raise UserError(" ".join(str(error).split())) from error


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns "; did you mean 'x'?", or the known words when none is near.

  Args:
    word: what the user wrote.
    known: words, possibly dotted; a near last part counts too.

  Returns:
    The end of a sentence.
  """
  known = sorted(known)
  last = {name.split(".")[-1]: name for name in known}
  close = difflib.get_close_matches(word, known, 1) or [
    last[name]
    for name in difflib.get_close_matches(word.split(".")[-1], last, 1)
  ]
  if close:
    return f"; did you mean {close[0]!r}?"
  return f"; use one of {', '.join(known)}."
