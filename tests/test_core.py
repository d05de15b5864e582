"""The channel, training laws and paths: laws, values, rejected arguments."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import channel, laws, paths, sphere

CLEAN = 50.0
KEY = jax.random.key(0)
INF = np.inf
N = 40_000


def at_snr(snr, key=KEY):
  """N draws of the channel for one token, the token, and their SNR."""
  x_BLD = sphere.unit_rows(jnp.array([[1.0, -2.0, 0.5]]))
  x_BLD = jnp.broadcast_to(x_BLD[None], (N, 1, 3))
  snr_BL = jnp.full((N, 1), snr)
  z_BLD = channel.observe(key, x_BLD, snr_BL, clean_snr=CLEAN)
  return z_BLD, x_BLD, snr_BL


def assert_law(z_BLD, x_BLD, snr):
  """z has mean t x and covariance t I, and no noise at 0 and inf."""
  z, x = np.asarray(z_BLD[:, 0]), np.asarray(x_BLD[0, 0])
  if snr in (0, INF):
    scale = CLEAN if snr else 0.0
    np.testing.assert_array_equal(z, np.tile(np.float32(scale) * x, (N, 1)))
    return
  error = 5 * np.sqrt(snr / N)
  np.testing.assert_allclose(z.mean(0), snr * x, atol=error)
  np.testing.assert_allclose(
    np.cov(z.T), snr * np.eye(3), atol=6 * snr / np.sqrt(N)
  )


@pytest.mark.parametrize("snr", [0.0, 0.3, 7.0, INF])
def test_observe_has_mean_t_x_and_variance_t(snr):
  assert_law(*at_snr(snr)[:2], snr)


@pytest.mark.parametrize(
  "snr, following, noise",
  [
    (0.0, 2.0, 1.0),
    (1.5, 6.0, 1.0),
    (0.0, 2.0, 0.5),
    (1.5, 6.0, 0.5),
    (3.0, INF, 1.0),
  ],
)
def test_moves_up_compose_with_observe(snr, following, noise):
  z, x, snr = at_snr(snr)
  z = channel.advance(
    jax.random.key(1), z, x, snr, following, clean_snr=CLEAN, noise=noise
  )
  assert_law(z, x, following)


@pytest.mark.parametrize(
  "snr, following", [(6.0, 1.5), (6.0, 0.0), (INF, 2.0), (INF, 0.0)]
)
def test_moves_down_compose_with_observe(snr, following):
  z, x, snr = at_snr(snr)
  key = jax.random.key(1)
  z = channel.backtrack(key, z, snr, following, clean_snr=CLEAN)
  assert_law(z, x, following)


@pytest.mark.parametrize("snr", [0.0, 0.7, INF])
def test_an_equal_snr_leaves_the_state_alone(snr):
  z, x, snr = at_snr(snr)
  up = channel.advance(KEY, z, x, snr, snr, clean_snr=CLEAN)
  down = channel.backtrack(KEY, z, snr, snr, clean_snr=CLEAN)
  np.testing.assert_array_equal(up, z)
  np.testing.assert_array_equal(down, z)


def test_gradients_are_finite_at_the_mask_and_where_nothing_moves():
  x_BLD = sphere.unit_rows(jnp.ones((4, 3)))[None]
  move = functools.partial(channel.advance, KEY, clean_snr=CLEAN)

  def energy(x, snr):
    z = channel.observe(KEY, x, snr, clean_snr=CLEAN)
    total = sum(
      move(z, x, snr, following, noise=noise)
      for following in (snr, snr + 1, INF)
      for noise in (0.0, 0.3, 1.0)
    )
    total += channel.backtrack(KEY, z, snr, 0.5 * snr, clean_snr=CLEAN)
    return jnp.sum(total**2)

  snr_BL = jnp.array([[0.0, 0.5, 2.0, 40.0]])
  for grad in jax.grad(energy, (0, 1))(x_BLD, snr_BL):
    assert jnp.isfinite(grad).all()


def test_the_posterior_depends_on_snr_only_if_norms_differ():
  def posterior(law, z_LD, snr_L):
    """p(x | z, t) by enumeration from the Gaussian density, t and all."""
    x = np.asarray(law.params["table"])[law.sequences]  # [S, L, D]
    error = z_LD[None] - snr_L[:, None] * x
    logp = np.log(law.probs) - 0.5 * np.sum(error**2 / snr_L[:, None], (1, 2))
    p = np.exp(logp - logp.max())
    return p / p.sum()

  def gap(norms):
    law = oracle.make(vocab_size=3, length=3, norms=norms)
    z = np.random.default_rng(0).standard_normal((3, 3))
    low = posterior(law, z, np.array([0.5, 1.0, 2.0]))
    high = posterior(law, z, np.array([3.0, 0.2, 9.0]))
    return np.abs(low - high).max()

  assert gap(None) < 1e-6
  assert gap([1.0, 1.5, 0.5]) > 0.05


def test_nearest_inverts_embed_and_other_ids_are_nan():
  table = sphere.unit_rows(jax.random.normal(KEY, (7, 4)))
  tokens = jnp.arange(7, dtype=jnp.int32)[None]
  x = sphere.embed(table, tokens)
  np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(sphere.nearest(table, 3.0 * x), tokens)
  for others in (tokens + 7, tokens - 7):
    assert jnp.isnan(sphere.embed(table, others)).all()


def test_lognormal_per_sequence_and_per_token():
  snr = np.asarray(laws.lognormal(1.4, 0.55)(KEY, (20_000, 3)))
  assert (snr == snr[:, :1]).all()
  assert np.log(snr).mean() == pytest.approx(1.4, abs=0.02)
  assert np.log(snr[:, 0]).std() == pytest.approx(0.55, abs=0.02)
  snr = np.asarray(laws.lognormal(0.0, 1.0, per_token=True)(KEY, (2, 5)))
  assert len(np.unique(snr)) == 10


def test_endpoint_shows_a_uniform_number_of_random_tokens():
  snr = np.asarray(laws.endpoint(30.0, smooth=False)(KEY, (20_000, 4)))
  assert set(np.unique(snr)) == {0.0, 30.0}
  counts = np.bincount((snr > 0).sum(1), minlength=5) / len(snr)
  np.testing.assert_allclose(counts, [0.25, 0.25, 0.25, 0.25, 0], atol=0.015)
  np.testing.assert_allclose((snr > 0).mean(0), 1.5 / 4, atol=0.015)

  snr = np.asarray(laws.endpoint(30.0)(KEY, (2000, 8)))  # smoothed
  visible = snr > 1
  assert ((snr < 1) | ((snr >= 24) & (snr <= 30))).all()
  assert snr[~visible].mean() == pytest.approx(0.5, abs=0.02)
  assert snr[visible].mean() == pytest.approx(27, abs=0.1)


def test_mixture_chooses_for_every_sequence():
  law = laws.mixture(
    (laws.endpoint(30.0, smooth=False), 1), (laws.lognormal(0.0, 0.0), 3)
  )
  snr = np.asarray(law(KEY, (20_000, 3)))
  continuous = (snr == 1).all(1)
  assert continuous.mean() == pytest.approx(0.75, abs=0.015)
  assert np.isin(snr[~continuous], [0.0, 30.0]).all()


def test_grids_have_their_values():
  g = paths.geometric(5, 2, snr_min=1.0, snr_max=8.0)
  np.testing.assert_allclose(g[:, 1], [0, 1, 2, 4, 8, INF], rtol=1e-6)
  g = paths.linear(5, 2, snr_max=8.0)
  np.testing.assert_allclose(g[:, 0], [0, 2, 4, 6, 8, INF])
  g = paths.linear(3, 2, snr_min=1.0, snr_max=8.0)
  np.testing.assert_allclose(g[:, 0], [0, 1, 8, INF])
  g = paths.lognormal_quantiles(4, 1, mu=0.5, sigma=2.0)
  quantile = 0.6744898  # of a normal distribution at 3/4
  expected = np.exp(0.5 + 2 * quantile * np.array([-1, 0, 1]))
  np.testing.assert_allclose(g[:, 0], [0, *expected, INF], rtol=1e-5)
  # Equal steps of information, here 1 - exp(-t / 3).
  snr = np.linspace(0, 20, 2001)
  mmse = np.exp(-snr / 3)
  g = paths.information_uniform(9, 2, snr_grid=snr, mmse_curve=mmse)
  information = 1 - np.exp(-g[:-1, 0] / 3)
  np.testing.assert_allclose(np.diff(information), 1 / 8, atol=1e-3)


def test_masked_jumps_at_uniform_times():
  path = np.asarray(paths.masked(KEY, 5, 400, 50))
  paths.check(path, rising=True)
  visible = np.isinf(path).mean((1, 2))
  np.testing.assert_allclose(visible, np.linspace(0, 1, 6), atol=0.015)


@pytest.mark.parametrize("k, rows", [(1, 8), (3, 4), (9, 2)])
def test_random_order_commits_k_tokens_per_row(k, rows):
  path = np.asarray(paths.random_order(KEY, 50, 7, tokens_per_step=k))
  assert path.shape == (rows, 50, 7)
  counts = np.isinf(path).sum(-1)
  assert (counts == np.minimum(np.arange(rows) * k, 7)[:, None]).all()
  orders = np.isinf(path).sum(0)
  assert (len(np.unique(orders, axis=0)) > 30) == (k < 7)


def test_left_to_right_and_blocks():
  path = paths.left_to_right(5, tokens_per_step=2)
  assert np.isinf(path).sum(-1).tolist() == [0, 2, 4, 5]
  assert np.isinf(path[1]).tolist() == [True, True, False, False, False]
  path = paths.blocks(5, block=2, inner=paths.linear(2, 2, snr_max=3.0))
  expected = [
    [0, 0, 0, 0, 0],
    [3, 3, 0, 0, 0],
    [INF, INF, 0, 0, 0],
    [INF, INF, 3, 3, 0],
    [INF, INF, INF, INF, 0],
    [INF, INF, INF, INF, 3],
    [INF, INF, INF, INF, INF],
  ]
  np.testing.assert_array_equal(path, expected)
  own = paths.blocks(6, block=3, inner=paths.masked(KEY, 4, 2, 6))
  assert own.shape == (9, 2, 6)
  assert np.isinf(own[4, :, :3]).all() and not own[4, :, 3:].any()


def chain_rates(path):
  """Frequencies of remasking and of revealing in every step."""
  seen = np.isinf(np.asarray(path))
  hide = (seen[:-1] & ~seen[1:]).sum((1, 2)) / seen[:-1].sum((1, 2)).clip(1)
  show = (~seen[:-1] & seen[1:]).sum((1, 2)) / (~seen[:-1]).sum((1, 2)).clip(1)
  return hide, show


@pytest.mark.parametrize("kind", ["cap", "rescale", "loop"])
def test_remask_has_the_published_transition_probabilities(kind):
  T, eta, t_on, t_off, on = 22, 0.2, 0.55, 0.05, 0.9
  path = paths.remask(KEY, T, 200, 400, kind=kind, eta=eta)
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


def test_forward_backward_remasks_as_much_as_it_reveals_anew():
  path = paths.remask(KEY, 50, 50, 100, kind="forward_backward")
  hide, _ = chain_rates(path)
  alpha = np.arange(50) / 50
  np.testing.assert_allclose(hide[5:40], (1 / 50 / alpha[5:40]), atol=0.02)
  # In the last step of the chain too: the row after it reveals the rest.
  assert hide[49] == pytest.approx(1 / 49, abs=0.01) and len(path) == 52


@pytest.mark.parametrize("kind", ["cap", "loop"])
def test_budget_keeps_the_expected_remasks(kind):
  for T in (64, 256):
    eta = paths.budget_eta(T, 1.0, kind=kind)
    path = paths.remask(KEY, T, 20, 100, kind=kind, eta=eta)
    falls = (np.asarray(path[1:]) < np.asarray(path[:-1])).sum() / 2000
    assert falls == pytest.approx(1.0, rel=0.15)


def test_soft_remasking_falls_to_its_snr_and_no_further():
  options = {"kind": "rescale", "eta": 0.5}
  hard = paths.remask(KEY, 20, 3, 50, **options)
  soft = paths.remask(KEY, 20, 3, 50, soft_snr=3.0, **options)
  np.testing.assert_array_equal(np.isinf(hard), np.isinf(soft))
  seen = np.maximum.accumulate(np.isinf(hard), axis=0)
  np.testing.assert_array_equal(soft == 3.0, seen & ~np.isinf(hard))


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


def test_paths_of_the_smallest_sizes():
  remasked = [
    paths.remask(KEY, T, 1, 1, kind=kind, eta=eta)
    for kind in ("cap", "rescale", "loop", "forward_backward")
    for eta in (0.0, 1.0)
    for T in (1, 2, 3)
  ]
  rising = [
    paths.masked(KEY, 1, 1, 1),
    paths.left_to_right(4, tokens_per_step=9),
    paths.linear(1, 1, snr_max=2.0),
    paths.geometric(1, 3, snr_min=1.0, snr_max=2.0),
    paths.blocks(1, block=1, inner=paths.left_to_right(1)),
  ]
  for path in remasked + rising:
    paths.check(path)
  for path in rising:
    assert len(path) == 2


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


def check_with(row, column, value, **options):
  """Checks a path with one entry replaced."""
  path = paths.geometric(3, 4, snr_min=1.0, snr_max=2.0)
  path[row, column] = value
  return lambda: paths.check(path, **options)


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: laws.lognormal(0.0, -1.0), "sigma is -1"),
    (lambda: laws.lognormal(0.0, np.nan), "sigma is nan"),
    (lambda: laws.lognormal(INF, 1.0), "mu is inf"),
    (lambda: laws.endpoint(0.0), "clean_snr is 0"),
    (lambda: laws.endpoint(INF), "clean_snr is inf"),
    (lambda: laws.mixture(), "shares are"),
    (lambda: laws.mixture((laws.endpoint(1.0), -1)), "shares are"),
    (lambda: laws.mixture((laws.endpoint(1.0), np.nan)), "shares are"),
    (check_with(1, 2, -1.0), "-1.0 at row 1, column 2"),
    (check_with(2, 0, np.nan), "nan at row 2, column 0"),
    (check_with(0, 3, 0.5), "0.5 at row 0, column 3; the first row"),
    (check_with(3, 1, 7.0), "7.0 at row 3, column 1; the last row"),
    (check_with(2, 1, 0.5, rising=True), "0.5 at row 2, column 1; the path"),
    (lambda: paths.check(np.zeros(3)), r"shape \(3,\)"),
    (lambda: paths.geometric(0, 3, snr_min=1, snr_max=2), "num_steps is 0"),
    (lambda: paths.geometric(4, 3, snr_min=2, snr_max=1), "snr_min is 2"),
    (lambda: paths.linear(4, 0, snr_max=1), "length is 0"),
    (lambda: paths.lognormal_quantiles(4, 3, mu=INF, sigma=1), "mu is inf"),
    (lambda: paths.masked(KEY, 0, 1, 3), "num_steps is 0"),
    (lambda: paths.masked(KEY, "8", 1, 3), "num_steps is '8'"),
    (lambda: paths.masked(KEY, 4, 0, 3), "batch is 0"),
    (lambda: paths.masked(0, 8, 1, 3), "key is 0; make one"),
    (lambda: paths.random_order(KEY, 1, 0), "length is 0"),
    (lambda: paths.left_to_right(2.5), "length is 2.5; give an integer"),
    (lambda: paths.left_to_right(3, tokens_per_step=0), "tokens_per_step"),
    (lambda: paths.blocks(4, block=5, inner=np.zeros((2, 5))), "block is 5"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="x", eta=0), "kind is 'x'"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="cap", eta=2), "eta is 2"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="cap", eta=None), "eta is None"),
    (lambda: paths.remask(KEY, 4, 1, 3, kind="cap", soft_snr=INF), "soft_snr"),
    (lambda: paths.budget_eta(8, np.nan, kind="cap"), "remasks is nan"),
    (lambda: paths.pad(paths.left_to_right(3), 2), "rows is 2"),
    (lambda: paths.hold(np.zeros((2, 3)), [[True] * 2]), r"shape \(1, 2\)"),
    (lambda: paths.hold(np.zeros((2, 3)), [0, 2, 1]), "true where"),
    (lambda: paths.concat(np.zeros(3)), r"path 0 has shape \(3,\)"),
    (lambda: paths.compact(np.zeros((0, 3))), r"path has shape \(0, 3\)"),
  ],
)
def test_bad_arguments_are_rejected_in_one_sentence(call, words):
  with pytest.raises(ValueError, match=words) as error:
    call()
  assert "\n" not in str(error.value)
