"""Bounds against the entropy of a law whose exact denoiser is known."""

import functools
import itertools
import math

import jax
import numpy as np
import oracle
import pytest

from dsl_jax import likelihood, paths
from dsl_jax.quality import estimate

CLEAN = 100.0
KEY = jax.random.key(0)
GRID = np.geomspace(0.05, 60, 30)
law = oracle.law


@pytest.fixture(scope="module")
def bound(law):
  """Mean and standard error of the path bound for a path."""
  tokens = law.sample(1, 4096)
  run = jax.jit(
    functools.partial(
      likelihood.path_nats, denoiser=law.denoiser, clean_snr=CLEAN
    )
  )

  def of(path):
    nats = np.asarray(run(law.params, KEY, tokens, path).sum(-1))
    return nats.mean(), nats.std() / len(nats) ** 0.5

  return of


def near(estimate, truth, sigmas=4):
  mean, stderr = estimate
  return abs(mean - truth) < sigmas * stderr


def test_one_token_at_a_time_costs_the_entropy(law, bound):
  assert near(bound(paths.left_to_right(3)), law.entropy)
  assert near(bound(paths.random_order(KEY, 4096, 3)), law.entropy)


def test_continuous_paths_fall_to_the_entropy_from_above(law, bound):
  grid = functools.partial(paths.geometric, length=3, snr_min=0.3, snr_max=40)
  costs = [bound(grid(T)) for T in (1, 4, 16, 64)]
  means = [mean for mean, _ in costs]
  assert means[0] > means[1] > means[2] > law.entropy
  assert near(costs[-1], law.entropy, sigmas=5)


def test_one_step_costs_the_marginal_entropies(law, bound):
  hot = np.eye(4)[law.sequences]
  marginals = np.einsum("s,slv->lv", law.probs, hot)
  assert near(
    bound(paths.geometric(1, 3, snr_min=1, snr_max=2)),
    -np.sum(marginals * np.log(marginals)),
  )


def test_mixed_path_of_soft_and_hard_moves(law, bound):
  path = np.array(
    [[0, 0, 0], [2, 0, 0], [5, np.inf, 1], [60, np.inf, 9], [np.inf] * 3],
    np.float32,
  )
  mean, stderr = bound(path)
  assert law.entropy - 3 * stderr < mean < law.entropy + 0.5


def test_integral_equals_the_entropy(law):
  nats, stderr = likelihood.integral_nats(
    law.params,
    KEY,
    law.sample(1, 4096),
    denoiser=law.denoiser,
    snr_grid=GRID,
    draws=4,
  )
  # A coarse grid has no bias: one uniform SNR in each of its intervals.
  total = np.asarray(nats)
  error = total.std() / len(total) ** 0.5
  assert near((total.mean(), error), law.entropy)
  assert np.isfinite(stderr).all() and stderr.mean() > 0


def test_endpoint_equals_the_order_averaged_entropy(law):
  run = functools.partial(
    likelihood.endpoint_nats,
    law.params,
    tokens_BL=law.sample(1, 4096),
    denoiser=law.denoiser,
    clean_snr=CLEAN,
    draws=8,
  )
  nats, stderr = run(key=KEY)
  total = np.asarray(nats)
  assert near((total.mean(), total.std() / 64), law.entropy)
  # Within-sequence errors explain the spread of repetitions.
  again, _ = run(key=jax.random.key(1))
  z = np.asarray((nats - again) / np.sqrt(2 * np.square(stderr) + 1e-12))
  assert np.median(np.abs(z)) == pytest.approx(0.72, abs=0.15)


def test_mmse_falls_with_snr_and_starts_at_the_prior(law):
  curve = likelihood.mmse_curve(
    law.params,
    KEY,
    law.sample(1, 2048),
    denoiser=law.denoiser,
    snr_grid=np.array([0.0, 1.0, 4.0, 16.0, 64.0]),
  )
  assert (np.diff(np.asarray(curve)) < 0).all() and curve[-1] < 1e-3
  x = np.asarray(law.params["table"])[law.sequences]
  prior = np.einsum("s,sld->ld", law.probs, x)
  want = 1 - np.mean(np.sum(prior**2, -1))
  assert float(curve[0]) == pytest.approx(want, abs=0.02)


def test_bad_requests_are_refused(law):
  tokens = law.sample(0, 2)
  call = functools.partial(likelihood.path_nats, law.params, KEY, tokens)
  falling = np.array([[0] * 3, [2] * 3, [1] * 3, [np.inf] * 3], np.float32)
  with pytest.raises(ValueError, match="row 2, column 0; here a path may"):
    call(falling, denoiser=law.denoiser, clean_snr=CLEAN)
  for grid in ([2.0, 1.0], [-1.0, 1.0], [1.0, np.inf]):
    with pytest.raises(ValueError, match="snr_grid"):
      likelihood.mmse_curve(
        law.params,
        KEY,
        tokens,
        denoiser=law.denoiser,
        snr_grid=np.array(grid),
      )
  for path in (paths.left_to_right(4), paths.masked(KEY, 2, 3, 3)):
    with pytest.raises(ValueError, match="path has rows of shape"):
      call(path, denoiser=law.denoiser, clean_snr=CLEAN)
  for ids, words in (
    ([[0, 4, 0]], "tokens_BL is 4 at batch 0, column 1"),
    ([[0.0, 1.0, 2.0]], "tokens_BL has dtype"),
    (np.zeros((0, 3), int), r"tokens_BL has shape \(0, 3\)"),
  ):
    with pytest.raises(ValueError, match=words):
      likelihood.endpoint_nats(
        law.params, KEY, ids, denoiser=law.denoiser, clean_snr=CLEAN
      )
  with pytest.raises(ValueError, match="draws is 0"):
    likelihood.endpoint_nats(
      law.params,
      KEY,
      tokens,
      denoiser=law.denoiser,
      clean_snr=CLEAN,
      draws=0,
    )


def exact_endpoint(law, weight):
  """E_x sum over visible sets of weight(hidden) * cross-entropy there, f64."""
  V, L = 4, law.sequences.shape[1]
  probs = law.probs.astype(np.float64) / law.probs.sum()
  joint = probs.reshape((V,) * L)
  total = 0.0
  for hidden in itertools.product((False, True), repeat=L):
    if not any(hidden):
      continue
    for i in np.flatnonzero(hidden):
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

  # With a denoiser that is not exact the bound lies above, in both forms.
  nats, _ = likelihood.endpoint_nats(
    law.params,
    KEY,
    law.sample(3, 4096),
    denoiser=law.denoiser._replace(
      hidden=lambda p, z, key=None: 0.3 * law.denoiser.hidden(p, z)
    ),
    clean_snr=CLEAN,
  )
  assert float(nats.mean()) > law.entropy + 0.1


@pytest.mark.parametrize("bound", ["endpoint", "integral", "path"])
def test_intervals_cover_the_truth(law, bound):
  shared = {"denoiser": law.denoiser}
  if bound == "endpoint":
    nats = lambda key, tokens: likelihood.endpoint_nats(
      law.params, key, tokens, clean_snr=CLEAN, **shared
    )[0]
  elif bound == "integral":
    nats = lambda key, tokens: likelihood.integral_nats(
      law.params, key, tokens, snr_grid=GRID, **shared
    )[0]
  else:
    path = paths.left_to_right(3)
    nats = lambda key, tokens: likelihood.path_nats(
      law.params, key, tokens, path, clean_snr=CLEAN, **shared
    ).sum(axis=1)
  nats, hits = jax.jit(nats), 0
  for i in range(200):
    found = nats(jax.random.key(i), law.sample(i, 256))
    found = estimate.ratio(found, np.ones(256), group=likelihood.GROUP)
    hits += abs(found.value - law.entropy) < 1.96 * found.stderr
  assert 180 <= hits <= 198
