"""Optional packages: imported where they are used."""

import importlib
import types


def require(module: str, extra: str) -> types.ModuleType:
  """Imports an optional module.

  Args:
    module: its import name.
    extra: the extra of this project that installs it.

  Raises:
    ImportError: it is not installed; the message names the extra.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ImportError(
      f"the package {error.name!r} is not installed; "
      f"pip install dsl_jax[{extra}]."
    ) from error
