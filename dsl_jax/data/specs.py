"""Specs: a name, or a name and a place, `text:/data/*.txt`."""

import difflib
from collections.abc import Sequence


def unknown(kind: str, spec: str, known: Sequence[str]) -> ValueError:
  """Returns the error for a spec that names nothing.

  Args:
    kind: what the spec should have named.
    spec: the spec.
    known: the specs there are.
  """
  names = [x.partition(":")[0] for x in known]
  near = difflib.get_close_matches(spec.partition(":")[0], names, 1, 0)[0]
  return ValueError(
    f"{kind} is {spec!r}, nearest is {known[names.index(near)]!r}; choose one "
    f"of {', '.join(known)}."
  )
