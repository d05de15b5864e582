"""The optimiser, the train step, and its sharding."""

import dataclasses
import functools
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dsl_jax.data import batches
from dsl_jax.modes import train
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, optim
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

B, L, V = 8, 8, 15
NET = config_lib.NetConfig(
  V, 16, 1, 2, 4, cond_dim=8, dropout=0.2, evidence_skip=True
)
DENOISER = denoiser_lib.make_denoiser(NET)
CFG = config_lib.Config(
  "toy",
  NET,
  seed=3,
  clean_snr=50.0,
  data=config_lib.Data(length=L),
  train=config_lib.Train(batch_size=B),
)
DSL_LOSS = state_lib.make_loss(CFG, dropout=True)


def toy_loss(params, key_B, tokens_BL, mask_BL):
  """Cross-entropy of a table read with noise: cheap to compile."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (L, 1)))(key_B)
  kernel_VV = params["head"]["kernel"]
  logits = (
    kernel_VV[tokens_BL] * (1 + 0.1 * noise) * params["converter"]["beta"]
  )
  nll_BL = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BL)
  weight_BL = mask_BL.astype(jnp.float32)
  sums = {"nll": jnp.sum(nll_BL * weight_BL), "tokens": jnp.sum(weight_BL)}
  return sums["nll"] / sums["tokens"], sums


def toy_params():
  kernel = np.random.default_rng(1).normal(size=(V, V)).astype(np.float32)
  return {
    "converter": {"beta": jnp.float32(0.7)},
    "head": {"kernel": jnp.asarray(kernel)},
  }


def dsl_params():
  """Random parameters of the network; nothing is zero, nor its gradient.

  Their mean is zero: others make gradients of large terms that cancel.
  """
  rng = np.random.default_rng(2)
  shapes = jax.eval_shape(DENOISER.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes
  )


def batch():
  rng = np.random.default_rng(0)
  return rng.integers(0, V, (B, L), dtype=np.int32)


def padded():
  """Rows of 1 to 7 tokens before EOS, which is 0 and pads, and their mask."""
  place_L, size_B1 = np.arange(L), np.minimum(np.arange(1, B + 1), 7)[:, None]
  tokens = np.where(place_L < size_B1, np.maximum(batch(), 1), 0)
  return tokens.astype(np.int32), place_L <= size_B1


def step_fn(tx, *, loss_fn=toy_loss, ema_decay=0.9999, **settings):
  recipe = state_lib.Recipe(loss_fn, tx, CFG.seed, ema_decay, **settings)
  return functools.partial(state_lib.train_step, recipe=recipe)


@functools.cache
def one_device(eos_id=None):
  """A step of the whole batch at once, on one device."""
  tx = optax.sgd(1.0)  # the update is the gradient
  state = jax.device_get(state_lib.create(dsl_params(), tx))
  step = jax.jit(step_fn(tx, loss_fn=DSL_LOSS, eos_id=eos_id))
  return state, *step(state, batch() if eos_id is None else padded()[0])


def assert_same_update(state, expected, start):
  """Every leaf moved alike, up to rounding of its size and its motion."""

  def leaf(a, b, x):
    moved = np.abs(b - x).max()
    assert moved > 1e-4  # else agreement would mean little
    atol = 2e-7 * max(1.0, np.abs(b).max()) + 1e-5 * moved
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)

  trees = (jax.device_get(s.params) for s in (state, expected, start))
  jax.tree.map(leaf, *trees)


def test_accumulated_equals_single_batch():
  state, one, sums_1 = one_device()
  step = step_fn(optax.sgd(1.0), loss_fn=DSL_LOSS, microbatches=4)
  four, sums_4 = jax.jit(step)(state, batch())
  assert float(sums_1["tokens"]) == B * L
  chex.assert_trees_all_close(sums_1, sums_4, rtol=1e-5)
  assert_same_update(four, one, state)


@pytest.mark.parametrize("pad", [False, True])
def test_step_follows_the_mean_loss_with_its_own_noise(pad):
  tx = optax.sgd(1.0)
  state = state_lib.create(toy_params(), tx)
  tokens, mask = padded() if pad else (batch(), np.ones((B, L), bool))
  key = jax.random.fold_in(state_lib.stream(3, "train"), 0)
  mean_loss = jax.jit(jax.value_and_grad(toy_loss, has_aux=True))
  key_B = jax.random.split(key, B)
  (loss, _), grads = mean_loss(state.params, key_B, tokens, mask)
  # Parts have different numbers of tokens: their means are not averaged.
  settings = {"eos_id": 0, "microbatches": 4} if pad else {}
  step = jax.jit(step_fn(tx, **settings))
  new, sums = step(state, tokens)
  assert float(sums["tokens"]) == mask.sum()
  np.testing.assert_allclose(sums["nll"] / sums["tokens"], loss, rtol=1e-6)
  norm = optax.global_norm(grads)
  np.testing.assert_allclose(sums["grad_norm"], norm, rtol=1e-5)
  chex.assert_trees_all_close(
    new.params, jax.tree.map(jnp.subtract, state.params, grads), atol=1e-6
  )
  _, later = step(new._replace(params=state.params), tokens)
  assert later["nll"] != sums["nll"]  # another step, other noise


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_step_changes_nothing(value):
  tx = optim.make(config_lib.Optim(), 10)
  tokens = batch()
  step = jax.jit(step_fn(tx))
  state, sums = step(state_lib.create(toy_params(), tx), tokens)
  assert sums["bad"] == 0
  assert state.step == 1
  state.params["head"]["kernel"] = (
    state.params["head"]["kernel"].at[0].set(value)
  )
  after, sums = step(state, tokens)
  assert sums["bad"] == 1
  chex.assert_trees_all_equal(after, state)


def test_ema_follows_the_warm_up_rule():
  assert optim.ema_decay(1, 0.9999) == np.float32(2 / 11)
  assert optim.ema_decay(990, 0.9999) == np.float32(0.991)
  assert optim.ema_decay(10**6, 0.9999) == np.float32(0.9999)
  tx = optax.sgd(0.5)
  state = state_lib.create(toy_params(), tx)
  tokens = batch()
  step = jax.jit(step_fn(tx, ema_decay=0.22))
  average = state.params
  for decay in (2 / 11, 0.22, 0.22):  # 3 / 12 is already over the limit
    state, _ = step(state, tokens)
    average = jax.tree.map(
      lambda e, p, d=decay: d * e + (1 - d) * p, average, state.params
    )
  chex.assert_trees_all_close(state.ema, average, atol=1e-6)


@pytest.mark.parametrize("beta_scale", [1.0, 5.0])
def test_converter_and_beta_move_further(beta_scale):
  grads = jax.tree.map(jnp.ones_like, toy_params())
  grads["converter"]["bias"] = jnp.ones(3)
  cfg = config_lib.Optim(
    learning_rate=1e-2, clip_norm=1e9, beta_lr_scale=beta_scale
  )
  tx = optim.make(cfg, 10)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  fresh = updates["converter"]
  np.testing.assert_allclose(updates["head"]["kernel"], -1e-2, rtol=1e-5)
  np.testing.assert_allclose(fresh["bias"], -1e-1, rtol=1e-5)
  np.testing.assert_allclose(fresh["beta"], -1e-1 * beta_scale, rtol=1e-5)


def test_weight_decay_is_only_on_kernels():
  layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}
  params = {"blocks": layer, "converter": {"table": jnp.ones((2, 2))}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = optim.make(config_lib.Optim(learning_rate=0.1, weight_decay=0.5), 10)
  updates, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(updates["blocks"]["kernel"], -0.05)
  assert not updates["blocks"]["bias"].any()
  assert not updates["converter"]["table"].any()


def test_clipping_bounds_the_gradient():
  grads = {"head": {"kernel": jnp.full((4,), 100.0)}}
  for clip in (1.0, 1e-3):
    # eps = 1 makes the first Adam update g / (g + 1): it shows the size of g.
    tx = optim.make(
      config_lib.Optim(learning_rate=1.0, eps=1.0, clip_norm=clip), 1
    )
    g = clip / 2  # four equal elements of norm clip
    for known in ({}, {"grad_norm": jnp.float32(200)}):
      updates, _ = tx.update(grads, tx.init(grads), grads, **known)
      np.testing.assert_allclose(
        updates["head"]["kernel"], -g / (g + 1), rtol=1e-5
      )


def test_a_first_moment_in_bf16_moves_almost_alike():
  tokens = batch()
  kernels = {}
  for dtype in ("float32", "bfloat16"):
    tx = optim.make(config_lib.Optim(learning_rate=0.1, mu_dtype=dtype), 10)
    state, step = state_lib.create(toy_params(), tx), jax.jit(step_fn(tx))
    for _ in range(3):
      state, _ = step(state, tokens)
    moments = state.opt_state[1]
    assert {str(x.dtype) for x in jax.tree.leaves(moments.mu)} == {dtype}
    assert {str(x.dtype) for x in jax.tree.leaves(moments.nu)} == {"float32"}
    kernels[dtype] = state.params["head"]["kernel"]
  exact, low = kernels.values()
  assert jnp.abs(exact - toy_params()["head"]["kernel"]).max() > 0.2
  assert 0 < jnp.abs(exact - low).max() < 5e-3


def test_muon_turns_inner_matrices_and_adam_moves_the_rest():
  key = jax.random.key(0)
  grads = {
    "blocks": {
      "qkv": {"kernel": jax.random.normal(key, (2, 8, 24))},
      "mlp_in": {"bias": jnp.ones((2, 8))},
    },
    "head": {"kernel": jnp.ones((8, 8))},
    "converter": {"beta": jnp.ones(())},
  }
  tx = optim.make(config_lib.Optim(name="muon", learning_rate=0.1), 10)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  turned = np.asarray(updates["blocks"]["qkv"]["kernel"])
  # All singular values near 0.1 * 0.2 * sqrt(24), in each of the two blocks.
  values = np.linalg.svd(turned, compute_uv=False) / (0.02 * 24**0.5)
  np.testing.assert_allclose(values, 1.0, atol=0.35)
  assert np.sum(turned * np.asarray(grads["blocks"]["qkv"]["kernel"])) < 0
  for rest in (updates["blocks"]["mlp_in"]["bias"], updates["head"]["kernel"]):
    np.testing.assert_allclose(rest, -0.1, rtol=1e-5)
  np.testing.assert_allclose(updates["converter"]["beta"], -1.0, rtol=1e-5)


def test_schedules():
  cfg = config_lib.Optim(learning_rate=2.0, warmup_steps=4)
  rate = optim.schedule(cfg, 104)
  np.testing.assert_allclose([rate(n) for n in (0, 3, 50)], [0.0, 1.5, 2.0])
  cfg = config_lib.Optim(learning_rate=2.0, warmup_steps=4, schedule="cosine")
  rate = optim.schedule(cfg, 104)
  np.testing.assert_allclose(
    [rate(n) for n in (1, 4, 54, 104)], [0.5, 2.0, 1.0, 0.0], atol=1e-6
  )


@pytest.mark.parametrize(
  "sizes, eos_id",
  [
    ((8, 1, 1), None),
    ((1, 8, 1), None),
    ((1, 1, 4), None),
    ((2, 2, 2), None),
    ((2, 2, 2), 0),
  ],
)
def test_a_step_is_the_same_on_every_mesh(monkeypatch, sizes, eos_id):
  monkeypatch.setattr(sharding_lib, "_SMALL", 64)  # shard even this net
  state, expected, sums_1 = one_device(eos_id)
  devices = jax.devices()[: math.prod(sizes)]
  mesh = sharding_lib.make_mesh(config_lib.Mesh(*sizes), devices)
  abstract = sharding_lib.abstract(mesh, state)
  tx = optax.sgd(1.0)
  step = state_lib.jit_step(
    state_lib.train_step, CFG, mesh, tx, abstract, eos_id
  )
  tokens = batch() if eos_id is None else padded()[0]
  rows = sharding_lib.batch_sharding(mesh, sharding_lib.ROWS)
  there = sharding_lib.shardings(abstract)
  after, sums = step(jax.device_put(state, there), jax.device_put(tokens, rows))
  np.testing.assert_allclose(sums["nll"], sums_1["nll"], rtol=1e-6)
  assert sums["tokens"] == sums_1["tokens"]
  assert_same_update(after, expected, state)


def test_moments_and_averages_are_sharded_like_parameters(monkeypatch):
  monkeypatch.setattr(sharding_lib, "_SMALL", 64)
  mesh = sharding_lib.make_mesh(config_lib.Mesh(2, 2, 2))

  def shardings(**options):
    tx = optim.make(config_lib.Optim(**options), 10)
    state = jax.eval_shape(lambda: state_lib.create(dsl_params(), tx))
    return sharding_lib.shardings(sharding_lib.abstract(mesh, state))

  state = shardings(mu_dtype="bfloat16")
  axes = ("fsdp", "model")
  for tree in (state.params, state.ema, state.opt_state[1].mu):
    assert tree["embed"]["embedding"].spec == P(None, axes)  # also of 16 rows
    assert tree["head"]["kernel"].spec == P(None, axes)
    assert tree["blocks"]["qkv"]["kernel"].spec == P(None, None, axes)
    assert tree["blocks"]["norm1"]["scale"].spec == P(None, None)
  assert state.step.spec == P()
  states = shardings(name="muon").opt_state[1].inner_states
  muon, adam = states["muon"].inner_state, states["adam"].inner_state
  momentum = muon.inner_states["muon"].inner_state[0].mu
  assert momentum["blocks"]["qkv"]["kernel"].spec == P(None, None, axes)
  assert adam.mu["head"]["kernel"].spec == P(None, axes)


@pytest.mark.parametrize(
  "batch_size, rows, microbatches, expected",
  [
    (64, 0, 1, 1),
    (64, 4, 1, 2),
    (64, 3, 1, 4),  # of 8 rows, so that microbatches are equal
    (64, 99, 1, 1),
    (64, 4, 4, 4),
    (8, 4, 1, 1),
  ],
)
def test_microbatches_hold_at_most_mesh_rows(
  batch_size, rows, microbatches, expected
):
  cfg = config_lib.Config(
    "toy",
    NET,
    train=config_lib.Train(batch_size=batch_size, microbatches=microbatches),
    mesh=config_lib.Mesh(rows=rows),
  )
  mesh = sharding_lib.make_mesh(config_lib.Mesh())
  assert sharding_lib.num_microbatches(mesh, cfg) == expected


def test_every_process_loads_the_rows_of_its_devices(monkeypatch):
  mesh = sharding_lib.make_mesh(config_lib.Mesh(2, 2, 2))
  rows, shards = np.arange(24).reshape(8, 3), []

  def batch_at(rows, step, *, shard, **_):
    shards.append(rows[shard][:, 0].tolist())
    return rows[shard]

  monkeypatch.setattr(batches, "batch_at", batch_at)
  cfg = dataclasses.replace(CFG, data=config_lib.Data(length=3))
  (array,), _ = train.make_loader(cfg, mesh, rows)((0, 1))
  np.testing.assert_array_equal(array, rows)
  # Devices along model have the same rows.
  assert sorted({shard[0] for shard in shards}) == [0, 6, 12, 18]
  assert all(len(shard) == 2 for shard in shards)
  assert {s.data.shape for s in array.addressable_shards} == {(2, 3)}
  # A batch for evaluation lies over all axes, filled up with zeros.
  array = sharding_lib.put_batch(mesh, rows[:6])
  np.testing.assert_array_equal(array, [*rows[:6], [0] * 3, [0] * 3])
  assert {s.data.shape for s in array.addressable_shards} == {(1, 3)}


def test_mesh_must_fit_the_devices():
  mesh = sharding_lib.make_mesh(config_lib.Mesh(-1, 2, 2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}
  for sizes in ((3, 1, 1), (-1, 3, 1), (-1, -1, 1), (4, 1, 1)):
    with pytest.raises(errors.UserError, match="multiply to the 8 devices"):
      sharding_lib.make_mesh(config_lib.Mesh(*sizes))
  cfg = dataclasses.replace(CFG, data=config_lib.Data(length=7))
  with pytest.raises(errors.UserError, match=r"mesh\.model is 2; it must"):
    sharding_lib.num_microbatches(mesh, cfg)


@pytest.mark.parametrize("platform, unroll", [("cpu", 0), ("tpu", 1)])
def test_to_train_on_tpus_blocks_are_a_loop(monkeypatch, platform, unroll):
  def make_loss(cfg, **_):
    raise InterruptedError(cfg.net.unroll)

  monkeypatch.setattr(state_lib, "make_loss", make_loss)
  device = types.SimpleNamespace(platform=platform)
  devices = np.array([device])
  mesh = types.SimpleNamespace(shape={"model": 1}, devices=devices)
  with pytest.raises(InterruptedError, match=str(unroll)):
    state_lib.jit_step(None, CFG, mesh, None, None)
