"""The draws of the training loss and of the endpoint bound: keys and strata."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from dsl_jax import likelihood, objective

CLEAN = 100.0
KEY = jax.random.key(0)
law = oracle.law


def test_objective_is_the_cross_entropy_and_ignores_how_batches_are_cut(law):
  tokens = law.sample(2, 64)
  mask = jnp.ones_like(tokens).at[:8, 2].set(0)
  never = lambda key, shape: jnp.zeros(shape)
  loss = functools.partial(
    objective.loss, law.params, denoiser=law.denoiser, clean_snr=CLEAN
  )
  mean, sums = loss(KEY, tokens, mask, law=never)
  hot = np.eye(4)[law.sequences]
  marginals = np.einsum("s,slv->lv", law.probs, hot)
  picked = np.log(marginals)[np.arange(3), np.asarray(tokens)]
  want = -np.sum(picked * np.asarray(mask))
  assert float(sums["nll"]) == pytest.approx(want, rel=1e-4)
  assert float(mean) == pytest.approx(want / (64 * 3 - 8), rel=1e-4)

  keys = jax.random.split(KEY, 64)
  noisy = lambda key, shape: 9 * jax.random.uniform(key, shape)
  whole = loss(keys, tokens, mask, law=noisy)[1]["nll"]
  parts = [
    loss(keys[i : i + 16], tokens[i : i + 16], mask[i : i + 16], law=noisy)
    for i in range(0, 64, 16)
  ]
  parts = sum(float(sums["nll"]) for _, sums in parts)
  assert float(whole) == pytest.approx(parts, rel=1e-5)


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
    law=lambda key, shape: jnp.ones(shape),
    clean_snr=CLEAN,
  )
  used = jax.random.key_data(jax.random.split(keys[0], 3)[:2]).tolist()
  assert jax.random.key_data(seen[0]).tolist() not in used


def test_rows_of_a_group_lie_in_different_strata():
  for batch in (1, 3, 4, 8, 11):
    u = np.asarray(likelihood._strata(KEY, batch))
    assert u.shape == (batch,) and (u >= 0).all() and (u <= 1).all()
    for first in range(0, batch, likelihood.GROUP):
      part = u[first : first + likelihood.GROUP]
      strata = np.floor(part * len(part))
      assert sorted(strata) == list(range(len(part)))
  many = jax.vmap(lambda key: likelihood._strata(key, 5))
  u = np.asarray(many(jax.random.split(KEY, 4000)))
  np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.03)  # each is uniform
  np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.005)


def test_strata_make_the_mean_of_a_group_surer():
  # Cross-entropy that depends on the number of visible tokens alone.
  L = 16
  table = jnp.eye(L, 2)
  seen = lambda z: jnp.sum(jnp.abs(z) > 0, axis=(1, 2), keepdims=True) / L

  denoiser = oracle.make(vocab_size=2, length=2).denoiser._replace(
    hidden=lambda p, z, key=None: jnp.concatenate(
      [8 * seen(z) * jnp.ones(z[..., :1].shape), jnp.zeros(z[..., :1].shape)],
      axis=-1,
    ),
    table=lambda p: table[:2],
  )
  run = jax.jit(
    jax.vmap(
      lambda key: likelihood.endpoint_nats(
        {},
        key,
        jnp.zeros((4, L), jnp.int32),
        denoiser=denoiser,
        clean_snr=CLEAN,
      )[0]
    )
  )
  nats = np.asarray(run(jax.random.split(KEY, 400)))
  assert nats.mean(axis=1).std() < 0.5 * nats.std() / 2  # 1 / sqrt(4)
