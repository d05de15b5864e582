"""Joining, restricting and checking paths. Host code on concrete arrays."""

import itertools

import jax
import numpy as np

from dsl_jax.core import checks


def concat(*paths: jax.Array) -> np.ndarray:
  """Runs one path after another.

  Where a path begins with the row on which the one before ends, the row is
  kept once. Otherwise the step between the two rows is a move of its own.

  Args:
    *paths: [T+1, L] or [T+1, B, L].

  Returns:
    path, with the batch axis if any part has it.
  """
  if not paths:
    raise ValueError("paths is empty; give at least one path.")
  parts = [_rows(f"path {i}", p) for i, p in enumerate(paths)]
  if any(p.ndim == 3 for p in parts):
    batch = max(p.shape[1] for p in parts if p.ndim == 3)
    parts = [_batched(p, batch) for p in parts]
  joined = parts[0]
  for p in parts[1:]:
    if p.shape[1:] != joined.shape[1:]:
      raise ValueError(
        f"paths have rows of shape {joined.shape[1:]} and {p.shape[1:]}; "
        "they must agree."
      )
    same = len(joined) and len(p) and np.array_equal(joined[-1], p[0])
    joined = np.concatenate([joined, p[1:] if same else p])
  return joined


def blocks(length: int, *, block: int, inner: jax.Array) -> np.ndarray:
  """Fills the sequence block by block, each block along an inner path.

  Args:
    length: L.
    block: positions of a block; the last block may be shorter.
    inner: path of T rows on `block` positions, used for every block, or on
      `length` positions, of which every block uses its own.

  Returns:
    path, ceil(L / block) T + 1 rows.
  """
  inner, length = _rows("inner", inner), checks.count("length", length)
  if not 1 <= checks.count("block", block) <= length:
    raise ValueError(f"block is {block}; use 1 to {length}, the length.")
  if inner.shape[-1] not in (block, length):
    raise ValueError(
      f"inner covers {inner.shape[-1]} positions; use {block}, the block, or "
      f"{length}, the length."
    )
  shared = inner.shape[-1] == block
  parts = []
  for start in range(0, length, block):
    stop = min(start + block, length)
    path = np.zeros((*inner.shape[:-1], length), np.float32)
    path[..., :start] = np.inf
    columns = slice(0, stop - start) if shared else slice(start, stop)
    path[..., start:stop] = inner[..., columns]
    parts.append(path)
  return concat(*parts)


def hold(path: jax.Array, known_BL: jax.Array) -> np.ndarray:
  """Keeps known positions committed in every row: prompts and infilling.

  Args:
    path: [T+1, L] or [T+1, B, L].
    known_BL: bool, [B, L] or [L], true where the token is given.

  Returns:
    path, with a batch axis if either argument has one.
  """
  path, known = _rows("path", path), np.asarray(known_BL)
  if known.ndim not in (1, 2) or path.shape[-1] != known.shape[-1]:
    raise ValueError(
      f"known_BL has shape {known.shape}, the path length {path.shape[-1]}; "
      "give [L] or [B, L] of that length."
    )
  if known.dtype != bool and not np.isin(known, (0, 1)).all():
    raise ValueError(
      f"known_BL has entries of {known.dtype} other than 0 and 1; give true "
      "where a token is known."
    )
  known = known.astype(bool)
  if known.ndim == 2:
    path = _batched(path, len(known))
  return np.where(known, np.float32(np.inf), path)


def compact(path: jax.Array) -> np.ndarray:
  """Drops rows that move nothing, for every sequence on its own.

  Sequences that need fewer rows repeat their last one, so that the number of
  network calls is that of the busiest sequence.

  Args:
    path: [T+1, L] or [T+1, B, L].

  Returns:
    path with at most as many rows, of the same rank.
  """
  path = _rows("path", path)
  batched = path if path.ndim == 3 else path[:, None]
  step_TB = moving_steps(batched)
  rows = batched[step_TB + 1, np.arange(batched.shape[1])]
  return np.concatenate([path[:1], rows.reshape(-1, *path.shape[1:])])


def moving_steps(path_TBL: np.ndarray, *, together: bool = False) -> np.ndarray:
  """Returns the steps of a path that are worth a network call.

  Args:
    path_TBL: [T+1, B, L].
    together: keep every step up to the last that moves any sequence.

  Returns:
    step_TB, int: which steps each sequence takes, step k leading to row k + 1.
    Sequences that are done earlier repeat the last step, whose row is theirs.
  """
  T, B = len(path_TBL) - 1, path_TBL.shape[1]
  pairs = itertools.pairwise(path_TBL)  # a long path has no room twice
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


def pad(path: jax.Array, rows: int) -> np.ndarray:
  """Repeats the last row, where `generate` stops: one program for many paths.

  Args:
    path: [T+1, L] or [T+1, B, L].
    rows: rows of the result, at least those of the path.

  Returns:
    path of `rows` rows.
  """
  path = _rows("path", path)
  if checks.count("rows", rows) < len(path):
    raise ValueError(
      f"rows is {rows}, but the path has {len(path)}; pad to at least that."
    )
  return np.concatenate([path, np.repeat(path[-1:], rows - len(path), axis=0)])


def check(path: jax.Array, *, rising: bool = False) -> None:
  """Refuses an array that is not a path, naming the row and the column.

  Args:
    path: [T+1, L] or [T+1, B, L].
    rising: refuse moves down as well.

  Raises:
    ValueError: for a wrong rank, NaN, negative entries, a first row other
      than 0 or inf, a last row other than inf, or, if asked, a move down.
  """
  path = _rows("path", path)
  _refuse(path, ~(path >= 0), "an SNR is at least 0, possibly inf")
  first = np.zeros(path.shape, bool)
  first[0] = (path[0] > 0) & np.isfinite(path[0])
  _refuse(path, first, "the first row is 0, or inf where a prompt is")
  last = np.zeros(path.shape, bool)
  last[-1] = np.isfinite(path[-1])
  _refuse(path, last, "the last row is inf everywhere")
  if rising:
    falls = np.zeros(path.shape, bool)
    falls[1:] = path[1:] < path[:-1]
    _refuse(path, falls, "here a path may not fall")


def _rows(name, path):
  """The array of an argument that holds rows of SNRs."""
  try:
    path = np.asarray(path, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name} is no array of numbers; give SNRs.") from error
  if path.ndim not in (2, 3) or not path.size:
    raise ValueError(
      f"{name} has shape {path.shape}; use [T+1, L] or [T+1, B, L], not empty."
    )
  return path


def _refuse(path, bad, rule):
  if bad.any():
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    axes = ("row", "column") if path.ndim == 2 else ("row", "batch", "column")
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at))
    raise ValueError(f"path is {path[at]} at {where}; {rule}.")


def _batched(path, batch):
  path = path[:, None] if path.ndim == 2 else path
  if path.shape[1] not in (1, batch):
    raise ValueError(
      f"the path has batch {path.shape[1]}, another argument {batch}; they "
      "must agree."
    )
  return np.broadcast_to(path, (len(path), batch, path.shape[-1]))
