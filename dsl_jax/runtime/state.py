"""The train state and the training step: loss, gradient, update."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dsl_jax import objective
from dsl_jax.data import packing
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.nets import shards as shards_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import optim
from dsl_jax.runtime import sharding as sharding_lib

_SUMS = ("nll", "tokens", "grad_norm", "bad")  # that a step returns


class TrainState(NamedTuple):
  """Everything a checkpoint holds; nothing random is in it."""

  step: jax.Array  # int32, updates done
  params: dict  # nested, f32
  opt_state: optax.OptState
  ema: dict  # moving average of params


class Recipe(NamedTuple):
  """What a training step depends on besides its state and batch."""

  # (params, key_B, tokens_BL, mask_BL) -> (scalar, {"nll": in nats, "tokens"})
  loss_fn: Callable
  tx: optax.GradientTransformation
  seed: int
  ema_decay: float  # limit of the moving average's decay
  microbatches: int = 1  # in which a device computes its rows
  sum_over_devices: Callable = lambda fn: fn  # see `sharding`
  eos_id: int | None = None  # of padded rows, see `packing.scored`


def create(params: dict, tx: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step."""
  # The average must not share buffers with params: the state is donated.
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(jnp.int32(0), params, tx.init(params), ema)


def abstract(
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  tx: optax.GradientTransformation,
) -> TrainState:
  """Returns the shapes and shardings of a run's train state."""
  init = denoiser_lib.make_denoiser(cfg.net).init
  params = jax.eval_shape(init, jax.random.key(0))
  state = jax.eval_shape(lambda x: create(x, tx), params)
  return sharding_lib.abstract(mesh, state)


def stream(seed: int, name: str) -> jax.Array:
  """Returns the random key of a named use: "init", "train", "eval", ..."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def sum_gradients(
  params: dict,
  key_B: jax.Array,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  *,
  loss_fn: Callable,
  microbatches: int = 1,
) -> tuple[dict, dict]:
  """Returns the sums of loss_fn, over microbatches, and the gradient."""
  split = jax.tree.map(
    lambda x: x.reshape(microbatches, -1, *x.shape[1:]),
    (key_B, tokens_BL, mask_BL),
  )

  def nll(params, microbatch):
    _, sums = loss_fn(params, *microbatch)
    return sums["nll"], sums

  def accumulate(total, microbatch):
    (_, sums), grads = jax.value_and_grad(nll, has_aux=True)(params, microbatch)
    return jax.tree.map(jnp.add, total, (sums, grads)), None

  zero = {"nll": jnp.float32(0), "tokens": jnp.float32(0)}
  zeros = zero, jax.tree.map(jnp.zeros_like, params)
  with jax.named_scope("microbatches"):
    return jax.lax.scan(accumulate, zeros, split)[0]


def train_step(
  state: TrainState, tokens_BL: jax.Array, recipe: Recipe
) -> tuple[TrainState, dict]:
  """Takes one optimiser step on the mean loss of all tokens.

  The noise of a sequence depends on the seed, the step and its row alone, so
  microbatches and devices change nothing but the order of sums. If the loss
  or the gradient is not finite the state is returned unchanged. Returns the new
  state and the sums {"nll", "tokens", "grad_norm", "bad"}, f32.
  """
  key = jax.random.fold_in(stream(recipe.seed, "train"), state.step)
  key_B = jax.random.split(key, len(tokens_BL))
  gradients = functools.partial(
    sum_gradients, loss_fn=recipe.loss_fn, microbatches=recipe.microbatches
  )
  gradients = recipe.sum_over_devices(gradients)
  mask_BL = jnp.ones(tokens_BL.shape, bool)
  if recipe.eos_id is not None:
    mask_BL = packing.scored(tokens_BL, recipe.eos_id)
  sums, grads = gradients(state.params, key_B, tokens_BL, mask_BL)
  scale = 1 / jnp.maximum(sums["tokens"], 1.0)
  grad_norm = scale * optax.global_norm(grads)
  is_good = jnp.isfinite(sums["nll"]) & jnp.isfinite(grad_norm)

  def update(state):
    # A product: XLA's CPU backend would write the array of quotients.
    mean = jax.tree.map(lambda g: scale * g, grads)
    updates, opt_state = optax.with_extra_args_support(recipe.tx).update(
      mean, state.opt_state, state.params, grad_norm=grad_norm
    )
    params = optax.apply_updates(state.params, updates)
    decay = optim.ema_decay(state.step + 1, recipe.ema_decay)
    ema = jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, state.ema, params
    )
    return TrainState(state.step + 1, params, opt_state, ema)

  # A choice leaf by leaf would keep the update from being done in place.
  new_state = jax.lax.cond(is_good, update, lambda state: state, state)
  bad = 1.0 - is_good.astype(jnp.float32)
  return new_state, sums | {"grad_norm": grad_norm, "bad": bad}


def train_steps(
  state: TrainState,
  tokens_KBL: tuple[jax.Array, ...],
  count: jax.Array,
  recipe: Recipe,
) -> tuple[TrainState, dict]:
  """Takes `count` steps, on the first of K batches, in one program.

  A small model spends much of its time between programs: the host starts each
  of them and gives it fresh memory. Returns the new state and sums [K].
  """
  tokens = jnp.stack(tokens_KBL)
  zeros = dict.fromkeys(_SUMS, jnp.zeros(len(tokens)))

  def body(k, carry):
    state, sums_K = carry
    state, sums = train_step(state, tokens[k], recipe)
    return state, {name: sums_K[name].at[k].set(sums[name]) for name in _SUMS}

  return jax.lax.fori_loop(0, count, body, (state, zeros))


def make_loss(
  cfg: config_lib.Config,
  *,
  dropout: bool,
  shards: shards_lib.Shards = shards_lib.ONE_DEVICE,
) -> Callable:
  """Returns the loss of a run, see `Recipe`; held-out text needs no dropout."""
  net = cfg.net if dropout else dataclasses.replace(cfg.net, dropout=0.0)
  return functools.partial(
    objective.loss,
    denoiser=denoiser_lib.make_denoiser(net, shards),
    law=config_lib.training_law(cfg),
    clean_snr=cfg.clean_snr,
  )


def jit_step(
  step: Callable,
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  tx: optax.GradientTransformation,
  abstract: TrainState,
  eos_id: int | None = None,
) -> jax.stages.Wrapped:
  """Jits `train_step` or `train_steps` of a run; the state is donated."""
  shards = sharding_lib.shards(mesh)
  if not cfg.net.unroll and mesh.devices.flat[0].platform == "tpu":
    # A loop starts nothing from the host, and compiles in minutes less.
    net = dataclasses.replace(cfg.net, unroll=1)
    cfg = dataclasses.replace(cfg, net=net)
  recipe = Recipe(
    loss_fn=make_loss(cfg, dropout=True, shards=shards),
    tx=tx,
    seed=cfg.seed,
    ema_decay=cfg.optim.ema_decay,
    microbatches=sharding_lib.num_microbatches(mesh, cfg),
    sum_over_devices=sharding_lib.sum_over_devices(mesh, abstract.params),
    eos_id=eos_id,
  )
  state, sums = sharding_lib.shardings(abstract), sharding_lib.replicated(mesh)
  step = functools.partial(step, recipe=recipe)
  return jax.jit(step, donate_argnums=0, out_shardings=(state, sums))
