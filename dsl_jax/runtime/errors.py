"""User errors: one sentence that names the key, the value and the fix."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
  """A mistake of the user; its message is one sentence."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Turns what the checks before a run raise into one-line `UserError`s."""
  try:
    yield
  except UserError:
    raise
  except (ValueError, OSError, ImportError) as error:
    raise UserError(" ".join(str(error).split())) from error


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns "; did you mean 'x'?", or all known words when none is close.

  Args:
    word: what the user wrote.
    known: words, possibly dotted; what follows the last dot is compared too.
  """
  known = sorted(known)
  close = difflib.get_close_matches(word, known, 1)
  if not close:
    last = {name.split(".")[-1]: name for name in known}
    matches = difflib.get_close_matches(word.split(".")[-1], last, 1)
    close = [last[name] for name in matches]
  if close:
    return f"; did you mean {close[0]!r}?"
  return f"; use one of {', '.join(known)}."
