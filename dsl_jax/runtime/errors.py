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

  What follows the last dot of dotted words is compared too.
  """
  known = sorted(known)
  last = {name.split(".")[-1]: name for name in known}
  close = difflib.get_close_matches(word, known, 1)
  for match in close or difflib.get_close_matches(word.split(".")[-1], last, 1):
    return f"; did you mean {last.get(match, match)!r}?"
  return f"; use one of {', '.join(known)}."
