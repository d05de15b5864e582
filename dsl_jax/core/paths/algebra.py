"""Joins, restricts and checks paths, [T+1, L] or [T+1, B, L], on the host.

A result has a batch axis if any argument has one.
"""

import itertools

import numpy as np

from dsl_jax.core import checks


def _as_path(name, path):
  try:
    path = np.asarray(path, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} is not an array; give SNRs.") from error
  if path.ndim not in (2, 3) or not path.size:
    raise ValueError(
      f"{name} has shape {path.shape}; use [T+1, L] or [T+1, B, L], not empty."
    )
  return path


def _with_batch(path, batch):
  path = path[:, None] if path.ndim == 2 else path
  if path.shape[1] not in (1, batch):
    raise ValueError(
      f"the path has batch {path.shape[1]}, another argument {batch}; they "
      "must agree."
    )
  return np.broadcast_to(path, (len(path), batch, path.shape[-1]))


def _reject(path, bad, rule):
  if bad.any():
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    axes = ("row", "column") if path.ndim == 2 else ("row", "batch", "column")
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at))
    raise ValueError(f"path is {path[at]} at {where}; {rule}.")


def concat(*paths: checks.Array) -> np.ndarray:
  """Concatenates paths in time.

  Where a path begins with the last row of the one before, the row is kept once.
  Otherwise the step between the two rows is a move of its own.
  """
  if not paths:
    raise ValueError("paths is empty; give at least one path.")
  arrays = [_as_path(f"path {i}", path) for i, path in enumerate(paths)]
  if any(path.ndim == 3 for path in arrays):
    batch = max(path.shape[1] for path in arrays if path.ndim == 3)
    arrays = [_with_batch(path, batch) for path in arrays]
  joined = arrays[0]
  for path in arrays[1:]:
    if path.shape[1:] != joined.shape[1:]:
      raise ValueError(
        f"paths have rows of shape {joined.shape[1:]} and {path.shape[1:]}; "
        "they must agree."
      )
    same = np.array_equal(joined[-1], path[0])
    joined = np.concatenate([joined, path[1:] if same else path])
  return joined


def blocks(length: int, *, block: int, inner: checks.Array) -> np.ndarray:
  """Fills ceil(L / block) blocks, one after the other along an inner path.

  Args:
    block: positions of a block; the last block may be shorter.
    inner: path of T rows on `block` positions, used for every block, or on
      `length` positions, of which every block uses its own.
  """
  inner, length = _as_path("inner", inner), checks.count("length", length)
  if not 1 <= checks.count("block", block) <= length:
    raise ValueError(f"block is {block}; use 1 to {length}, the length.")
  if inner.shape[-1] not in (block, length):
    raise ValueError(
      f"inner covers {inner.shape[-1]} positions; use {block}, the block, or "
      f"{length}, the length."
    )
  shared = inner.shape[-1] == block
  paths = []
  for start in range(0, length, block):
    stop = min(start + block, length)
    path = np.zeros((*inner.shape[:-1], length), np.float32)
    path[..., :start] = np.inf
    columns = slice(0, stop - start) if shared else slice(start, stop)
    path[..., start:stop] = inner[..., columns]
    paths.append(path)
  return concat(*paths)


def hold(path: checks.Array, known_BL: checks.Array) -> np.ndarray:
  """Commits known positions, [B, L] or [L], in every row, as of a prompt."""
  path, known = _as_path("path", path), np.asarray(known_BL)
  if known.ndim not in (1, 2) or path.shape[-1] != known.shape[-1]:
    raise ValueError(
      f"known_BL has shape {known.shape}, the path length {path.shape[-1]}; "
      "give [L] or [B, L] of that length."
    )
  if not np.isin(known, (0, 1)).all():
    raise ValueError(
      f"known_BL has {known.dtype} entries other than 0 and 1; give true where "
      "a token is known."
    )
  known = known.astype(bool)
  if known.ndim == 2:
    path = _with_batch(path, len(known))
  return np.where(known, np.float32(np.inf), path)


def moving_steps(
  path_TBL: checks.Array, *, together: bool = False
) -> np.ndarray:
  """Returns the steps of a path that move a token.

  Args:
    path_TBL: [T+1, B, L].
    together: keep every step up to the last that moves any sequence.

  Returns:
    step_TB, int: which steps each sequence takes. Sequences that are done
    earlier repeat the last step, whose row is theirs.
  """
  T, B = len(path_TBL) - 1, path_TBL.shape[1]
  pairs = itertools.pairwise(path_TBL)  # no copy of a long path
  moves_TB = np.array([np.any(a != b, axis=-1) for a, b in pairs], bool)
  moves_TB = moves_TB.reshape(T, B)
  if together:
    last = np.max(np.nonzero(moves_TB)[0], initial=-1) + 1
    return np.repeat(np.arange(last)[:, None], B, axis=1)
  count_B = moves_TB.sum(axis=0)
  step_TB = np.argsort(~moves_TB, axis=0, kind="stable")
  step_TB = step_TB[: count_B.max(initial=0)]
  done = np.arange(len(step_TB))[:, None] >= count_B
  return np.where(done, T - 1, step_TB)


def compact(path: checks.Array) -> np.ndarray:
  """Drops the steps that move nothing, for every sequence on its own.

  Sequences that need fewer steps repeat their last row, so the number of
  network calls is that of the sequence with the most steps.
  """
  path = _as_path("path", path)
  batched = path if path.ndim == 3 else path[:, None]
  step_TB = moving_steps(batched)
  rows = batched[step_TB + 1, np.arange(batched.shape[1])]
  return np.concatenate([path[:1], rows.reshape(-1, *path.shape[1:])])


def pad(path: checks.Array, rows: int) -> np.ndarray:
  """Repeats the last row, so that paths of other lengths share a program."""
  path = _as_path("path", path)
  if checks.count("rows", rows) < len(path):
    raise ValueError(
      f"rows is {rows}, but the path has {len(path)}; pad to at least that."
    )
  return np.concatenate([path, np.repeat(path[-1:], rows - len(path), axis=0)])


def check(path: checks.Array, *, rising: bool = False) -> None:
  """Raises unless an array is a path, and rising if asked.

  Raises:
    ValueError: with row and column, for a wrong rank, NaN, negative entries, a
      first row other than 0 or inf, a last row other than inf, or a move down.
  """
  path = _as_path("path", path)
  row = np.arange(len(path)).reshape(-1, *[1] * (path.ndim - 1))
  positive, finite = path > 0, np.isfinite(path)
  _reject(path, ~(path >= 0), "an SNR must be at least 0 and may be inf")
  first = (row == 0) & positive & finite
  _reject(path, first, "the first row must be 0, or inf at a prompt")
  last = (row == len(path) - 1) & finite
  _reject(path, last, "the last row must be inf")
  if rising:
    falls = np.zeros(path.shape, bool)
    falls[1:] = path[1:] < path[:-1]
    _reject(path, falls, "the path must not fall")
