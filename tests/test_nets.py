"""The network: its layers against plain formulas, its switches against each
other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsl_jax import NetConfig, make_denoiser
from dsl_jax.nets import attention, layers, transformer

KEY = jax.random.key(0)
CFG = NetConfig(11, 16, 3, 2, 4)


@functools.cache
def params():
  """Parameters with noise on all of them: adaLN and head start at zero."""
  leaves, tree = jax.tree.flatten(make_denoiser(CFG).init(KEY))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [
    x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)
  ]
  return jax.tree.unflatten(tree, noisy)


def hidden(z_BLD, key=None, **changes):
  denoiser = make_denoiser(dataclasses.replace(CFG, **changes))
  return denoiser.hidden(params(), z_BLD, key=key)


def evidence(batch=3, length=5):
  return 3 * jax.random.normal(jax.random.key(2), (batch, length, 4))


def test_layer_norm_and_its_gradient():
  x, g = jax.random.normal(KEY, (2, 3, 7, 8))

  def plain(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

  (got, back), (want, plain_back) = (
    jax.vjp(f, x) for f in (layers.normalize, plain)
  )
  np.testing.assert_allclose(got, want, atol=2e-6)
  np.testing.assert_allclose(back(g)[0], plain_back(g)[0], atol=2e-6)


def test_gelu_before_a_product_and_its_gradients():
  x = jnp.linspace(-6, 6, 100).reshape(20, 5)
  kernel = jax.random.normal(KEY, (5, 3))

  def plain(x, kernel):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return (0.5 * x * (1 + jnp.tanh(inner))) @ kernel

  (got, back), (want, plain_back) = (
    jax.vjp(f, x, kernel) for f in (layers.gelu_matmul, plain)
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(back(jnp.cos(got)), plain_back(jnp.cos(got))):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_rotary_positions_turn_halves():
  x = jax.random.normal(KEY, (2, 5, 3, 8))
  cos, sin = layers.rotary_angles(5, 8)
  first, second = np.split(np.asarray(x), 2, axis=-1)
  turned = (first + 1j * second) * np.exp(
    1j * np.arctan2(sin, cos)[None, :, None]
  )
  want = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(layers.rotate(x, cos, sin), want, atol=1e-6)


def test_attention_is_the_softmax_of_scaled_scores():
  q, k, v = jax.random.normal(KEY, (3, 2, 5, 3, 8))
  scores = np.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(8)
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  want = np.einsum("bhlm,bmhk->blhk", weights, v)
  np.testing.assert_allclose(attention.attend(q, k, v, "xla"), want, atol=1e-5)


@pytest.mark.parametrize(
  "queries, scores, count",
  [
    (300, 128 * 300 * 6, 3),
    (256, 3 * 128 * 300 * 6, 1),
    (512, 3 * 128 * 300 * 6, 2),
    (130, 1, 2),
  ],
)
def test_attention_in_pieces_is_the_same(monkeypatch, queries, scores, count):
  B, H, keys = 2, 3, 300
  q, g = jax.random.normal(KEY, (2, B, queries, H, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, B, keys, H, 8))
  attend = lambda *qkv: attention.attend(*qkv, "xla")
  want, plain_back = jax.vjp(attend, q, k, v)
  monkeypatch.setattr(attention, "PIECE", scores)
  assert attention.pieces(B, queries, keys, H) == count
  got, back = jax.vjp(attend, q, k, v)
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(back(g), plain_back(g)):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("keys", [128, 256])
def test_the_kernel_for_tpus_is_the_same_attention(keys):
  """More keys than queries where devices share the positions of a row."""
  q, g = jax.random.normal(KEY, (2, 2, 128, 2, 16))
  k, v = jax.random.normal(jax.random.key(1), (2, 2, keys, 2, 16))
  (got, back), (want, plain_back) = (
    jax.vjp(f, q, k, v)
    for f in (
      lambda q, *kv: attention.splash(q / 4, *kv, interpret=True),
      lambda *qkv: attention.attend(*qkv, "xla"),
    )
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(back(g), plain_back(g)):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_length_the_kernel_does_not_take_falls_back():
  q, k, v = jax.random.normal(KEY, (3, 2, 5, 3, 8))
  plain, other = (attention.attend(q, k, v, x) for x in ("xla", "splash"))
  np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize(
  "changes", [{"unroll": 1}, {"remat": "dots"}, {"remat": "full", "unroll": 1}]
)
def test_how_the_blocks_are_run_changes_no_number(changes):
  def loss(params, **changes):
    denoiser = make_denoiser(dataclasses.replace(CFG, **changes))
    return jnp.sum(denoiser.hidden(params, evidence(), key=KEY) ** 2)

  base = {"dropout": 0.2}
  want = jax.value_and_grad(loss)(params(), **base)
  got = jax.value_and_grad(loss)(params(), **base, **changes)
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4),
    got,
    want,
  )


def test_bf16_is_near_f32():
  exact, low = hidden(evidence()), hidden(evidence(), dtype="bfloat16")
  assert low.dtype == jnp.bfloat16
  scale = jnp.sqrt(jnp.mean(exact**2))
  error = jnp.sqrt(jnp.mean((low.astype(jnp.float32) - exact) ** 2))
  assert 0 < error < 0.05 * scale


def test_a_sequence_keeps_its_dropout_in_any_batch():
  z, key_B = evidence(), jax.random.split(KEY, 3)
  whole = hidden(z, key_B, dropout=0.5)
  for b in range(3):
    alone = hidden(z[b : b + 1], key_B[b : b + 1], dropout=0.5)
    np.testing.assert_allclose(whole[b : b + 1], alone, atol=1e-5)
  assert not np.allclose(whole, hidden(z), atol=0.1)
  other = hidden(z, jax.random.split(jax.random.key(9), 3), dropout=0.5)
  assert not np.allclose(whole, other, atol=0.1)


def test_dropout_keeps_the_mean():
  x = jnp.ones((4, 50, 40))
  drop = functools.partial(layers.drop, place_L=jnp.arange(50))
  kept = drop(x, jax.random.split(KEY, 4), 0.25)
  assert float(jnp.mean(kept)) == pytest.approx(1, abs=0.02)
  assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
  assert np.unique(kept, axis=1).shape[1] > 40  # no two positions alike
  np.testing.assert_array_equal(drop(x, None, 0.25), x)


def test_blocks_run_in_turn_and_every_dropout_has_its_own_mask(monkeypatch):
  cfg, p, key_B = (
    dataclasses.replace(CFG, dropout=0.5),
    params(),
    jax.random.split(KEY, 3),
  )
  rows = jax.random.normal(KEY, (3, 5, 16))
  z = jnp.zeros((3, 5, 4))
  trunk = transformer.Network(cfg).apply(
    {"params": p}, rows, z, None, key_B, method="trunk"
  )
  used, drop = [], layers.drop

  def spy(x, key_B, **settings):
    used.append(jax.random.key_data(key_B).tobytes())
    return drop(x, key_B, **settings)

  monkeypatch.setattr(layers, "drop", spy)
  cond = layers.Condition(cfg.cond_dim)
  cond = cond.apply({"params": p["cond"]}, jnp.zeros((1, 1)))
  place = *layers.rotary_angles(5, 8), jnp.arange(5)
  x = rows
  for number in range(cfg.depth):
    layer = {"params": jax.tree.map(lambda w, i=number: w[i], p["blocks"])}
    x, _ = transformer._Block(cfg).apply(layer, x, number, cond, place, key_B)
  x = transformer._Final(cfg).apply({"params": p["final"]}, x, cond)
  np.testing.assert_allclose(trunk, x, atol=1e-5)
  assert len(used) == len(set(used)) == 2 * cfg.depth
