"""Training: read from top to bottom, this is all of it."""

import contextlib
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from dsl_jax.data import batches, packing
from dsl_jax.modes import inputs
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import (
  build,
  checkpoint,
  costs,
  errors,
  loop,
  metrics,
  optim,
)
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


def train(cfg: config_lib.Config, workdir: str) -> None:
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
    config_lib.validate(cfg)
    mesh = sharding_lib.make_mesh(cfg.mesh)
    packed, held_out = open_data(cfg, mesh)
    given_params, cache = None, cfg.train.compilation_cache
    if cache:
      workdir_lib.make_folder("train.compilation_cache", cache)
    if cfg.init_from and not checkpoint.exists(workdir):
      given_params = convert(cfg)
    workdir_lib.claim(workdir, cfg, packed.manifest["data_sha256"])
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)

  # The pure functions of the run.
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  tx = optim.make(cfg.optim, cfg.train.steps)

  def fresh(params):
    if params is None:
      params = denoiser.init(state_lib.stream(cfg.seed, "init"))
    return state_lib.create(params, tx)

  abstract = sharding_lib.abstract(mesh, jax.eval_shape(fresh, given_params))
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  steps_fn = build.steps(cfg, mesh, tx, abstract)
  held_out_loss = make_held_out_loss(cfg, mesh, held_out, abstract.params)

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

  def load(call):
    first, count = call
    rows = [read(first + k) for k in range(count)]
    rows += rows[-1:] * (cfg.train.steps_per_call - count)
    # device_put would make the hosts compare notes, in a thread of its own.
    here = lambda _: np.asarray(count, np.int32)
    return tuple(rows), jax.make_array_from_callback((), whole, here)

  def read(step):
    share = functools.partial(
      batches.batch_at,
      packed,
      step,
      batch_size=cfg.train.batch_size,
      seed=cfg.data.seed,
      process_count=sharding_lib.shares(mesh),
    )
    share_of = lambda k: share(process_index=k)
    return sharding_lib.read_rows(mesh, shape, share_of)

  def record(first, count, sums):
    sums = jax.device_get(sums)  # waits for the devices
    for k in range(count):
      recorder.add(first + k + 1, {name: x[k] for name, x in sums.items()})

  shape = cfg.train.batch_size, cfg.data.length
  whole = sharding_lib.replicated(mesh)
  all_valid = jax.jit(
    lambda: jnp.ones(shape, bool),
    out_shardings=sharding_lib.rows(mesh, sharding_lib.ROWS),
  )
  mask_BL = all_valid()
  recorder = metrics.Recorder(
    workdir,
    start=start,
    steps=cfg.train.steps,
    log_every=cfg.train.log_every,
    peak=costs.peak(cfg.net, cfg.data.length),
  )
  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    stack.callback(recorder.close)
    stopping = stack.enter_context(loop.stop_signal())
    note = stack.enter_context(loop.watch())
    traced = stack.enter_context(
      loop.profile(workdir, cfg.train.profile_at, cfg.train.profile_steps)
    )
    traced(start)
    unread = None
    # A save goes on behind the steps that follow, up to the next one.
    save_every = cfg.train.checkpoint_every // 2
    calls = loop.calls(
      start,
      cfg.train.steps,
      cfg.train.steps_per_call,
      *(cfg.train.log_every, cfg.train.eval_every, save_every),
    )
    for (first, count), (tokens_KBL, count_here) in loop.prefetch(load, calls):
      step = first + count
      note(f"waiting for the devices at step {step}")
      state, sums = steps_fn(state, tokens_KBL, mask_BL, count_here)
      if unread:
        record(*unread)  # the steps before, while these run
      unread = first, count, sums
      minutes = (time.monotonic() - began) / 60
      last = (
        step == cfg.train.steps
        or stopping(step)
        or 0 < cfg.train.max_minutes <= minutes
      )
      evaluating = loop.due(step, cfg.train.eval_every, last)
      saving = loop.due(step, save_every, last)
      if evaluating or saving:
        record(*unread)  # nothing is saved after a bad step
        unread = None
        note(f"evaluating or saving at step {step}")
        scores = held_out_loss(state.ema) if evaluating else None
        if evaluating:
          recorder.write(step, "validation", scores)
        if saving:
          checkpoints.save(step, state, scores)
        recorder.restart_clock()
      traced(step)
      note(f"waiting for the rows of step {step + 1}")
      if last:
        break


def open_data(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> tuple[packing.Packed, packing.Packed]:
  """Opens training and held-out rows that fit the config and the devices."""
  c = cfg.train
  packed = inputs.open_split(cfg, "train")
  held_out = inputs.open_split(cfg, "validation")
  parts = sharding_lib.shares(mesh) * sharding_lib.passes(mesh, cfg)
  inputs.check_batch("train.batch_size", c.batch_size, packed, parts)
  inputs.check_batch("eval.batch_size", cfg.eval.batch_size, held_out)
  if c.max_minutes and jax.process_count() > 1:
    raise errors.UserError(
      f"train.max_minutes is {c.max_minutes}; use 0 on several hosts, whose "
      "clocks differ."
    )
  return packed, held_out


def convert(cfg: config_lib.Config) -> dict:
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
  cfg: config_lib.Config,
  mesh: jax.sharding.Mesh,
  held_out: packing.Packed,
  abstract: dict,
) -> Callable[[dict], dict]:
  """Returns params -> {"loss", "bits"}: the same rows and noise every time."""
  loss_fn = build.loss(cfg, dropout=False)
  whole = sharding_lib.replicated(mesh)
  spread = sharding_lib.spread(mesh, abstract)
  sums_fn = spread(lambda *args: loss_fn(*args)[1:], gradients=False)

  @functools.partial(jax.jit, out_shardings=whole)
  def batch_sums(params, tokens_BL, mask_BL, number):
    key = jax.random.fold_in(state_lib.stream(cfg.seed, "eval"), number)
    key_B = jax.random.split(key, len(tokens_BL))
    return sums_fn(params, key_B, tokens_BL, mask_BL)[0]

  parts = []
  limit = cfg.eval.batch_size * cfg.train.eval_batches
  for part in batches.eval_batches(held_out, cfg.eval.batch_size, limit):
    number = jax.device_put(np.int32(len(parts)), whole)
    parts.append((*(sharding_lib.put_rows(mesh, x) for x in part), number))

  def held_out_loss(params):
    sums = jax.device_get([batch_sums(params, *part) for part in parts])
    loss = sum(s["nll"] for s in sums) / sum(s["tokens"] for s in sums)
    return {"loss": float(loss), "bits": float(loss / np.log(2))}

  return held_out_loss
