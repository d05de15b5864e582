"""Bounds and the training loss, with the exact denoiser of a small law."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import likelihood, objective, paths
from dsl_jax.quality import estimate

CLEAN = 100.0
KEY = jax.random.key(0)
GRID = np.geomspace(0.05, 60, 30)
law = oracle.law


def never(key, shape):
  """The law of training that shows nothing."""
  return jnp.zeros(shape)


def mean_and_error(nats_B):
  nats = np.asarray(nats_B)
  return nats.mean(), nats.std() / len(nats) ** 0.5


def near(estimate, truth, sigmas=4):
  mean, stderr = estimate
  return abs(mean - truth) < sigmas * stderr


def marginals(law):
  """p(s_i = v), [L, V]."""
  return np.einsum("s,slv->lv", law.probs, np.eye(4)[law.sequences])


@pytest.fixture(scope="module")
def bound(law):
  """Mean and standard error of the path bound for a path."""
  tokens = law.sample(1, 4096)
  nats = jax.jit(
    functools.partial(
      likelihood.path_nats, denoiser=law.denoiser, clean_snr=CLEAN
    )
  )
  return lambda path: mean_and_error(
    nats(law.params, KEY, tokens, path).sum(-1)
  )


def test_one_token_at_a_time_costs_the_entropy(law, bound):
  assert near(bound(paths.left_to_right(3)), law.entropy)
  assert near(bound(paths.random_order(KEY, 4096, 3)), law.entropy)


def test_continuous_paths_fall_to_the_entropy_from_above(law, bound):
  grid = functools.partial(paths.geometric, length=3, snr_min=0.3, snr_max=40)
  costs = [bound(grid(T)) for T in (1, 4, 16, 64)]
  means = [mean for mean, _ in costs]
  p = marginals(law)
  assert near(costs[0], -np.sum(p * np.log(p)))  # one step sees nothing
  assert means[0] > means[1] > means[2] > law.entropy
  assert near(costs[-1], law.entropy, sigmas=5)


def test_mixed_path_of_soft_and_hard_moves(law, bound):
  path = np.array(
    [[0, 0, 0], [2, 0, 0], [5, np.inf, 1], [60, np.inf, 9], [np.inf] * 3],
    np.float32,
  )
  mean, stderr = bound(path)
  assert law.entropy - 3 * stderr < mean < law.entropy + 0.5


@pytest.mark.parametrize(
  "estimator, settings",
  [
    (likelihood.integral_nats, {"snr_grid": GRID, "draws": 4}),
    (likelihood.endpoint_nats, {"clean_snr": CLEAN, "draws": 8}),
  ],
)
def test_integral_and_endpoint_equal_the_entropy(law, estimator, settings):
  estimator = functools.partial(
    estimator,
    law.params,
    tokens_BL=law.sample(1, 4096),
    denoiser=law.denoiser,
    **settings,
  )
  nats_B, stderr_B = estimator(key=KEY)
  assert near(mean_and_error(nats_B), law.entropy)
  # Errors within a sequence explain the spread of repetitions.
  again_B, _ = estimator(key=jax.random.key(1))
  z = np.asarray((nats_B - again_B) / np.sqrt(2 * stderr_B**2 + 1e-12))
  assert np.median(np.abs(z)) == pytest.approx(0.72, abs=0.15)


def test_mmse_falls_with_snr_and_starts_at_the_prior(law):
  estimator = functools.partial(
    likelihood.mmse_curve,
    law.params,
    KEY,
    law.sample(1, 2048),
    denoiser=law.denoiser,
    snr_grid=np.array([0.0, 1.0, 4.0, 16.0, 64.0]),
  )
  curve, curves_BT = estimator(), estimator(by_sequence=True)
  np.testing.assert_allclose(curves_BT.mean(axis=0), curve, atol=1e-5)
  assert (np.diff(np.asarray(curve)) < 0).all() and curve[-1] < 1e-3
  prior = marginals(law) @ np.asarray(law.params["table"])
  expected = 1 - np.mean(np.sum(prior**2, -1))
  assert float(curve[0]) == pytest.approx(expected, abs=0.02)


def exact_endpoint(law, weight, counted=(0, 1, 2)):
  """E_x sum over visible sets of weight(hidden) * cross-entropy there, f64."""
  V, L = 4, law.sequences.shape[1]
  probs = law.probs.astype(np.float64) / law.probs.sum()
  joint = probs.reshape((V,) * L)
  total = 0.0
  for hidden in itertools.product((False, True), repeat=L):
    if not any(hidden):
      continue
    for i in set(np.flatnonzero(hidden)) & set(counted):
      others = tuple(j for j in range(L) if hidden[j] and j != i)
      known = joint.sum(axis=others, keepdims=True)  # p(visible, x_i)
      given = known / known.sum(axis=int(i), keepdims=True)
      total -= weight(sum(hidden)) * np.sum(known * np.log(given))
  return total


def test_the_weighted_form_of_mdlm_is_the_endpoint_form(law):
  L = 3
  # Hidden sets of m tokens: k = L - m visible, each set equally likely.
  endpoint = exact_endpoint(law, lambda m: 1 / (math.comb(L, m) * m))
  # MDLM: every token is hidden with probability t, weight 1/t, t uniform.
  nodes, weights = np.polynomial.legendre.leggauss(16)
  t, w = (nodes + 1) / 2, weights / 2
  mdlm = exact_endpoint(
    law, lambda m: np.sum(w * t ** (m - 1) * (1 - t) ** (L - m))
  )
  assert endpoint == pytest.approx(mdlm, abs=1e-8)
  assert endpoint == pytest.approx(law.entropy, abs=1e-6)


def test_tokens_outside_the_mask_are_seen_and_do_not_count(law):
  tokens, rng = law.sample(1, 2048), np.random.default_rng(0)
  mask = rng.permuted(np.tile([True, False, False], (2048, 1)), axis=1)
  mask[::2] ^= True  # two of three in every other row
  common = {"denoiser": law.denoiser, "draws": 2}

  @functools.partial(jax.jit, static_argnames="function")
  def call(function, mask_BL, **options):
    return function(law.params, KEY, tokens, mask_BL=mask_BL, **options)

  endpoint = functools.partial(
    likelihood.endpoint_nats, clean_snr=CLEAN, **common
  )
  integral = functools.partial(
    likelihood.integral_nats, snr_grid=GRID[::6], **common
  )
  for function in (endpoint, integral):
    whole, some, rest = (call(function, m)[0] for m in (None, mask, ~mask))
    np.testing.assert_allclose(some + rest, whole, rtol=1e-4, atol=1e-4)
  second = np.tile([False, True, False], (2048, 1))
  exact = exact_endpoint(law, lambda m: 1 / (math.comb(3, m) * m), (1,))
  assert near(mean_and_error(call(endpoint, second)[0]), exact)

  # A mean over tokens, and not over rows.
  curve = functools.partial(
    likelihood.mmse_curve, denoiser=law.denoiser, snr_grid=GRID[::6]
  )
  whole, some, rest = (call(curve, m) for m in (None, mask, ~mask))
  np.testing.assert_allclose((some + rest) / 2, whole, rtol=1e-5)
  by_row = functools.partial(curve, by_sequence=True)
  rows = estimate.per_token(np.asarray(call(by_row, mask)), mask.sum(axis=1))
  np.testing.assert_allclose(rows.mean(axis=0), some, rtol=1e-5)


@pytest.fixture(
  params=[
    functools.partial(likelihood.endpoint_nats, clean_snr=CLEAN),
    functools.partial(likelihood.integral_nats, snr_grid=GRID),
    functools.partial(
      likelihood.path_nats, path=paths.left_to_right(3), clean_snr=CLEAN
    ),
  ],
  ids=["endpoint", "integral", "path"],
)
def estimator(request, law):
  """(key, tokens_BL, denoiser) -> nats_B, for every bound."""

  def nats(key, tokens_BL, denoiser):
    result = request.param(
      law.params, key, tokens_BL=tokens_BL, denoiser=denoiser
    )
    return result[0] if isinstance(result, tuple) else result.sum(axis=1)

  return jax.jit(nats, static_argnames="denoiser")


def test_another_denoiser_costs_more_than_the_entropy(law, estimator):
  flat = law.denoiser._replace(
    hidden=lambda p, z, key=None: 0.3 * law.denoiser.hidden(p, z)
  )
  nats_B = estimator(KEY, law.sample(3, 4096), denoiser=flat)
  assert nats_B.mean() > law.entropy + 0.1


def test_intervals_cover_the_truth(law, estimator):
  hits = 0
  for i in range(200):
    nats_B = estimator(jax.random.key(i), law.sample(i, 256), law.denoiser)
    mean = estimate.ratio(nats_B, np.ones(256), group=likelihood.GROUP)
    hits += abs(mean.value - law.entropy) < 1.96 * mean.stderr
  assert 180 <= hits <= 198


def test_rows_of_a_group_lie_in_different_strata():
  for batch in (1, 3, 4, 8, 11):
    u = np.asarray(likelihood._strata(KEY, batch))
    assert u.shape == (batch,) and (u >= 0).all() and (u <= 1).all()
    for first in range(0, batch, likelihood.GROUP):
      group = u[first : first + likelihood.GROUP]
      strata = np.floor(group * len(group))
      assert sorted(strata) == list(range(len(group)))
  many = jax.vmap(lambda key: likelihood._strata(key, 5))
  u = np.asarray(many(jax.random.split(KEY, 4000)))
  np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.03)  # each is uniform
  np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.005)


def test_strata_make_the_mean_of_a_group_more_precise():
  """Cross-entropy that depends on the number of visible tokens alone."""
  L = 16

  def hidden(params, z, *, key=None):
    visible = jnp.sum(jnp.abs(z) > 0, axis=(1, 2), keepdims=True) / L
    logit = jnp.broadcast_to(8 * visible, (*z.shape[:2], 1))
    return jnp.concatenate([logit, jnp.zeros_like(logit)], axis=-1)

  denoiser = oracle.make(vocab_size=2, length=2).denoiser._replace(
    hidden=hidden, table=lambda params: jnp.eye(2)
  )

  @jax.jit
  @jax.vmap
  def nats(key):
    tokens = jnp.zeros((4, L), jnp.int32)
    return likelihood.endpoint_nats(
      {}, key, tokens, denoiser=denoiser, clean_snr=CLEAN
    )[0]

  nats_KB = np.asarray(nats(jax.random.split(KEY, 400)))
  assert nats_KB.mean(axis=1).std() < 0.5 * nats_KB.std() / 2  # 1 / sqrt(4)


def test_the_loss_is_the_cross_entropy_of_valid_tokens(law):
  tokens = law.sample(2, 64)
  mask = jnp.ones_like(tokens).at[:8, 2].set(0)
  loss = functools.partial(
    objective.loss, law.params, denoiser=law.denoiser, clean_snr=CLEAN
  )
  mean, sums = loss(KEY, tokens, mask, law=never)
  logp = np.log(marginals(law))[np.arange(3), np.asarray(tokens)]
  nats = -np.sum(logp * np.asarray(mask))
  assert float(sums["nll"]) == pytest.approx(nats, rel=1e-4)
  assert float(mean) == pytest.approx(nats / (64 * 3 - 8), rel=1e-4)

  def noisy(key, shape):
    return 9 * jax.random.uniform(key, shape)

  keys = jax.random.split(KEY, 64)  # microbatches change nothing
  whole = loss(keys, tokens, mask, law=noisy)[1]["nll"]
  total = sum(
    loss(keys[part], tokens[part], mask[part], law=noisy)[1]["nll"]
    for part in (slice(i, i + 16) for i in range(0, 64, 16))
  )
  assert float(whole) == pytest.approx(float(total), rel=1e-5)


def test_dropout_has_a_key_that_noise_does_not_use(law):
  # fold_in(key, i) equals split(key)[i], so a folded key can be a used one.
  seen = []

  def hidden(params, z_BLD, *, key=None):
    seen.append(key)
    return law.denoiser.hidden(params, z_BLD)

  keys, tokens = jax.random.split(KEY, 4), law.sample(0, 4)
  objective.loss(
    law.params,
    keys,
    tokens,
    jnp.ones_like(tokens),
    denoiser=law.denoiser._replace(hidden=hidden),
    law=never,
    clean_snr=CLEAN,
  )
  used = jax.random.key_data(jax.random.split(keys[0], 3)[:2]).tolist()
  assert jax.random.key_data(seen[0]).tolist() not in used


FALLING = np.array([[0] * 3, [2] * 3, [1] * 3, [np.inf] * 3], np.float32)


@pytest.mark.parametrize(
  "estimator, change, words",
  [
    ("path_nats", {"path": FALLING}, "row 2, column 0; the path must not fall"),
    ("path_nats", {"path": paths.left_to_right(4)}, "path has rows of shape"),
    ("path_nats", {"path": paths.masked(KEY, 2, 3, 3)}, "path has rows of"),
    ("mmse_curve", {"snr_grid": [2.0, 1.0]}, "snr_grid"),
    ("mmse_curve", {"snr_grid": [-1.0, 1.0]}, "snr_grid"),
    ("integral_nats", {"snr_grid": [1.0, np.inf]}, "snr_grid"),
    ("endpoint_nats", {"tokens_BL": [[0, 4, 0]]}, "is 4 at batch 0, column 1"),
    ("endpoint_nats", {"tokens_BL": [[0.0, 1.0]]}, "tokens_BL has dtype"),
    ("endpoint_nats", {"tokens_BL": np.zeros((0, 3), int)}, r"shape \(0, 3\)"),
    ("endpoint_nats", {"draws": 0}, "draws is 0"),
    ("endpoint_nats", {"clean_snr": 0.0}, "clean_snr is 0"),
    ("endpoint_nats", {"key": 0}, "key is 0"),
  ],
)
def test_bad_arguments_are_rejected(law, estimator, change, words):
  arguments = {"key": KEY, "tokens_BL": law.sample(0, 2)}
  arguments["denoiser"] = law.denoiser
  if estimator in ("path_nats", "endpoint_nats"):
    arguments["clean_snr"] = CLEAN
  with pytest.raises(ValueError, match=words):
    getattr(likelihood, estimator)(law.params, **arguments | change)
