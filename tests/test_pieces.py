"""A path is cut into hard and soft pieces, and nothing else changes."""

import jax
import numpy as np
import pytest
from oracle import tiny

from dsl_jax import paths, samplers
from dsl_jax.samplers import pieces

CLEAN = 100.0
KEY = jax.random.key(0)
L = 30


def hybrid():
  """Soft rows, 20 hard ones, a soft remasking, hard rows up to the end."""
  soft = np.asarray(paths.geometric(6, L, snr_min=1.0, snr_max=9.0))
  hard = np.asarray(paths.left_to_right(L))
  again = hard[20].copy()
  again[:4] = 2.5
  return np.concatenate([soft[:-1], hard[:21], again[None], hard[20:]])


def cut(path, rows, *, together=False, soft=False):
  return list(pieces.cut(path[:, None], rows, together=together, soft=soft))


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
@pytest.mark.parametrize("together", [False, True])
def test_pieces_are_the_path(rows, together):
  path = hybrid()
  found, steps = [], []
  for piece, _ in cut(path, rows, together=together):
    count = piece.stop - piece.first
    assert 0 < count <= rows <= len(piece.snr_RBL)
    assert piece.first == len(found)
    found.extend(piece.snr_RBL[:count, 0])
    steps.extend(piece.step_RB[:count, 0])
  moving = np.any(path[1:] != path[:-1], axis=1)
  kept = np.ones_like(moving) if together else moving
  np.testing.assert_array_equal(found, path[1:][kept])
  np.testing.assert_array_equal(steps, np.flatnonzero(kept))


def test_a_hard_piece_sees_no_finite_snr():
  path = hybrid()
  kinds = cut(path, 64)
  assert [soft for _, soft in kinds] == [True, False, True, False]
  for piece, soft in kinds:
    rows = path[piece.first : piece.stop + 1]
    assert np.any((rows > 0) & np.isfinite(rows)) == soft
  assert all(soft for _, soft in cut(path, 64, soft=True))


def test_few_hard_rows_stay_with_the_soft_ones_around_them():
  soft = paths.geometric(6, L, snr_min=1.0, snr_max=9.0)
  hard = paths.left_to_right(L, tokens_per_step=10)
  assert [kind for _, kind in cut(paths.concat(soft, hard), 64)] == [True]
  assert [kind for _, kind in cut(hard, 64)] == [False]


@pytest.mark.parametrize("integrator", ["mean", "sample", "heun"])
def test_hard_and_soft_pieces_return_what_one_program_returns(integrator):
  net, params = tiny()
  options = {
    "denoiser": net,
    "clean_snr": CLEAN,
    "integrator": integrator,
    "top_p": 0.9,
  }
  options["hard_rows"] = samplers.hard_rows(
    params, denoiser=net, clean_snr=CLEAN
  )
  path = np.stack([hybrid(), hybrid()], axis=1)
  path[:, 1:] = paths.masked(KEY, len(path) - 1, 1, L)
  whole = samplers.generate(params, KEY, path, **options)
  for rows in (7, 64):
    seen = []
    found = samplers.sample(params, KEY, path, rows=rows, **options)
    np.testing.assert_array_equal(whole, found.tokens_BL)
    watched = samplers.sample(
      params,
      KEY,
      path,
      rows=rows,
      callback=lambda row, state, seen=seen: seen.append(row),
      **options,
    )
    np.testing.assert_array_equal(whole, watched.tokens_BL)
    last = len(path) - 1
    assert seen == [*range(rows, last, rows), last]
