"""Training: what a run needs first, then the loop, from top to bottom."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import numpy as np
from clu import parameter_overview

from dsl_jax.convert import mdlm
from dsl_jax.data import batches, packing, prepare
from dsl_jax.modes import trained
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import checkpoint, costs, errors, loop, metrics, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib
from dsl_jax.runtime import workdir as workdir_lib


def open_run(cfg: config_lib.Config, workdir: str, mesh, abstract):
  """Checks everything that a user can get wrong, then claims the workdir.

  Returns training and held-out rows, parameters of init_from or None, and the
  claim, to be closed.
  """
  c, params = cfg.train, abstract.params
  costs.check_memory(params, params, abstract)  # weights, gradients, state
  packed = prepare.open_rows(cfg, "train")
  held_out = prepare.open_rows(cfg, "validation")
  sharding_lib.num_microbatches(mesh, cfg)  # raises if there is no division
  if c.batch_size > len(packed.tokens_NL):
    raise errors.UserError(
      f"train.batch_size is {c.batch_size}; there are only "
      f"{len(packed.tokens_NL)} train rows, so use at most that."
    )
  if c.max_minutes and jax.process_count() > 1:
    raise errors.UserError(
      f"train.max_minutes is {c.max_minutes}; use 0 on several hosts, whose "
      "clocks differ."
    )
  converted = None
  if cfg.init_from and not checkpoint.exists(workdir):
    converted = trained.load_mdlm(cfg, cfg.init_from)
    fingerprint = mdlm.fingerprint(converted, cfg.net)
    loop.say(f"{cfg.init_from}: fingerprint {fingerprint}")
  data = dataclasses.replace(
    cfg.data, fingerprint=packed.manifest["fingerprint"]
  )
  cfg = dataclasses.replace(cfg, data=data)
  claim = workdir_lib.claim(workdir, cfg, packed.manifest["data_sha256"])
  return packed, held_out, converted, claim


def make_loader(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh, packed: packing.Packed
) -> Callable:
  """Returns (first step, count) -> batches of one call, and the count."""
  c = cfg.train
  replicated = sharding_lib.replicated(mesh)
  by_rows = sharding_lib.batch_sharding(mesh, sharding_lib.ROWS)

  def load_batch(step):
    def load_shard(index):
      return batches.batch_at(
        packed,
        step,
        batch_size=c.batch_size,
        seed=cfg.data.seed,
        shard=index[0],
      )

    shape = c.batch_size, cfg.data.length
    return jax.make_array_from_callback(shape, by_rows, load_shard)

  def load_call(call):
    first, count = call
    tokens = [load_batch(first + k) for k in range(count)]
    tokens += tokens[-1:] * (c.steps_per_call - count)
    # device_put would synchronise the hosts, from a thread of its own.
    count = jax.make_array_from_callback(
      (), replicated, lambda _: np.asarray(count, np.int32)
    )
    return tuple(tokens), count

  return load_call


def make_held_out_loss(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh, held_out: packing.Packed
) -> Callable[[dict, Callable], dict | None]:
  """Returns a function that measures {"loss", "bits"} of parameters.

  Rows and noise are the same every time. Its second argument is a function that
  is called after every batch; the result is None if it returns True.
  """
  loss_fn = state_lib.make_loss(cfg, dropout=False)
  replicated = sharding_lib.replicated(mesh)

  @functools.partial(jax.jit, out_shardings=replicated)
  def batch_sums(params, tokens_BL, mask_BL, number):
    # Gathers the weights once.
    params = jax.lax.with_sharding_constraint(params, replicated)
    key = jax.random.fold_in(state_lib.stream(cfg.seed, "eval"), number)
    key_B = jax.random.split(key, len(tokens_BL))
    return loss_fn(params, key_B, tokens_BL, mask_BL)[1]

  arguments: list[tuple] = []
  size = cfg.eval.batch_size
  rows_NL = held_out.tokens_NL[: size * cfg.train.eval_batches]
  for batch in batches.eval_batches(rows_NL, size, held_out.eos_id):
    tokens_BL, mask_BL = (sharding_lib.put_batch(mesh, x) for x in batch)
    number = jax.device_put(np.int32(len(arguments)), replicated)
    arguments.append((tokens_BL, mask_BL, number))

  def held_out_loss(params, stopped):
    sums: list = []
    for args in arguments:
      sums.append(batch_sums(params, *args))
      jax.block_until_ready(sums[-2:-1])
      if stopped():
        return None
    sums = jax.device_get(sums)
    loss = sum(s["nll"] for s in sums) / sum(s["tokens"] for s in sums)
    return {"loss": float(loss), "bits": float(loss / np.log(2))}

  return held_out_loss


def follow_clock(cfg: config_lib.Config, state, step: int, deadline: float):
  """Advances the schedule so that it ends at the deadline of max_minutes."""
  c, o = cfg.train, cfg.optim
  if o.schedule == "constant" or not c.max_minutes or step < o.warmup_steps:
    return state
  left = max(0.0, deadline - time.monotonic()) / (60 * c.max_minutes)
  count = max(step, int((1 - left) * c.steps))
  return state._replace(opt_state=optim.set_schedule(state.opt_state, count))


def record_call(recorder: metrics.Recorder, call: tuple | None) -> None:
  """Records the sums of every step of a call; waits for the devices."""
  if call is None:
    return
  first, sums_K, count = call
  sums_K = jax.device_get(sums_K)
  for k in range(count):
    recorder.add(first + k + 1, {name: x[k] for name, x in sums_K.items()})


def train(cfg: config_lib.Config, workdir: str) -> None:
  """Trains to cfg.train.steps, from the newest checkpoint if there is one.

  Saves and ends early on SIGTERM and Ctrl-C (on several hosts: on the pod's
  notice of preemption), and after cfg.train.max_minutes. Raises
  FloatingPointError if the loss or the gradient is not finite.
  """
  c = cfg.train
  deadline = time.monotonic() + 60 * (c.max_minutes or math.inf)
  with errors.user_errors():
    mesh = sharding_lib.make_mesh(cfg.mesh)
    tx = optim.make(cfg.optim, c.steps)
    abstract = state_lib.abstract(cfg, mesh, tx)
    packed, held_out, converted, claim = open_run(cfg, workdir, mesh, abstract)

  # The pure functions of the run.
  denoiser = denoiser_lib.make_denoiser(cfg.net)

  def init_state(params):
    if params is None:
      params = denoiser.init(state_lib.stream(cfg.seed, "init"))
    return state_lib.create(params, tx)

  step_fn = state_lib.jit_step(
    state_lib.train_steps, cfg, mesh, tx, abstract, packed.eos_id
  )
  held_out_loss = make_held_out_loss(cfg, mesh, held_out)

  # The state: restored, converted or new.
  checkpoints = checkpoint.Checkpoints(workdir, keep=c.keep)
  init = jax.jit(init_state, out_shardings=sharding_lib.shardings(abstract))
  state = checkpoints.restore(abstract) or init(converted)
  start = int(state.step)
  overview = parameter_overview.get_parameter_overview
  loop.say(overview(abstract.params, include_stats=False))
  axes = " ".join(f"{name} {size}" for name, size in mesh.shape.items())
  loop.say(f"step {start} of {c.steps} on mesh {axes}")

  recorder = metrics.Recorder(
    workdir,
    start=start,
    steps=c.steps,
    tokens=c.batch_size * cfg.data.length,
    log_every=c.log_every,
    peak=costs.peak(cfg.net, cfg.data.length),
    deadline=deadline,
  )
  load = make_loader(cfg, mesh, packed)
  edges = c.log_every, c.eval_every, c.checkpoint_every
  calls = loop.calls(start, c.steps, c.steps_per_call, *edges)
  with contextlib.ExitStack() as stack:
    stopping = stack.enter_context(loop.stop_signal())
    stack.enter_context(claim)
    stack.callback(checkpoints.close)
    stack.callback(recorder.close)
    note = stack.enter_context(loop.watch())
    profile = stack.enter_context(
      loop.profile(workdir, start, c.profile_at, c.profile_steps)
    )

    def interrupted():  # hosts agree to stop after a step, not in between
      return jax.process_count() == 1 and stopping(start)

    pending = None  # the sums of a call are read while the next one runs
    ending = "train.steps"
    for (first, count), (tokens_KBL, count_here) in loop.prefetch(load, calls):
      step = first + count
      note(f"waiting for the devices at step {step}")
      state = follow_clock(cfg, state, first, deadline)
      state, sums_K = step_fn(state, tokens_KBL, count_here)
      record_call(recorder, pending)
      pending = first, sums_K, count
      if first == start:  # waits for the compilation, which is not timed
        record_call(recorder, pending)
        pending = None
        recorder.restart_clock()
      stopped = stopping(step)
      timed_out = time.monotonic() >= deadline
      last = step == c.steps or stopped or timed_out
      # After a signal there may be time for a save, but not for more.
      evaluating = loop.is_due(step, c.eval_every, last) and not stopped
      if evaluating or loop.is_due(step, c.checkpoint_every, last):
        record_call(recorder, pending)  # nothing is saved after a bad step
        pending = None
        note(f"evaluating or saving at step {step}")
        scores = held_out_loss(state.ema, interrupted) if evaluating else None
        if scores:
          recorder.write(step, "validation", scores)
        stopped = stopped or (evaluating and not scores)
        if loop.is_due(step, c.checkpoint_every, last or stopped):
          checkpoints.save(step, state, scores)
        recorder.restart_clock()
      profile(step)
      note(f"waiting for the rows of step {step + 1}")
      if stopped or timed_out:
        ending = "a signal" if stopped else "train.max_minutes"
        break
  loop.say(f"saved at step {int(state.step)} in {workdir}; ended by {ending}")
