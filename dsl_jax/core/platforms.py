"""Choices that depend on the platform for which a program is lowered."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def choose(fn: Callable, cpu: Any, accelerator: Any, *args) -> Any:
  """Returns fn(cpu, *args) on CPUs and fn(accelerator, *args) elsewhere."""
  if cpu == accelerator:
    return fn(cpu, *args)
  return jax.lax.platform_dependent(
    *args,
    cpu=functools.partial(fn, cpu),
    default=functools.partial(fn, accelerator),
  )


def kept(fn: Callable, result: Any, *args) -> Any:
  """Returns `result`, which fn(*args) gave in the forward pass.

  Accelerators compute it again, so that it is not stored.
  """

  def again(_, *args):  # the barrier hides the forward pass from XLA
    return fn(*jax.lax.optimization_barrier(args))

  return jax.lax.platform_dependent(
    result, *args, cpu=lambda result, *_: result, default=again
  )
