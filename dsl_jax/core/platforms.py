"""What depends on the platform for which a program is lowered."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Platform(NamedTuple):
  """Sizes and choices that suit a kind of device."""

  min_rows: int  # of a chunk of the vocabulary: fewer make slow products,
  max_rows: int  # and more make slow copies.
  chunk_scores: int  # of a chunk with rows between the two
  whole_scores: int  # up to here one chunk is faster: it needs no copy
  tile_scores: int  # of one chunk for one tile of positions, at most
  multiple: int  # of the rows of a chunk
  attention_scores: int  # of a tile of attention's queries, about
  unroll: int  # as many of these tiles run without a loop
  recomputes: bool  # elementwise results in the backward pass


# What fits its cache.
CPU = Platform(512, 4096, 1 << 20, 1 << 21, 1 << 23, 1, 1 << 24, 1, False)
# Few large kernels, whose f32 scores take at most 512 MB; slices in a loop
# would be kernels of their own.
GPU = Platform(4096, 16384, 1 << 27, 1 << 26, 1 << 27, 128, 1 << 27, 4, True)
# A loop starts no kernels from the host, and 16 GB is all that a v5e has.
TPU = Platform(1024, 4096, 1 << 24, 1 << 24, 1 << 25, 128, 1 << 24, 1, True)


def choose(fn: Callable, *args) -> Any:
  """Returns fn(platform, *args) for the platform of the program."""
  return jax.lax.platform_dependent(
    *args,
    cpu=functools.partial(fn, CPU),
    tpu=functools.partial(fn, TPU),
    default=functools.partial(fn, GPU),
  )


def kept(fn: Callable, platform: Platform, result: Any, *args) -> Any:
  """Returns `result`, which fn(*args) gave in the forward pass.

  Accelerators compute it again, so that it is not stored.
  """
  if not platform.recomputes:
    return result
  # The barrier hides the forward pass from XLA.
  return fn(*jax.lax.optimization_barrier(args))
