"""Layers against plain formulas; options of the network against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_close, tiny

from dsl_jax import NetConfig, make_denoiser
from dsl_jax.core import platforms
from dsl_jax.nets import attention, layers, transformer
from dsl_jax.nets.shards import ONE_DEVICE

KEY = jax.random.key(0)
CFG = NetConfig(11, 16, 3, 2, 4)  # of tiny(depth=3)


def hidden(z_BLD, key=None, **changes):
  denoiser = make_denoiser(dataclasses.replace(CFG, **changes))
  return denoiser.hidden(tiny(depth=3)[1], z_BLD, key=key)


def evidence(batch=3, length=5):
  return 3 * jax.random.normal(jax.random.key(2), (batch, length, 4))


def with_gradients(fn, g, *args):
  """The result, and the gradients of <g, result> by every argument."""
  result, back = jax.vjp(fn, *args)
  return result, back(g)


@pytest.mark.parametrize("rows", [1, 7])
def test_layer_norm_and_its_gradients(platform, rows):
  x, g = jax.random.normal(KEY, (2, 3, 7, 8))
  gain = jax.random.normal(jax.random.key(1), (1, rows, 8))

  def plain(x, gain):
    x = x - x.mean(-1, keepdims=True)
    return gain * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

  assert_close(
    with_gradients(layers.normalize, g, x, gain),
    with_gradients(plain, g, x, gain),
  )


def test_gelu_before_a_product_and_its_gradients(platform):
  x = jnp.linspace(-6, 6, 100).reshape(20, 5)
  kernel = jax.random.normal(KEY, (5, 3))

  def plain(x, kernel):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return (0.5 * x * (1 + jnp.tanh(inner))) @ kernel

  g = jax.random.normal(jax.random.key(1), (20, 3))
  assert_close(
    with_gradients(layers.gelu_matmul, g, x, kernel),
    with_gradients(plain, g, x, kernel),
  )


def test_rotary_positions_rotate_halves():
  x = jax.random.normal(KEY, (2, 5, 3, 8))
  cos, sin = layers.rotary_angles(5, 8)
  first, second = np.split(np.asarray(x), 2, axis=-1)
  rotated = (first + 1j * second) * np.exp(
    1j * np.arctan2(sin, cos)[None, :, None]
  )
  expected = np.concatenate([rotated.real, rotated.imag], -1)
  assert_close(layers.rotate(x, cos, sin), expected)


def plain_attention(q, k, v):
  scores = jnp.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5
  return jnp.einsum("bhlm,bmhk->blhk", jax.nn.softmax(scores), v)


def attention_inputs(queries, keys, head_dim=8):
  """Cotangent, queries, keys and values."""
  g, q = jax.random.normal(KEY, (2, 2, queries, 3, head_dim))
  k, v = jax.random.normal(jax.random.key(1), (2, 2, keys, 3, head_dim))
  return g, q, k, v


@pytest.mark.parametrize(
  "queries, tile_scores, tiles",
  [
    (300, 1 << 24, 1),
    (300, 128 * 300 * 6, 3),
    (256, 3 * 128 * 300 * 6, 1),
    (640, 3 * 128 * 300 * 6, 5),  # equal tiles
    (130, 1, 2),
  ],
)
def test_attention_in_tiles(monkeypatch, platform, queries, tile_scores, tiles):
  own = getattr(platforms, platform.upper())
  own = own._replace(attention_scores=tile_scores)
  monkeypatch.setattr(platforms, platform.upper(), own)
  assert attention.num_tiles(tile_scores, queries, 2 * 3 * 300) == tiles
  arguments = attention_inputs(queries, 300)
  attend = functools.partial(attention.attend, implementation="xla")
  assert_close(
    with_gradients(attend, *arguments),
    with_gradients(plain_attention, *arguments),
  )


@pytest.mark.parametrize("keys", [128, 256])
def test_the_kernel_for_tpus(keys):
  """More keys than queries where devices share the positions of a row."""

  def splash(q, k, v):
    return attention.splash(q / 4, k, v, interpret=True)

  arguments = attention_inputs(128, keys, head_dim=16)
  assert_close(
    with_gradients(splash, *arguments),
    with_gradients(plain_attention, *arguments),
  )


def test_lengths_that_the_kernel_does_not_take_use_xla():
  _, q, k, v = attention_inputs(5, 5)
  plain, other = (attention.attend(q, k, v, x) for x in ("xla", "splash"))
  np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize(
  "changes", [{"unroll": 1}, {"remat": "dots"}, {"remat": "full", "unroll": 1}]
)
def test_unrolling_and_rematerialisation_change_no_number(changes):
  def loss(params, cfg):
    h = make_denoiser(cfg).hidden(params, evidence(), key=KEY)
    return jnp.sum(h**2)

  cfg = dataclasses.replace(CFG, dropout=0.2)
  other = dataclasses.replace(cfg, **changes)
  _, params = tiny(depth=3)
  value_and_grad = jax.value_and_grad(loss)
  assert_close(value_and_grad(params, other), value_and_grad(params, cfg), 1e-4)


def test_bf16_is_near_f32_and_nearer_with_its_residual_stream_in_f32():
  def states(**changes):
    cfg = dataclasses.replace(CFG, depth=8, **changes)
    return make_denoiser(cfg).hidden(tiny(depth=8)[1], evidence(8, 16))

  def error(h):
    assert h.dtype == jnp.bfloat16
    return jnp.std(h.astype(jnp.float32) - exact)

  exact = states()
  rounded = error(states(dtype="bfloat16"))
  in_f32 = error(states(dtype="bfloat16", f32_residual=True))
  assert 0 < in_f32 < rounded < 0.05 * jnp.std(exact)


def test_the_evidence_skip_adds_gained_evidence_to_the_logits():
  net = make_denoiser(dataclasses.replace(CFG, evidence_skip=True))
  params, z_BLD = tiny(depth=3)[1], evidence()
  assert net.init(KEY)["evidence_gain"] == 0

  def logits(gain):
    params_with = params | {"evidence_gain": jnp.float32(gain)}
    head_VM, bias_V = net.head(params_with)
    return net.hidden(params_with, z_BLD) @ head_VM.T + bias_V[None, None]

  plain = hidden(z_BLD) @ params["head"]["kernel"].T
  plain = plain + params["head"]["bias"][None, None]
  assert_close(logits(0.0), plain)
  evidence_BLV = z_BLD @ net.table(params).T
  assert_close(logits(0.7), plain + 0.7 * evidence_BLV)


def test_a_sequence_keeps_its_dropout_in_any_batch():
  z, key_B = evidence(), jax.random.split(KEY, 3)
  whole = hidden(z, key_B, dropout=0.5)
  for b in range(3):
    alone = hidden(z[b : b + 1], key_B[b : b + 1], dropout=0.5)
    assert_close(alone, whole[b : b + 1])
  assert not np.allclose(whole, hidden(z), atol=0.1)
  other = hidden(z, jax.random.split(jax.random.key(9), 3), dropout=0.5)
  assert not np.allclose(whole, other, atol=0.1)


def test_dropout_keeps_the_mean():
  x = jnp.ones((4, 50, 40))
  drop = functools.partial(layers.dropout, position_L=jnp.arange(50))
  kept = drop(x, jax.random.split(KEY, 4), 0.25)
  assert float(jnp.mean(kept)) == pytest.approx(1, abs=0.02)
  assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
  assert np.unique(kept, axis=1).shape[1] > 40  # no two positions alike
  np.testing.assert_array_equal(drop(x, None, 0.25), x)


def test_blocks_in_order_each_with_dropout_masks_of_its_own(monkeypatch):
  cfg = dataclasses.replace(CFG, dropout=0.5)
  _, params = tiny(depth=3)
  x, key_B = jax.random.normal(KEY, (3, 5, 16)), jax.random.split(KEY, 3)
  arguments = x, jnp.zeros((3, 5, 4)), None, key_B
  trunk = transformer.Network(cfg).apply(
    {"params": params}, *arguments, method="trunk"
  )

  used, dropout = [], layers.dropout

  def recorded(x, key_B, rate, *, position_L):
    used.append(jax.random.key_data(key_B).tobytes())
    return dropout(x, key_B, rate, position_L=position_L)

  monkeypatch.setattr(layers, "dropout", recorded)
  cond = layers.Condition(cfg.cond_dim)
  cond = cond.apply({"params": params["cond"]}, jnp.zeros((1, 1)))
  place = transformer._Place(*layers.rotary_angles(5, 8), jnp.arange(5))
  block = transformer._Block(cfg, ONE_DEVICE)
  for number in range(cfg.depth):
    layer = jax.tree.map(lambda w, i=number: w[i], params["blocks"])
    x, _ = block.apply({"params": layer}, x, number, cond, place, key_B)
  x = transformer._Final(cfg).apply({"params": params["final"]}, x, cond)
  assert_close(trunk, x)
  assert len(used) == len(set(used)) == 2 * cfg.depth
