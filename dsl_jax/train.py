"""Training: read from top to bottom, this is all of it."""

import contextlib
import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from clu import parameter_overview

from dsl_jax import inputs
from dsl_jax.data import batches, packing
from dsl_jax.nets import denoiser as denoisers
from dsl_jax.runtime import (
  build,
  checkpoint,
  errors,
  loop,
  metrics,
  optim,
  partition,
  schema,
)
from dsl_jax.runtime import state as states
from dsl_jax.runtime import workdir as workdirs


def train(cfg: schema.Config, workdir: str) -> None:
  """Trains to cfg.train.steps, from the newest checkpoint if there is one.

  Saves and returns early on SIGTERM (on several hosts: on the pod's notice of
  preemption) and after cfg.train.max_minutes.

  Args:
    cfg: the run.
    workdir: for config.json, checkpoints and metrics.jsonl; made if absent.

  Raises:
    errors.UserError: a mistake in config, data or workdir, found before any
      compilation; nothing is overwritten.
    FloatingPointError: loss or gradient not finite; the checkpoints are of
      earlier steps.
  """
  began = time.monotonic()
  with errors.user_errors():
    schema.validate(cfg)
    mesh = partition.make_mesh(cfg.mesh)
    packed, held_out = open_data(cfg, mesh)
    given_params = None
    if cfg.init_from and not checkpoint.exists(workdir):
      given_params = convert(cfg)
    workdirs.claim(workdir, cfg, packed.manifest["data_sha256"])

  # The pure functions of the run.
  denoiser = denoisers.make_denoiser(cfg.net)
  tx = optim.make(cfg.optim, cfg.train.steps)

  def fresh(params):
    if params is None:
      params = denoiser.init(states.stream(cfg.seed, "init"))
    return states.create(params, tx)

  abstract = partition.abstract(mesh, jax.eval_shape(fresh, given_params))
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  step_fn = jax.jit(
    functools.partial(
      states.train_step,
      loss_fn=build.loss(cfg, dropout=True),
      tx=tx,
      seed=cfg.seed,
      ema_decay=cfg.optim.ema_decay,
      microbatches=cfg.train.microbatches,
    ),
    donate_argnums=0,
    out_shardings=(shardings, partition.replicated(mesh)),
  )
  held_out_loss = make_held_out_loss(cfg, mesh, held_out)

  # The state: restored, converted or new.
  checkpoints = checkpoint.Checkpoints(workdir, keep=cfg.train.keep)
  state = checkpoints.restore(abstract)
  if state is None:
    state = jax.jit(fresh, out_shardings=shardings)(given_params)
  start = int(state.step)
  if jax.process_index() == 0:
    overview = parameter_overview.get_parameter_overview
    print(overview(abstract.params, include_stats=False))
    print(f"step {start} of {cfg.train.steps} on mesh {dict(mesh.shape)}")

  def load(step):
    tokens_BL = batches.batch_at(
      packed, step, batch_size=cfg.train.batch_size, seed=cfg.data.seed
    )
    return partition.put_rows(mesh, tokens_BL)

  shape = cfg.train.batch_size, cfg.data.length
  mask_BL = partition.put_rows(mesh, np.ones(shape, bool))
  recorder = metrics.Recorder(
    workdir, start=start, steps=cfg.train.steps, log_every=cfg.train.log_every
  )
  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    stack.callback(recorder.close)
    stopping = stack.enter_context(loop.stop_signal())
    unread = None
    for step, tokens_BL in loop.prefetch(load, start, cfg.train.steps):
      state, sums = step_fn(state, tokens_BL, mask_BL)  # returns at once
      if unread:
        recorder.add(*unread)  # the step before, while this one runs
      unread = step, sums
      minutes = (time.monotonic() - began) / 60
      last = (
        step == cfg.train.steps
        or stopping(step)
        or 0 < cfg.train.max_minutes <= minutes
      )
      evaluating = loop.due(step, cfg.train.eval_every, last)
      saving = loop.due(step, cfg.train.checkpoint_every, last)
      if evaluating or saving:
        recorder.add(*unread)  # nothing is saved after a bad step
        unread = None
        if evaluating:
          recorder.write(step, "validation", held_out_loss(state.ema))
        if saving:
          checkpoints.save(step, state)
        recorder.restart_clock()
      if last:
        break


def open_data(
  cfg: schema.Config, mesh: jax.sharding.Mesh
) -> tuple[packing.Packed, packing.Packed]:
  """Opens training and held-out rows that fit the config and the devices."""
  c = cfg.train
  packed = inputs.open_split(cfg, "train")
  held_out = inputs.open_split(cfg, "validation")
  inputs.check_batch(
    "train.batch_size", c.batch_size, packed, mesh, c.microbatches
  )
  inputs.check_batch("eval.batch_size", cfg.eval.batch_size, held_out, mesh)
  if c.max_minutes and jax.process_count() > 1:
    raise errors.UserError(
      f"train.max_minutes is {c.max_minutes}; use 0 on several hosts, whose "
      "clocks differ."
    )
  return packed, held_out


def convert(cfg: schema.Config) -> dict:
  """Loads the MDLM at cfg.init_from as parameters of cfg.net."""
  from dsl_jax.convert import fingerprint, mdlm

  first = jax.process_index() == 0
  params, net = mdlm.load(
    cfg.init_from,
    heads=cfg.net.heads,
    sphere_dim=cfg.net.sphere_dim,
    beta_init=cfg.net.beta_init,
    mask_prior=cfg.net.mask_prior,
    seed=cfg.seed,
    progress=first,
  )
  sizes = "vocab_size", "width", "depth", "cond_dim", "mlp_ratio", "sphere_dim"
  for name in sizes:
    want, found = getattr(cfg.net, name), getattr(net, name)
    if want != found:
      raise errors.UserError(
        f"net.{name} is {want}; {cfg.init_from} has {found}, so set it to that."
      )
  if first:
    print(f"{cfg.init_from}: fingerprint {fingerprint.compute(params, net)}")
  return params


def make_held_out_loss(
  cfg: schema.Config, mesh: jax.sharding.Mesh, held_out: packing.Packed
) -> Callable[[dict], dict]:
  """Returns params -> {"loss", "bits"}: the same rows and noise every time."""
  loss_fn, B = build.loss(cfg, dropout=False), cfg.eval.batch_size
  whole = partition.replicated(mesh)

  @functools.partial(jax.jit, out_shardings=whole)
  def batch_sums(params, tokens_BL, mask_BL, number):
    key = jax.random.fold_in(states.stream(cfg.seed, "eval"), number)
    return loss_fn(params, jax.random.split(key, B), tokens_BL, mask_BL)[1]

  parts = []
  limit = B * cfg.train.eval_batches
  for part in batches.eval_batches(held_out, B, limit):
    number = jax.device_put(np.int32(len(parts)), whole)
    parts.append((*(partition.put_rows(mesh, x) for x in part), number))

  def held_out_loss(params):
    sums = jax.device_get([batch_sums(params, *part) for part in parts])
    loss = sum(s["nll"] for s in sums) / sum(s["tokens"] for s in sums)
    return {"loss": float(loss), "bits": float(loss / np.log(2))}

  return held_out_loss
