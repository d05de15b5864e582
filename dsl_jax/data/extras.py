"""Optional packages: imported where they are used; their errors."""

import contextlib
import importlib
import types
from collections.abc import Iterator


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
  except Exception as error:  # every library has its own exceptions
    cause = error.__cause__ or error
    reason = str(cause).partition("\n")[0].rstrip(".: ")
    raise ValueError(
      f"{name} cannot be read ({type(cause).__name__}: {reason}); {fix}"
    ) from error
