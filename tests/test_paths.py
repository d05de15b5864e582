"""Paths: shapes, values, chains, and the sentences that refuse bad ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import paths

KEY = jax.random.key(0)
INF = np.inf


def test_grids_have_their_values():
  g = paths.geometric(5, 2, snr_min=1.0, snr_max=8.0)
  np.testing.assert_allclose(g[:, 1], [0, 1, 2, 4, 8, INF], rtol=1e-6)
  g = paths.linear(5, 2, snr_max=8.0)
  np.testing.assert_allclose(g[:, 0], [0, 2, 4, 6, 8, INF])
  g = paths.linear(3, 2, snr_min=1.0, snr_max=8.0)
  np.testing.assert_allclose(g[:, 0], [0, 1, 8, INF])
  g = paths.lognormal_quantiles(4, 1, mu=0.5, sigma=2.0)
  assert g[2, 0] == pytest.approx(np.exp(0.5))
  assert np.log(g[3, 0]) - 0.5 == pytest.approx(0.5 - np.log(g[1, 0]))
  for path in (g, paths.geometric(1, 3, snr_min=1.0, snr_max=2.0)):
    paths.check(path, rising=True)


def test_information_uniform_spreads_information_evenly():
  snr = np.linspace(0, 20, 2001)
  path = paths.information_uniform(
    9, 2, snr_grid=snr, mmse_curve=np.exp(-snr / 3)
  )
  paths.check(path, rising=True)
  information = 1 - np.exp(-path[:-1, 0] / 3)
  np.testing.assert_allclose(np.diff(information), 1 / 8, atol=1e-3)


def test_masked_jumps_at_uniform_times():
  path = np.asarray(paths.masked(KEY, 5, 400, 50))
  paths.check(path, rising=True)
  share = np.isinf(path).mean((1, 2))
  np.testing.assert_allclose(share, np.linspace(0, 1, 6), atol=0.015)


@pytest.mark.parametrize("k,rows", [(1, 8), (3, 4)])
def test_random_order_commits_k_tokens_per_row(k, rows):
  path = np.asarray(paths.random_order(KEY, 50, 7, tokens_per_step=k))
  assert path.shape == (rows, 50, 7)
  counts = np.isinf(path).sum(-1)
  want = np.minimum(np.arange(rows) * k, 7)[:, None]
  assert (counts == want).all()
  assert len({row.tobytes() for row in path[1].astype(np.float32)}) > 5


def test_left_to_right_and_blocks():
  path = paths.left_to_right(5, tokens_per_step=2)
  assert np.isinf(path).sum(-1).tolist() == [0, 2, 4, 5]
  assert np.isinf(path[1]).tolist() == [True, True, False, False, False]
  inner = paths.linear(2, 2, snr_max=3.0)
  path = paths.blocks(5, block=2, inner=inner)
  paths.check(path, rising=True)
  want = [
    [0, 0, 0, 0, 0],
    [3, 3, 0, 0, 0],
    [INF, INF, 0, 0, 0],
    [INF, INF, 3, 3, 0],
    [INF, INF, INF, INF, 0],
    [INF, INF, INF, INF, 3],
    [INF, INF, INF, INF, INF],
  ]
  np.testing.assert_array_equal(path, want)
  own = paths.blocks(6, block=3, inner=paths.masked(KEY, 4, 2, 6))
  assert own.shape == (9, 2, 6)
  assert np.isinf(own[4, :, :3]).all() and not own[4, :, 3:].any()


def chain_rates(path):
  """Empirical remask and reveal frequencies of every step."""
  seen = np.isinf(np.asarray(path))
  hide = (seen[:-1] & ~seen[1:]).sum((1, 2)) / seen[:-1].sum((1, 2)).clip(1)
  show = (~seen[:-1] & seen[1:]).sum((1, 2)) / (~seen[:-1]).sum((1, 2)).clip(1)
  return hide, show


@pytest.mark.parametrize("kind", ["cap", "rescale", "loop"])
def test_remask_has_the_published_transition_probabilities(kind):
  T, eta, t_on, t_off, on = 20, 0.2, 0.56, 0.06, 0.9
  path = paths.remask(
    KEY, T, 200, 400, kind=kind, eta=eta, t_on=t_on, t_off=t_off
  )
  paths.check(path)
  hide, show = chain_rates(path)
  grid = np.linspace(1, 1e-5, T + 1)
  for i, (t, s) in enumerate(itertools.pairwise(grid[:-1])):  # then all inf
    a_t, a_s = 1 - t, 1 - s
    most = min(1, (1 - a_s) / a_t) if a_t else 1
    sigma = {"cap": min(eta, most), "rescale": eta * most, "loop": eta}[kind]
    if kind == "loop":
      if t > t_on:
        a_t, a_s, sigma = a_t * on / (1 - t_on), a_s * on / (1 - t_on), 0
      elif t <= t_off:
        a_t, a_s = (1 - x * (1 - on) / t_off for x in (t, s))
        sigma = 0
      else:
        a_t = a_s = on
    if a_t:
      assert hide[i] == pytest.approx(sigma, abs=0.01)
    reveal = min(1, (a_s - (1 - sigma) * a_t) / (1 - a_t))
    assert show[i] == pytest.approx(reveal, abs=0.03 if a_t > 0.8 else 0.01)


@pytest.mark.parametrize("kind", ["cap", "loop"])
def test_budget_keeps_the_expected_remasks(kind):
  for T in (64, 256):
    eta = paths.budget_eta(T, 1.0, kind=kind)
    path = paths.remask(KEY, T, 20, 100, kind=kind, eta=eta)
    falls = (np.asarray(path[1:]) < np.asarray(path[:-1])).sum() / 2000
    assert falls == pytest.approx(1.0, rel=0.15)


def test_forward_backward_remasks_as_much_as_it_reveals_anew():
  path = paths.remask(KEY, 50, 50, 100, kind="forward_backward")
  hide, _ = chain_rates(path)
  alpha = np.arange(50) / 50
  np.testing.assert_allclose(hide[5:40], (1 / 50 / alpha[5:40]), atol=0.02)


@pytest.mark.parametrize(
  "draw",
  [
    lambda key: paths.remask(key, 20, 3, 50, kind="cap", eta=0.5, soft_snr=3.0),
    lambda key: paths.masked(key, 20, 3, 50),
    lambda key: paths.random_order(key, 3, 50, tokens_per_step=4),
  ],
)
def test_a_path_is_the_same_on_the_host_and_traced(draw):
  path = draw(KEY)
  assert isinstance(path, np.ndarray) and path.dtype == np.float32
  np.testing.assert_array_equal(path, jax.jit(draw)(KEY))


def test_soft_remasking_falls_to_its_snr_and_no_further():
  options = {"kind": "rescale", "eta": 0.5}
  hard = paths.remask(KEY, 20, 3, 50, **options)
  soft = paths.remask(KEY, 20, 3, 50, soft_snr=3.0, **options)
  paths.check(soft)
  np.testing.assert_array_equal(np.isinf(hard), np.isinf(soft))
  seen = np.maximum.accumulate(np.isinf(hard), axis=0)
  np.testing.assert_array_equal(soft == 3.0, seen & ~np.isinf(hard))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["cap", "rescale", "loop", "forward_backward"])
def test_paths_of_the_smallest_sizes(kind, eta):
  for T in (1, 2, 3):
    paths.check(paths.remask(KEY, T, 1, 1, kind=kind, eta=eta))
  still = paths.remask(KEY, 30, 4, 9, kind="cap", eta=0.0)
  assert (still[1:] >= still[:-1]).all()


def test_one_token_and_more_per_step_than_there_are():
  for path in (
    paths.masked(KEY, 1, 1, 1),
    paths.random_order(KEY, 1, 1, tokens_per_step=9),
    paths.left_to_right(4, tokens_per_step=9),
    paths.linear(1, 1, snr_max=2.0),
    paths.blocks(1, block=1, inner=paths.left_to_right(1)),
  ):
    assert len(path) == 2
    paths.check(path, rising=True)


def test_concat_merges_equal_rows_and_keeps_others():
  a = paths.linear(3, 2, snr_max=4.0)[:-1]
  b = paths.left_to_right(2)
  path = paths.concat(a, b)
  assert path[:, 0].tolist() == [0, 2, 4, 0, INF, INF]
  assert len(paths.concat(b, np.full((1, 2), INF), b)) == 6
  assert paths.concat(a, paths.masked(KEY, 3, 4, 2)).shape == (7, 4, 2)


def test_hold_pad_and_compact():
  known = np.array([[True, False, False], [False, False, True]])
  path = paths.hold(paths.left_to_right(3), known)
  assert path.shape == (4, 2, 3)
  assert np.isinf(path[0]).tolist() == known.tolist()
  short = paths.compact(path)
  assert short.shape == (3, 2, 3)
  assert (np.isinf(short[1]).sum(-1) == 2).all()
  np.testing.assert_array_equal(paths.compact(paths.pad(path, 9)), short)
  flat = paths.pad(paths.left_to_right(3), 6)
  assert len(flat) == 6
  np.testing.assert_array_equal(paths.compact(flat), paths.left_to_right(3))
  assert len(paths.compact(np.full((5, 2, 3), INF))) == 1


def bad(row, column, value, **kwargs):
  path = paths.geometric(3, 4, snr_min=1.0, snr_max=2.0)
  path[row, column] = value
  return lambda: paths.check(path, **kwargs)


@pytest.mark.parametrize(
  "call,words",
  [
    (bad(1, 2, -1.0), "-1.0 at row 1, column 2"),
    (bad(2, 0, np.nan), "nan at row 2, column 0"),
    (bad(0, 3, 0.5), "0.5 at row 0, column 3; the first row"),
    (bad(3, 1, 7.0), "7.0 at row 3, column 1; the last row"),
    (bad(2, 1, 0.5, rising=True), "0.5 at row 2, column 1; the path"),
    (lambda: paths.check(np.zeros(3)), r"shape \(3,\)"),
    (lambda: paths.geometric(0, 3, snr_min=1, snr_max=2), "num_steps is 0"),
    (lambda: paths.geometric(4, 3, snr_min=2, snr_max=1), "snr_min is 2"),
    (lambda: paths.linear(4, 0, snr_max=1), "length is 0"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="x", eta=0), "kind is 'x'"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="cap", eta=2), "eta is 2"),
    (lambda: paths.left_to_right(3, tokens_per_step=0), "tokens_per_step"),
    (lambda: paths.left_to_right(0), "length is 0"),
    (lambda: paths.masked(KEY, 0, 1, 3), "num_steps is 0"),
    (lambda: paths.masked(KEY, 4, 0, 3), "batch is 0"),
    (lambda: paths.random_order(KEY, 1, 0), "length is 0"),
    (
      lambda: paths.remask(KEY, 4, 1, 3, kind="cap", soft_snr=INF),
      "soft_snr is inf",
    ),
    (lambda: paths.pad(paths.left_to_right(3), 2), "rows is 2"),
    (
      lambda: paths.blocks(4, block=5, inner=paths.left_to_right(5)),
      "block is 5",
    ),
    (
      lambda: paths.hold(paths.left_to_right(3), np.zeros((1, 2), bool)),
      r"shape \(1, 2\), the path length 3",
    ),
    (lambda: paths.hold(paths.left_to_right(3), [0, 2, 1]), "true where"),
    (lambda: paths.left_to_right(2.5), "length is 2.5; give a whole number"),
    (lambda: paths.masked(KEY, "8", 1, 3), "num_steps is '8'"),
    (lambda: paths.masked(0, 8, 1, 3), "key is 0; make one"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="cap", eta=None), "eta is None"),
    (lambda: paths.lognormal_quantiles(4, 3, mu=INF, sigma=1), "mu is inf"),
    (lambda: paths.budget_eta(8, np.nan, kind="cap"), "remasks is nan"),
    (lambda: paths.concat(np.zeros(3)), r"path 0 has shape \(3,\)"),
    (lambda: paths.compact(np.zeros((0, 3))), r"path has shape \(0, 3\)"),
  ],
)
def test_bad_requests_are_refused_in_one_sentence(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_random_paths_can_be_traced():
  shape = jax.eval_shape(lambda k: paths.masked(k, 3, 2, 5), KEY).shape
  assert shape == (4, 2, 5)
  assert jnp.isinf(
    jax.jit(lambda k: paths.random_order(k, 2, 3))(KEY)[-1]
  ).all()
