"""Laws of the channel: moments, composition, invariance of the posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import channel, sphere

CLEAN = 50.0
N = 40_000


@pytest.fixture(scope="module")
def x_BLD():
  x = sphere.unit_rows(jnp.array([[1.0, -2.0, 0.5]]))
  return jnp.broadcast_to(x[None], (N, 1, 3))


def full(snr):
  return jnp.full((N, 1), snr)


def assert_at(z_BLD, x_BLD, snr):
  """z has mean t x and variance t in every coordinate."""
  z, x = np.asarray(z_BLD[:, 0]), np.asarray(x_BLD[0, 0])
  error = 5 * np.sqrt(snr / N) + 1e-6
  np.testing.assert_allclose(z.mean(0), snr * x, atol=error)
  np.testing.assert_allclose(
    np.cov(z.T), snr * np.eye(3), atol=6 * snr / np.sqrt(N) + 1e-6
  )


def test_observe_has_mean_t_x_and_variance_t(x_BLD):
  for snr in (0.3, 7.0):
    z = channel.observe(jax.random.key(0), x_BLD, full(snr), clean_snr=CLEAN)
    assert_at(z, x_BLD, snr)


def test_observe_is_exact_at_the_ends(x_BLD):
  key = jax.random.key(0)
  z = channel.observe(key, x_BLD, full(0.0), clean_snr=CLEAN)
  assert not z.any()
  z = channel.observe(key, x_BLD, full(jnp.inf), clean_snr=CLEAN)
  np.testing.assert_array_equal(z, CLEAN * x_BLD)


@pytest.mark.parametrize("snr,following", [(0.0, 2.0), (1.5, 6.0)])
@pytest.mark.parametrize("noise", [1.0, 0.5])
def test_advance_composes_with_observe(x_BLD, snr, following, noise):
  a, b = jax.random.split(jax.random.key(1))
  z = channel.observe(a, x_BLD, full(snr), clean_snr=CLEAN)
  z = channel.advance(
    b,
    z,
    x_BLD,
    full(snr),
    full(following),
    clean_snr=CLEAN,
    noise=noise,
  )
  assert_at(z, x_BLD, following)


@pytest.mark.parametrize(
  "snr,following", [(6.0, 1.5), (6.0, 0.0), (jnp.inf, 2.0), (jnp.inf, 0.0)]
)
def test_backtrack_composes_with_observe(x_BLD, snr, following):
  a, b = jax.random.split(jax.random.key(2))
  z = channel.observe(a, x_BLD, full(snr), clean_snr=CLEAN)
  z = channel.backtrack(b, z, full(snr), full(following), clean_snr=CLEAN)
  assert_at(z, x_BLD, following)


def test_equal_snr_leaves_the_state_alone(x_BLD):
  key = jax.random.key(3)
  for snr in (0.0, 0.7, jnp.inf):
    z = channel.observe(key, x_BLD, full(snr), clean_snr=CLEAN)
    up = channel.advance(key, z, x_BLD, full(snr), full(snr), clean_snr=CLEAN)
    down = channel.backtrack(key, z, full(snr), full(snr), clean_snr=CLEAN)
    np.testing.assert_array_equal(up, z)
    np.testing.assert_array_equal(down, z)


def test_commit_is_free_of_noise(x_BLD):
  key = jax.random.key(4)
  z = channel.observe(key, x_BLD, full(3.0), clean_snr=CLEAN)
  up = channel.advance(key, z, x_BLD, full(3.0), full(jnp.inf), clean_snr=CLEAN)
  np.testing.assert_array_equal(up, CLEAN * x_BLD)


def test_moves_keep_finite_gradients_at_zero_snr():
  x = sphere.unit_rows(jnp.ones((1, 3)))[None]

  def energy(x):
    z = channel.observe(jax.random.key(0), x, jnp.zeros((1, 1)), clean_snr=9.0)
    z = channel.advance(
      jax.random.key(1), z, x, 0.0, jnp.inf, clean_snr=9.0, noise=0.3
    )
    return jnp.sum(z * z)

  assert jnp.isfinite(jax.grad(energy)(x)).all()


def test_gradients_by_the_snr_are_finite_where_nothing_moves():
  x = sphere.unit_rows(jnp.ones((4, 3)))[None]

  def energy(snr_BL):
    seen = channel.observe(jax.random.key(0), x, snr_BL, clean_snr=9.0)
    key = jax.random.key(1)
    up = channel.advance(key, seen, x, snr_BL, snr_BL, clean_snr=9.0)
    flow = channel.advance(
      key, seen, x, snr_BL, snr_BL + 1, clean_snr=9.0, noise=0.0
    )
    down = channel.backtrack(key, seen, snr_BL, 0.5 * snr_BL, clean_snr=9.0)
    return jnp.sum(up * up + flow * flow + down * down)

  grad = jax.grad(energy)(jnp.array([[0.0, 0.5, 2.0, 40.0]]))
  assert jnp.isfinite(grad).all()


def posterior(law, z_LD, snr_L):
  """p(x | z, t) by enumeration from the Gaussian density, t and all."""
  x = np.asarray(law.params["table"])[law.sequences]  # [S, L, D]
  error = np.asarray(z_LD)[None] - snr_L[:, None] * x
  logp = np.log(law.probs) - 0.5 * np.sum(error**2 / snr_L[:, None], (1, 2))
  p = np.exp(logp - logp.max())
  return p / p.sum()


def test_posterior_does_not_depend_on_snr_for_unit_norms():
  law = oracle.make(vocab_size=3, length=3)
  z = np.random.default_rng(0).standard_normal((3, 3))
  low = posterior(law, z, np.array([0.5, 1.0, 2.0]))
  high = posterior(law, z, np.array([3.0, 0.2, 9.0]))
  np.testing.assert_allclose(low, high, atol=1e-6)


def test_posterior_depends_on_snr_for_unequal_norms():
  law = oracle.make(vocab_size=3, length=3, norms=[1.0, 1.5, 0.5])
  z = np.random.default_rng(0).standard_normal((3, 3))
  low = posterior(law, z, np.array([0.5, 1.0, 2.0]))
  high = posterior(law, z, np.array([3.0, 0.2, 9.0]))
  assert np.abs(low - high).max() > 0.05


def test_embed_refuses_foreign_ids_and_nearest_inverts_it():
  table = sphere.unit_rows(jax.random.normal(jax.random.key(0), (7, 4)))
  tokens = jnp.arange(7, dtype=jnp.int32)[None]
  x = sphere.embed(table, tokens)
  np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(sphere.nearest(table, 3.0 * x), tokens)
  assert jnp.isnan(sphere.embed(table, tokens + 7)).all()
