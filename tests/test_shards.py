"""Rows of the vocabulary that several devices share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close

from dsl_jax.core import vocab
from dsl_jax.core.vocab import NEG_INF
from dsl_jax.nets.shards import ONE_DEVICE, Shards

KEY = jax.random.key(0)
P = jax.sharding.PartitionSpec
SHARDS = Shards("model")


def on_devices(fn, count, out_specs):
  """fn of arrays that each of so many devices along "model" has whole."""
  mesh = jax.make_mesh(
    (count,), ("model",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  return jax.jit(
    jax.shard_map(
      fn, mesh=mesh, in_specs=P(), out_specs=out_specs, check_vma=False
    )
  )


def nll_and_mean(shards, arrays, tokens):
  """The nll of all positions, and the expectation at all of them."""
  h, head, values, bias = arrays
  head, values = shards.own_rows(head), shards.own_rows(values)
  options = {"bias_V": shards.own_rows(bias, NEG_INF), "axis": shards.axis}
  nll = vocab.nll(h, head, tokens, **options)
  mean = vocab.expectation(h, head, values, **options)
  return nll, shards.gather(mean)


@pytest.mark.parametrize("devices", [2, 8])
def test_values_and_gradients_are_those_of_one_device(devices):
  """Of 13 rows the eighth device has none."""
  V, M, L = 13, 6, 16
  keys = jax.random.split(KEY, 5)
  h = jax.random.normal(keys[0], (3, L, M))
  head, values = jax.random.normal(keys[1], (2, V, M))
  bias = jax.random.normal(keys[2], (V,))
  tokens = jax.random.randint(keys[3], (3, L), 0, V)

  def loss(shards, arrays):
    results = nll_and_mean(shards, arrays, tokens)
    return sum(jnp.sum(jnp.sin(x) * x) for x in results), results

  def value_and_grad(shards, arrays):
    one = functools.partial(loss, shards)
    return jax.value_and_grad(one, has_aux=True)(arrays)

  def local(arrays):
    value, grads = value_and_grad(SHARDS, arrays)
    # All devices return the same loss, so their gradients sum to `devices`
    # times its gradient.
    mean = jax.tree.map(lambda x: jax.lax.pmean(x, "model"), grads)
    return jax.tree.map(lambda x: x[None], value), mean

  arrays = h, head, values, bias
  value, grads = value_and_grad(ONE_DEVICE, arrays)
  values_D, mean = on_devices(local, devices, (P("model"), P()))(arrays)
  for d in range(devices):
    assert_close(jax.tree.map(lambda x, d=d: x[d], values_D), value)
  assert_close(mean, grads)


def beta_gradient(q, keys, values, g):
  """d/d beta of <g, softmax(beta q keys^T) values> at beta = 1, in float64."""
  q, keys, values, g = (np.float64(x) for x in (q, keys, values, g))
  scores = q @ keys.T
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = g @ values.T
  ds = p * (dp - np.sum(p * dp, -1, keepdims=True))
  return np.sum(ds * scores)


def test_large_scores_cost_shards_no_more_precision_than_one_device():
  """The gradient of beta sums terms of the scores' size, which cancel."""
  rng = np.random.default_rng(0)
  B, L, V, D, M = 8, 8, 16, 4, 16

  def loss(shards, beta, q, keys, values, g):
    keys, values = shards.own_rows(keys), shards.own_rows(values)
    mean = vocab.expectation(beta * q, keys, values, axis=shards.axis)
    return jnp.sum(mean * shards.own(g))

  def local(*arrays):
    grad = jax.grad(functools.partial(loss, SHARDS))(*arrays)
    return jax.lax.psum(grad, "model")

  gradients = [
    jax.jit(jax.grad(functools.partial(loss, ONE_DEVICE))),
    *(on_devices(local, devices, P()) for devices in (2, 4)),
  ]
  errors = []
  for _ in range(30):
    keys = rng.normal(size=(V, D))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    snr = np.exp(rng.uniform(0, np.log(100), (B, L, 1)))
    q = snr * keys[rng.integers(0, V, (B, L))]
    q += np.sqrt(snr) * rng.normal(size=q.shape)
    values, g = rng.normal(size=(V, M)), 0.01 * rng.normal(size=(B, L, M))
    arrays = [jnp.float32(x) for x in (q, keys, values, g)]
    exact = beta_gradient(*arrays)
    errors.append(
      [float(grad(jnp.float32(1), *arrays)) - exact for grad in gradients]
    )
  one, two, four = np.sqrt(np.mean(np.square(errors), axis=0))
  assert 0 < one < 5e-6
  assert max(two, four) < 1.5 * one
