"""From the config to the pure functions of a run."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax

from dsl_jax import objective
from dsl_jax.core import alternatives, laws
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib


def check_devices(cfg: config_lib.Config) -> None:
  """Refuses what the devices or the installed packages cannot run.

  Raises:
    ValueError: names the key, its value and the mend.
  """
  attention.check(cfg.net.attention, jax.default_backend())
  alternatives.check(cfg.net.vocab, "net.vocab")


def law(cfg: config_lib.Config) -> laws.Law:
  """Returns the training law: log-normal and random-order sequences."""
  c = cfg.law
  return laws.mixture(
    (
      laws.lognormal(c.mu, c.sigma, per_token=c.per_token),
      1 - c.endpoint_share,
    ),
    (laws.endpoint(cfg.clean_snr, smooth=c.smooth), c.endpoint_share),
  )


def loss(cfg: config_lib.Config, *, dropout: bool, along: str = "") -> Callable:
  """Returns (params, key_B, tokens_BL, mask_BL) -> (scalar, sums).

  Args:
    cfg: the run.
    dropout: as in training; held-out text is scored without.
    along: mesh axis over which a device takes its own positions of the rows;
      "" takes all.
  """
  net = cfg.net if dropout else dataclasses.replace(cfg.net, dropout=0.0)
  return functools.partial(
    objective.loss,
    denoiser=denoiser_lib.make_denoiser(net, along=along),
    law=law(cfg),
    clean_snr=cfg.clean_snr,
  )


def step(
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  tx: optax.GradientTransformation,
  abstract: state_lib.TrainState,
) -> Callable:
  """Returns the jitted (state, tokens_BL, mask_BL) -> (state, sums).

  Args:
    cfg: the run.
    mesh: its devices, or those of a topology that is not here.
    tx: the optimiser.
    abstract: shapes and shardings of the state, which is donated.
  """
  return _jit(_step(cfg, mesh, tx, abstract), mesh, abstract)


def steps(
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  tx: optax.GradientTransformation,
  abstract: state_lib.TrainState,
) -> Callable:
  """Returns the jitted `states.train_steps`; see `step` for the arguments."""
  one = _step(cfg, mesh, tx, abstract)
  return _jit(
    functools.partial(state_lib.train_steps, step=one), mesh, abstract
  )


def _step(cfg, mesh, tx, abstract):
  along = "model" if mesh.shape["model"] > 1 else ""
  return functools.partial(
    state_lib.train_step,
    loss_fn=loss(cfg, dropout=True, along=along),
    tx=tx,
    seed=cfg.seed,
    ema_decay=cfg.optim.ema_decay,
    microbatches=sharding_lib.passes(mesh, cfg),
    spread=sharding_lib.spread(
      mesh, abstract.params, rows=sharding_lib.ROWS, in_runs=denoiser_lib.RUNS
    ),
  )


def _jit(fn, mesh, abstract):
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  outputs = shardings, sharding_lib.replicated(mesh)
  return jax.jit(fn, donate_argnums=0, out_shardings=outputs)
