"""One-sentence refusals of arguments, before anything is compiled.

What is traced has no value yet and passes.
"""

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def count(name: str, value: int, least: int = 1) -> int:
  """Returns a whole number of at least `least`, or raises a ValueError."""
  try:
    found = operator.index(value)
  except TypeError as error:
    raise ValueError(f"{name} is {value!r}; give a whole number.") from error
  if found < least:
    raise ValueError(f"{name} is {found}; it must be at least {least}.")
  return found


def number(
  name: str, value: float, allowed: Callable[[float], bool], mend: str
) -> None:
  """Refuses a number out of range, NaN and what is no number included.

  Args:
    name: of the argument.
    value: concrete or traced.
    allowed: whether a number is in range.
    mend: what to use instead, for the error.

  Raises:
    ValueError: names argument, value and mend.
  """
  if isinstance(value, jax.core.Tracer):
    return
  try:
    found = float(value)
  except (TypeError, ValueError):
    found = math.nan
  if not allowed(found):
    raise ValueError(f"{name} is {value!r}; {mend}.")


def clean_snr(value: float) -> None:
  """Refuses a scale of committed tokens that is none."""
  number(
    "clean_snr", value, lambda x: 0 < x < math.inf, "use a finite one above 0"
  )


def key(value: jax.Array) -> None:
  """Refuses what is no single typed random key."""
  dtype = getattr(value, "dtype", np.dtype(object))
  if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(f"key is {value!r}; make one with jax.random.key(seed).")
  if value.shape:
    raise ValueError(f"key has shape {value.shape}; give a single key.")


def ids(name: str, value: jax.Array, vocab_size: int, where=True) -> None:
  """Refuses what are no ids [B, L] of the vocabulary.

  Args:
    name: of the argument.
    value: [B, L], concrete or traced.
    vocab_size: V.
    where: which of them count, broadcastable to [B, L].

  Raises:
    ValueError: names the argument and its rank, dtype, or the first bad id.
  """
  if np.ndim(value) != 2 or not np.size(value):
    raise ValueError(
      f"{name} has shape {np.shape(value)}; give ids [B, L], not empty."
    )
  if isinstance(value, jax.core.Tracer):
    return
  array = np.asarray(value)
  if array.dtype.kind not in "iu":
    raise ValueError(f"{name} has dtype {array.dtype}; give integer ids.")
  outside = where & ((array < 0) | (array >= vocab_size))
  if outside.any():
    b, i = (int(x) for x in np.argwhere(outside)[0])
    raise ValueError(
      f"{name} is {int(array[b, i])} at batch {b}, column {i}; ids lie in "
      f"[0, {vocab_size})."
    )
