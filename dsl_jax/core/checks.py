"""Checks of arguments, before anything is compiled.

An error names the argument, its value and the fix in one sentence. Traced
values are not known yet and pass.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray  # on a device or on the host


class Section:
  """A dataclass that checks the range of every field, see `within`."""

  def __post_init__(self):
    for field in dataclasses.fields(self):  # type: ignore
      value, allowed = getattr(self, field.name), field.metadata
      if allowed and not allowed["contains"](value):
        raise ValueError(f"{field.name} is {value!r:.80}; {allowed['fix']}.")


def within(contains: Callable, fix: str) -> Callable[[Any], Any]:
  """Returns default -> a field whose values `contains` accepts."""
  metadata = {"contains": contains, "fix": fix}
  return lambda default: dataclasses.field(default=default, metadata=metadata)


def one_of(*words: str) -> str:
  """Returns a field that holds one of the words, by default the first."""
  return within(lambda v: v in words, f"use {' or '.join(words)}")(words[0])


def count(name: str, value: int) -> int:
  """Returns an integer of at least 1, or raises a ValueError."""
  try:
    number = operator.index(value)
  except TypeError as error:
    raise ValueError(f"{name} is {value!r}; give an integer.") from error
  if number < 1:
    raise ValueError(f"{name} is {number}; it must be at least 1.")
  return number


def number(
  name: str, value: float, allowed: Callable[[float], bool], fix: str
) -> None:
  """Rejects a value that is not a number or that `allowed` is false for."""
  if isinstance(value, jax.core.Tracer):
    return
  try:
    as_float = float(value)
  except (TypeError, ValueError):
    as_float = math.nan
  if not allowed(as_float):
    raise ValueError(f"{name} is {value!r}; {fix}.")


def word(name: str, value: str, known: Collection[str]) -> None:
  """Rejects a word that is not known."""
  if value not in known:
    raise ValueError(f"{name} is {value!r}; use {', '.join(known)}.")


def positive(name: str, value: float) -> None:
  """Rejects a value that is not finite and above 0."""
  number(name, value, lambda x: 0 < x < math.inf, "use a finite one above 0")


def not_negative(name: str, value: float) -> None:
  """Rejects a value that is negative or infinite."""
  number(
    name, value, lambda x: 0 <= x < math.inf, "use a finite one, 0 or more"
  )


def probability(name: str, value: float) -> None:
  """Rejects a value outside [0, 1]."""
  number(name, value, lambda x: 0 <= x <= 1, "it must lie in [0, 1]")


def snr_grid(value: Array) -> None:
  """Rejects anything but a vector of finite, increasing SNRs."""
  if isinstance(value, jax.core.Tracer):
    return
  grid = np.asarray(value)
  vector = grid.ndim == 1 and grid.size and grid.dtype.kind in "iuf"
  rising = vector and grid[0] >= 0 and np.all(np.diff(grid) > 0)
  if not (rising and np.isfinite(grid[-1])):
    raise ValueError(
      f"snr_grid is {grid}; give finite, non-negative, increasing SNRs."
    )


def key(value: jax.Array) -> None:
  """Rejects anything but a single typed random key."""
  dtype = getattr(value, "dtype", np.dtype(object))
  if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(f"key is {value!r}; make one with jax.random.key(seed).")
  if value.shape:
    raise ValueError(f"key has shape {value.shape}; give a single key.")


def ids(name: str, value: jax.Array, vocab_size: int, where=True) -> None:
  """Rejects anything but ids [B, L] below V, where they count."""
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
      f"{name} is {int(array[b, i])} at batch {b}, column {i}; ids must "
      f"lie in [0, {vocab_size})."
    )
