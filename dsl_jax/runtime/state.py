"""The train state and one pure training step."""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dsl_jax.runtime import optim


class TrainState(NamedTuple):
  """Everything a checkpoint holds; nothing random is in it.

  Attributes:
    step: int32, updates done.
    params: nested dict of f32 arrays.
    opt_state: of the optimiser.
    ema: moving average of params.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  ema: dict


def create(params: dict, tx: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step."""
  # The average must not share buffers with params: the state is donated.
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(jnp.int32(0), params, tx.init(params), ema)


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
  """Returns the sums of loss_fn and the gradient of its nll, part by part.

  Args:
    params: of the denoiser.
    key_B: a key for every row.
    tokens_BL: int32.
    mask_BL: validity of every position.
    loss_fn: see `train_step`.
    microbatches: parts of the rows, computed one after the other; a divisor
      of B.

  Returns:
    {"nll", "tokens"} and the gradient of "nll", like params.
  """
  parts = jax.tree.map(
    lambda x: x.reshape(microbatches, -1, *x.shape[1:]),
    (key_B, tokens_BL, mask_BL),
  )

  def nll(params, part):
    _, sums = loss_fn(params, *part)
    return sums["nll"], sums

  def accumulate(total, part):
    (_, sums), grads = jax.value_and_grad(nll, has_aux=True)(params, part)
    return jax.tree.map(jnp.add, total, (sums, grads)), None

  zero = {"nll": jnp.float32(0), "tokens": jnp.float32(0)}
  zeros = zero, jax.tree.map(jnp.zeros_like, params)
  with jax.named_scope("passes"):
    return jax.lax.scan(accumulate, zeros, parts)[0]


def train_step(
  state: TrainState,
  tokens_BL: jax.Array,
  mask_BL: jax.Array,
  *,
  loss_fn: Callable,
  tx: optax.GradientTransformation,
  seed: int,
  ema_decay: float,
  microbatches: int = 1,
  spread: Callable = lambda fn: fn,
) -> tuple[TrainState, dict]:
  """Takes one optimiser step on the mean loss of all valid tokens.

  The noise of a sequence depends on the seed, the step and its row alone, so
  microbatches and devices change nothing but the order of sums. If the loss
  or the gradient is not finite the state is returned as it was.

  Args:
    state: donate it when jitting.
    tokens_BL: int32, the whole batch.
    mask_BL: validity of every position.
    loss_fn: (params, key_B, tokens_BL, mask_BL) -> (scalar, sums) with sums
      {"nll": in nats, "tokens": how many}.
    tx: the optimiser.
    seed: of the run.
    ema_decay: limit of the moving average's decay.
    microbatches: parts in which a device computes its rows; a divisor of
      their number.
    spread: `partition.spread` for several devices.

  Returns:
    The new state, and sums {"nll", "tokens", "grad_norm", "bad"}, f32.
  """
  B = tokens_BL.shape[0]
  key_B = jax.random.split(
    jax.random.fold_in(stream(seed, "train"), state.step), B
  )
  gradients = functools.partial(
    sum_gradients, loss_fn=loss_fn, microbatches=microbatches
  )
  sums, grads = spread(gradients)(state.params, key_B, tokens_BL, mask_BL)
  share = 1 / jnp.maximum(sums["tokens"], 1.0)
  grad_norm = share * optax.global_norm(grads)
  good = jnp.isfinite(sums["nll"]) & jnp.isfinite(grad_norm)

  def update(state):
    # A product, for XLA's CPU backend would write quotients down.
    mean = jax.tree.map(lambda g: share * g, grads)
    updates, opt_state = optax.with_extra_args_support(tx).update(
      mean, state.opt_state, state.params, grad_norm=grad_norm
    )
    params = optax.apply_updates(state.params, updates)
    decay = optim.ema_decay(state.step + 1, ema_decay)
    ema = jax.tree.map(
      lambda e, p: decay * e + (1 - decay) * p, state.ema, params
    )
    return TrainState(state.step + 1, params, opt_state, ema)

  # A choice leaf by leaf would keep the update from being done in place.
  new = jax.lax.cond(good, update, lambda state: state, state)
  bad = 1.0 - good.astype(jnp.float32)
  return new, sums | {"grad_norm": grad_norm, "bad": bad}


def train_steps(
  state: TrainState,
  tokens_KBL: tuple[jax.Array, ...],
  mask_BL: jax.Array,
  count: jax.Array,
  *,
  step: Callable,
) -> tuple[TrainState, dict]:
  """Takes several steps in one program.

  A small model spends much of its time between programs: the host starts each
  of them and gives it fresh memory.

  Args:
    state: donate it when jitting.
    tokens_KBL: K batches.
    mask_BL: validity of every position, for all of them.
    count: int32, steps to take, at most K; the other batches are ignored.
    step: `train_step` with its settings.

  Returns:
    The new state, and the sums of every step, each [K].
  """
  tokens = jnp.stack(tokens_KBL)
  shapes = jax.eval_shape(step, state, tokens[0], mask_BL)[1]
  zeros = jax.tree.map(lambda x: jnp.zeros(len(tokens), x.dtype), shapes)

  def body(k, carry):
    state, sums_K = carry
    state, sums = step(state, tokens[k], mask_BL)
    put = lambda all_K, x: all_K.at[k].set(x)
    return state, jax.tree.map(put, sums_K, sums)

  return jax.lax.fori_loop(0, count, body, (state, zeros))
