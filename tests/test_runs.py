"""Rows of the vocabulary that several devices share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax.core import vocab
from dsl_jax.nets import runs

KEY = jax.random.key(0)
P = jax.sharding.PartitionSpec


def spread(fn, parts, in_specs, out_specs):
  """fn on so many devices along the axis "m"."""
  mesh = jax.make_mesh((parts,), "m", axis_types=(jax.sharding.AxisType.Auto,))
  return jax.jit(
    jax.shard_map(
      fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
  )


@pytest.mark.parametrize(
  "parts, way", [(2, "auto"), (2, "reference"), (8, "auto")]
)
def test_value_and_gradients_are_those_of_one_device(parts, way):
  """Of 13 rows the eighth device has none."""
  V, M, L = 13, 6, 16
  keys = jax.random.split(KEY, 5)
  h, g = jax.random.normal(keys[0], (2, 3, L, M))
  head, values = jax.random.normal(keys[1], (2, V, M))
  bias = jax.random.normal(keys[2], (V,))
  tokens = jax.random.randint(keys[3], (3, L), 0, V)

  def loss(nll, expectation, own, h, head, values, bias, tokens, g):
    mean = expectation(h, head, own(values), bias_V=bias)
    nll = nll(h, own(head), tokens, bias_V=bias)
    return jnp.sum(g[..., 0] * nll) + jnp.sum(g * mean)

  def own(*arrays):
    one = functools.partial(
      loss,
      functools.partial(runs.nll, name="m", implementation=way),
      functools.partial(runs.expectation, name="m", implementation=way),
      functools.partial(runs.own, name="m"),
    )
    value, grads = jax.value_and_grad(one, (0, 1, 2, 3))(*arrays)
    dh, *whole = grads
    return *jax.lax.psum((value, *whole), "m"), dh

  cut = P(None, "m")
  specs = cut, P(), P(), P(), cut, cut
  value, *whole, dh = spread(own, parts, specs, (P(), P(), P(), P(), cut))(
    h, head, values, bias, tokens, g
  )
  plain = functools.partial(loss, vocab.nll, vocab.expectation, lambda x: x)
  want = jax.value_and_grad(plain, (0, 1, 2, 3))(
    h, head, values, bias, tokens, g
  )
  np.testing.assert_allclose(value, want[0], rtol=1e-6)
  for got, exact in zip((dh, *whole), want[1]):
    np.testing.assert_allclose(got, exact, atol=1e-5)


def beta_gradient(q, keys, values, g):
  """d/d beta of <g, softmax(beta q keys^T) values> at beta = 1, in float64."""
  q, keys, values, g = (np.float64(x) for x in (q, keys, values, g))
  scores = q @ keys.T
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = g @ values.T
  ds = p * (dp - np.sum(p * dp, -1, keepdims=True))
  return np.sum(ds * scores)


def test_large_scores_cost_runs_no_more_precision_than_one_device():
  """The gradient of beta sums terms of the scores' size, which cancel."""
  rng = np.random.default_rng(0)
  B, L, V, D, M = 8, 8, 16, 4, 16

  def loss(mean, beta, q, keys, values, g):
    found = mean(beta * q, keys, values, bias_V=jnp.zeros(V))
    return jnp.sum(found * g)

  plain = functools.partial(loss, vocab.expectation)
  run = functools.partial(runs.expectation, name="m", implementation="auto")
  shared = functools.partial(loss, run)
  own = lambda *args: jax.lax.psum(jax.grad(shared)(*args), "m")
  cut = P(None, "m")
  sides = [
    jax.jit(jax.grad(plain)),
    *(spread(own, m, (P(), cut, P(), P("m"), cut), P()) for m in (2, 4)),
  ]
  missed = []
  for _ in range(30):
    keys = rng.normal(size=(V, D))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    snr = np.exp(rng.uniform(0, np.log(100), (B, L, 1)))
    q = snr * keys[rng.integers(0, V, (B, L))]
    q += np.sqrt(snr) * rng.normal(size=q.shape)
    values, g = rng.normal(size=(V, M)), 0.01 * rng.normal(size=(B, L, M))
    arrays = [jnp.float32(x) for x in (q, keys, values, g)]
    want = beta_gradient(*arrays)
    missed.append(
      [float(side(jnp.float32(1), *arrays)) - want for side in sides]
    )
  alone, two, four = np.sqrt(np.mean(np.square(missed), axis=0))
  assert 0 < alone < 5e-6
  assert max(two, four) < 1.5 * alone
