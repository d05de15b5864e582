"""Training batches by arithmetic, evaluation batches in order.

The global sample number i = step * batch_size + j belongs to epoch i // N and
is row P(i mod N), where P is a permutation keyed by (seed, epoch). Nothing is
stored and nothing is dropped: a batch may span two epochs, and a resumed job
sees what it would have seen, on any number of processes.
"""

import math
from collections.abc import Iterator

import numpy as np

from dsl_jax.data.packing import Packed, scored

_ROUNDS = 8


def _mix(x):
  """A bijection of 64 bits; each output bit depends on each input bit."""
  with np.errstate(over="ignore"):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(x: np.ndarray, key: np.ndarray, side: np.uint64) -> np.ndarray:
  """A keyed bijection of 0..side^2-1, every element under its own key."""
  left, right = np.divmod(x, side)
  for i in range(_ROUNDS):
    scrambled = _mix(_mix(key + np.uint64(i)) + right)
    left, right = right, (left + scrambled % side) % side
  return left * side + right


def row_at(samples: np.ndarray, num_rows: int, seed: int) -> np.ndarray:
  """Returns int64 [B], the row of every global sample number.

  A Feistel network on the smallest square grid that holds the rows is a
  bijection; it is applied again to values outside 0..num_rows-1 until they are
  inside (cycle walking), which makes it a bijection of the rows.
  """
  epoch, position = np.divmod(samples, num_rows)
  side = np.uint64(math.isqrt(num_rows - 1) + 1)
  key = _mix(_mix(np.uint64(seed % 2**64)) + epoch.astype(np.uint64))
  rows = _feistel(position.astype(np.uint64), key, side)
  while (outside := rows >= num_rows).any():
    rows[outside] = _feistel(rows[outside], key[outside], side)
  return rows.astype(np.int64)


def batch_at(
  packed: Packed,
  step: int,
  *,
  batch_size: int,
  seed: int,
  shard: slice = slice(None),
) -> np.ndarray:
  """Returns the rows of a step's batch, int32 [B, L], the first step being 0.

  A process reads only the `shard` of the batch that its devices hold.
  """
  N = len(packed.tokens_NL)
  if not 1 <= batch_size <= N:
    raise ValueError(
      f"batch_size is {batch_size} but the data have {N} rows; use 1 to {N}."
    )
  samples = step * batch_size + np.arange(batch_size)[shard]
  return np.asarray(packed.tokens_NL[row_at(samples, N, seed)], np.int32)


def eval_batches(
  rows_NL: np.ndarray, batch_size: int, eos_id: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields tokens int32 [B, L] and mask float32 [B, L].

  The mask is 0 in the rows of zeros that fill up the last batch, and where
  tokens are not `packing.scored`.
  """
  for first in range(0, len(rows_NL), batch_size):
    rows_BL = np.asarray(rows_NL[first : first + batch_size], np.int32)
    padding = [(0, batch_size - len(rows_BL)), (0, 0)]
    mask_BL = np.float32(scored(rows_BL, eos_id))
    yield np.pad(rows_BL, padding), np.pad(mask_BL, padding)
