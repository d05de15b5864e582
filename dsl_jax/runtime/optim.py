"""The optimiser: clip, Adam or Muon, decay, a converter group, warm-up."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dsl_jax.runtime import config as config_lib


def _clip(limit):
  """Clips by the global norm with one product, which XLA fuses into Adam.

  optax.clip_by_global_norm selects among quotients: XLA's CPU backend writes
  them down, a copy of all gradients.
  """

  def update(grads, state, params=None, *, grad_norm=None):
    del params
    norm = optax.global_norm(grads) if grad_norm is None else grad_norm
    factor = jnp.minimum(1.0, limit / norm)
    return jax.tree.map(lambda g: g * factor, grads), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _mask(contains: Callable[[list[str]], bool]):
  """Returns params -> which leaves have a path of keys that it `contains`."""
  return lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: contains([key.key for key in path]), params
  )


def schedule(cfg: config_lib.Optim, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the updates done.

  Linear warm-up from 0, as in transformers, then constant, or a cosine that
  reaches 0 after `steps`.
  """
  warmup = optax.linear_schedule(0.0, cfg.learning_rate, cfg.warmup_steps)
  after = optax.constant_schedule(cfg.learning_rate)
  if cfg.schedule == "cosine":
    span = max(steps - cfg.warmup_steps, 1)
    after = optax.cosine_decay_schedule(cfg.learning_rate, span)
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def _muon(cfg, adam):
  """Muon for matrices other than embedding, head and converter; else Adam.

  Updates of Muon have a root mean square of 0.2, about that of Adam's, so
  that one learning rate serves both (Liu et al., arXiv 2502.16982).
  """
  is_matrix = _mask(lambda keys: keys[-1] == "kernel" and keys[0] != "head")
  muon = optax.contrib.muon(
    -1.0,  # keeps the sign; the schedule follows
    mu_dtype=cfg.mu_dtype,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(-2, -1),
  )
  return optax.partition(
    {"muon": muon, "adam": adam},
    lambda params: jax.tree.map(
      lambda chosen: "muon" if chosen else "adam", is_matrix(params)
    ),
  )


def make(cfg: config_lib.Optim, steps: int) -> optax.GradientTransformation:
  """Builds AdamW or Muon with a larger learning rate for the converter.

  The converter starts far from where training takes it (beta above all, which
  has one more factor), and one learning rate for everything moves it too
  slowly. Weight decay acts on kernels only. The update takes `grad_norm`, for
  callers that have the global norm of the gradients already.
  """
  decayed = _mask(lambda keys: keys[-1] == "kernel")
  converter = _mask(lambda keys: keys[0] == "converter")
  beta = _mask(lambda keys: keys[:2] == ["converter", "beta"])
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.mu_dtype)
  transforms = [
    _clip(cfg.clip_norm),
    _muon(cfg, adam) if cfg.name == "muon" else adam,
  ]
  if cfg.weight_decay:
    transforms.append(optax.add_decayed_weights(cfg.weight_decay, decayed))
  transforms += [
    optax.masked(optax.scale(cfg.converter_lr_scale), converter),
    optax.masked(optax.scale(cfg.beta_lr_scale), beta),
    optax.scale_by_learning_rate(schedule(cfg, steps)),
  ]
  chain = optax.chain(*transforms)

  def update(grads, state, params=None, **extra):
    with jax.numpy_dtype_promotion("standard"):  # Adam mixes float and int32
      return chain.update(grads, state, params, **extra)

  return optax.GradientTransformationExtraArgs(chain.init, update)


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """MDLM's weight of the old average after update n: (1 + n) / (10 + n)."""
  n = jnp.asarray(step, jnp.float32)
  return jnp.minimum(jnp.float32(decay), (1 + n) / (10 + n))
