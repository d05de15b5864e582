"""Planning: whether a run fits its accelerators, and what it will take."""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import build, chips, costs, errors, hlo, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

_GIB = 2**30
_FULL = 0.9  # of the memory: the runtime and fragments take the rest


class Compiled(NamedTuple):
  """What a compiler says of the training step.

  Attributes:
    seconds: it took.
    temporary: bytes beside the state, inf where they do not fit.
    program: its collectives; None where it does not fit.
    refusal: the compiler's sentence then.
  """

  seconds: float
  temporary: float
  program: hlo.Program | None
  refusal: str = ""


def plan(cfg: config_lib.Config) -> None:
  """Prints whether a config fits a topology, and its time at the best.

  For a TPU, XLA compiles the training step, which needs the tpu extra and no
  TPU. Elsewhere everything is estimated from shapes, and said so.

  Args:
    cfg: the run, its mesh section naming the topology; neither data nor
      weights are read.

  Raises:
    errors.UserError: unknown topology, or a batch or mesh that does not go
      with it.
  """
  with errors.user_errors():
    topology = cfg.mesh.topology
    if not topology:
      raise errors.UserError("--topology is missing; give CHIP:SHAPE.")
    chip, devices, count, why = _devices(topology)
    if devices:
      mesh = sharding_lib.make_mesh(cfg.mesh, devices)
    else:
      shape = sharding_lib.sizes(cfg.mesh, count)
      mesh = jax.sharding.AbstractMesh(shape, sharding_lib.AXES)
    parts = sharding_lib.shares(mesh) * sharding_lib.passes(mesh, cfg)
    if cfg.train.batch_size % parts:
      raise errors.UserError(
        f"train.batch_size is {cfg.train.batch_size}; use a multiple of "
        f"{parts}, the devices along data and fsdp times microbatches."
      )
  shown = " ".join(f"{k} {v}" for k, v in mesh.shape.items())
  print(f"{cfg.name} on {topology}: {mesh.size} devices, mesh {shown}")
  state = _state(cfg, mesh)
  compiled = _compile(cfg, mesh, state) if devices else None
  if compiled and compiled.program:
    print(f"compiled for it in {compiled.seconds:.0f} s")
  elif compiled:
    print(f"XLA refuses it: {compiled.refusal}")
  else:
    print(f"from shapes alone, without a compiler: {why}")
  fits, lines = _memory(cfg, chip, mesh, state, compiled)
  print("\n".join(lines))
  if compiled and compiled.program:
    print("\n".join(_collectives(compiled.program)))
  print("\n".join(_time(cfg, chip, count, mesh, state, compiled)))
  if not fits:
    print(_mend(cfg, chip, mesh))


def _devices(topology):
  """The chip, its devices if XLA can compile for them, their count, or why."""
  name, _, shape = topology.partition(":")
  chip = chips.named(name)
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
    example = "v5e:16x16" if chip.tpu else "h100:8"
    raise errors.UserError(
      f"--topology is {topology!r}; write CHIP:SHAPE, as {example}."
    )
  count = math.prod(int(n) for n in shape.split("x"))
  if not chip.tpu:
    return chip, None, count, "XLA compiles for a GPU only where one is"
  # What a TPU host would say; without it libtpu waits for a metadata server.
  for key, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
  ):
    os.environ.setdefault(key, value)
  if importlib.util.find_spec("libtpu") is None:
    return chip, None, count, "pip install 'dsl_jax[tpu]' brings one"
  try:
    devices = topologies.get_topology_desc(
      platform="tpu", topology_name=topology
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"--topology is {topology!r}, which XLA does not know "
      f"({str(error).splitlines()[0][:200]}); write the shape of a slice, as "
      "v5e:4x4 or v4:2x2x2."
    ) from error
  # Compiled for v4, XLA takes the two cores of a chip for devices.
  return chip.core(len(devices) // count), devices, count, ""


def _state(cfg, mesh):
  """The abstract train state, with its shardings."""
  tx = optim.make(cfg.optim, cfg.train.steps)
  init = denoiser_lib.make_denoiser(cfg.net).init
  fresh = lambda: state_lib.create(init(jax.random.key(0)), tx)
  return sharding_lib.abstract(mesh, jax.eval_shape(fresh))


def _compile(cfg, mesh, state):
  """Compiles the step that `train` runs."""
  shape, rows = (
    (cfg.train.batch_size, cfg.data.length),
    sharding_lib.rows(mesh, sharding_lib.ROWS),
  )
  tokens, mask = (
    jax.ShapeDtypeStruct(shape, kind, sharding=rows)
    for kind in (jnp.int32, jnp.bool_)
  )
  tx = optim.make(cfg.optim, cfg.train.steps)
  began = time.monotonic()
  try:
    lowered = build.step(cfg, mesh, tx, state).lower(state, tokens, mask)
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    refusal = str(error).split("\n")[0]
    return Compiled(time.monotonic() - began, float("inf"), None, refusal)
  found = compiled.memory_analysis()
  temporary = (
    found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.generated_code_size_in_bytes
  )
  seconds = time.monotonic() - began
  return Compiled(seconds, temporary, hlo.read(compiled.as_text()))


def _estimate(cfg, mesh, state):
  """{kind: bytes on a device}, from shapes."""
  whole = 4 * sharding_lib.gathered(mesh, state.params, denoiser_lib.RUNS)[0]
  params = costs.per_device(state.params)
  return {
    "params": params,
    "optimiser and average": costs.per_device((state.opt_state, state.ema)),
    "gathered params": whole if params < whole else 0,
    "gradients": whole,
    "activations": costs.activations(
      cfg.net,
      sharding_lib.rows_at_once(mesh, cfg),
      cfg.data.length,
      mesh.shape["model"],
    ),
  }


def _memory(cfg, chip, mesh, state, compiled):
  """Whether it fits, and the table of bytes."""
  kinds = _estimate(cfg, mesh, state)
  if compiled and compiled.program:
    kinds = {name: kinds[name] for name in ("params", "optimiser and average")}
    kinds["gradients, activations"] = compiled.temporary
  total = sum(kinds.values())
  fits = total <= _FULL * chip.memory and not (compiled and compiled.refusal)
  share = f"{100 * total / chip.memory:.0f} % of {chip.memory / _GIB:.0f} GiB"
  said = "estimated" if not (compiled and compiled.program) else "compiled"
  lines = ["", f"memory per device ({said})           GiB"]
  lines += [f"  {k:<32}{v / _GIB:>8.2f}" for k, v in kinds.items() if v]
  word = "fits" if fits else "does not fit"
  lines.append(f"  {'all':<32}{total / _GIB:>8.2f}  {share}: {word}")
  return fits, lines


def _collectives(program):
  """The table of collectives: equal ones on one line."""
  groups = {}
  for c in program.collectives:
    key = c.kind, c.group, c.loop
    number, size, sent = groups.get(key, (0, 0, 0.0))
    groups[key] = number + c.times, size + c.bytes * c.times, sent + c.sent
  lines = ["", f"{'collectives per step':<42}  times  MB in all  MB sent"]
  for (kind, group, loop), (times, size, sent) in sorted(groups.items()):
    name = f"{kind} over {group}" + (f" in a loop of {loop}" if loop else "")
    lines.append(f"  {name:<40}{times:>7}{size / 1e6:>11.1f}{sent / 1e6:>9.1f}")
  lines.append(f"largest array: {program.largest / 1e6:,.1f} M elements")
  return lines


def _time(cfg, chip, count, mesh, state, compiled):
  """Roofline of a step, and of the run."""
  net, length = cfg.net, cfg.data.length
  tokens = cfg.train.batch_size * length // mesh.size
  weights, moved = sharding_lib.gathered(mesh, state.params, denoiser_lib.RUNS)
  passes = sharding_lib.passes(mesh, cfg)
  held = costs.per_device(state)
  parts = mesh.shape["model"]
  work = costs.work(net, length, sharding_lib.rows_at_once(mesh, cfg), parts)
  if compiled and compiled.program:
    sent = sum(c.sent for c in compiled.program.collectives)
  else:
    sent = 4 * moved + costs.sent_by_attention(net, tokens, parts)
    sent += costs.sent_for_vocabulary(net, tokens, parts)
  times = {
    "matrix products": tokens * costs.seconds(work, net.dtype, chip),
    "memory": (costs.traffic(net, length, tokens, passes, weights) + 2 * held)
    / chip.memory_rate,
    "network": sent / chip.link_rate,
  }
  step = max(times.values())
  mfu = work.model * tokens / step / chip.flops
  days = step * cfg.train.steps / 86400
  lines = ["", "time per step at the chip's peak rates  ms"]
  lines += [f"  {name:<32}{1e3 * s:>8.1f}" for name, s in times.items()]
  exact = tokens * work.exact / chip.exact_flops
  share = f"{100 * exact / times['matrix products']:.0f} %"
  lines.append(f"of the products' time {share} is scores of f32 precision")
  return [
    *lines,
    f"model FLOPs per step: {work.model * tokens * mesh.size:.3g}; done, with "
    f"what is recomputed: {work.done * tokens * mesh.size:.3g}",
    f"a step takes at least {1e3 * step:.1f} ms: MFU at most {100 * mfu:.0f} %",
    f"{cfg.train.steps:,} steps take at least {days:.2f} days, "
    f"{24 * days * count:,.0f} accelerator-hours",
    f"peak rates: {chip.source}",
  ]


def _mend(cfg, chip, mesh):
  """The nearest setting that fits, by the estimate."""
  for changed, words in _nearest(cfg):
    try:
      shape = sharding_lib.sizes(changed.mesh, mesh.size)
      there = jax.sharding.AbstractMesh(shape, sharding_lib.AXES)
      total = sum(_estimate(changed, there, _state(changed, there)).values())
    except errors.UserError:  # does not go with the batch or the devices
      continue
    if total <= 0.8 * chip.memory:
      share = f"{100 * total / chip.memory:.0f} %"
      return f"nearest that fits, estimated at {share} of the memory: {words}"
  return "no batch or remat setting makes it fit; use more or larger devices"


def _nearest(cfg) -> Iterator[tuple[config_lib.Config, str]]:
  """Configs that need less and less, with the flags that make them."""
  at_once = [n for n in (64, 32, 16, 8, 4, 2, 1) if n < (cfg.mesh.rows or 128)]
  remats = dict.fromkeys((cfg.net.remat, "dots", "full"))
  cut = dataclasses.replace(cfg.mesh, data=1, fsdp=-1)
  meshes = dict.fromkeys((cfg.mesh, cut))
  models = [n for n in (2, 4, 8) if n > cfg.mesh.model]
  meshes |= {dataclasses.replace(cut, model=n): None for n in models}
  for mesh in meshes:
    for remat in remats:
      for rows in [cfg.mesh.rows, *at_once]:
        mesh = dataclasses.replace(mesh, rows=rows)
        net = dataclasses.replace(cfg.net, remat=remat)
        changed = dataclasses.replace(cfg, net=net, mesh=mesh)
        before = config_lib.flatten(dataclasses.asdict(cfg))
        after = config_lib.flatten(dataclasses.asdict(changed))
        yield (
          changed,
          " ".join(
            f"--config.{key}={value}"
            for key, value in after.items()
            if before[key] != value
          ),
        )
