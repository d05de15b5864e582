"""Cuts a path into pieces that share programs. Host code."""

import itertools
from collections.abc import Iterator

import numpy as np

from dsl_jax.core.paths import algebra
from dsl_jax.samplers import driver

ROWS = 64  # of a piece; shorter paths have room in it too
SHORT = 8  # fewer hard rows among soft ones are not worth a piece


def cut(
  path_TBL: np.ndarray, rows: int, *, together: bool, soft: bool
) -> Iterator[tuple[driver.Rows, bool]]:
  """Cuts a path where it has run `rows` rows and where it turns hard or soft.

  A row is hard if no token has a finite SNR before or after it: moves between
  mask and commitment need no channel. Steps that move nothing are dropped.

  Args:
    path_TBL: [T+1, B, L].
    rows: of a piece, at most.
    together: drop only steps after the last that moves any sequence; without
      it every sequence drops its own.
    soft: take no row for hard: a policy bends them.

  Yields:
    (piece, soft): arrays on the host, padded to the power of two that has room
    for `rows`, and whether the piece is not hard.
  """
  step_TB = algebra.moving_steps(path_TBL, together=together)
  last = len(step_TB)
  rows = min(rows, max(last, ROWS))
  bound = 1 << (rows - 1).bit_length()
  sequence_B = np.arange(path_TBL.shape[1])
  soft_T = np.ones(last, bool)
  if not soft:
    soft_T = _soft(path_TBL, step_TB, sequence_B)
  edges = sorted({*range(0, last, rows), *_turns(soft_T), last})
  for first, stop in itertools.pairwise(edges):
    step_RB = step_TB[first:stop]
    snr_RBL = path_TBL[step_RB + 1, sequence_B]
    missing = ((0, bound - len(step_RB)), (0, 0))
    piece = driver.Rows(
      np.pad(snr_RBL, (*missing, (0, 0)), "edge"),
      np.pad(step_RB, missing, "edge").astype(np.int32),
      *map(np.int32, (first, stop, last)),
    )
    yield piece, bool(soft_T[first])


def _soft(path_TBL, step_TB, sequence_B):
  """Which rows are not hard; short hard stretches count as their neighbours."""
  finite = lambda row_BL: np.any((row_BL > 0) & np.isfinite(row_BL), axis=-1)
  finite_TB = np.array([finite(row_BL) for row_BL in path_TBL])
  finite_TB = finite_TB[:-1] | finite_TB[1:]
  soft_T = np.any(finite_TB[step_TB, sequence_B], axis=1)
  turns = _turns(soft_T)
  for stretch in np.split(np.arange(len(soft_T)), turns):
    if len(stretch) < SHORT and turns:
      soft_T[stretch] = True
  return soft_T


def _turns(soft_T):
  """Rows that differ in kind from the one before."""
  return (np.flatnonzero(soft_T[1:] != soft_T[:-1]) + 1).tolist()
