"""Planning: compiles the training step for devices that are not here."""

import collections
import importlib.util
import os

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dsl_jax.modes import trained
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import chips, costs, errors, hlo, optim
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

_GIB = 2**30
_USABLE = 0.9  # of the memory; the runtime and fragmentation take the rest


def topology_devices(topology: str) -> tuple[chips.Chip, list]:
  """Returns the chip and the devices of a topology that XLA can compile for.

  Args:
    topology: CHIP:SHAPE, for example v5e:16x16.

  Returns:
    The chip, and one device for each chip of the slice.

  Raises:
    errors.UserError: invalid topology, or its compiler is not installed.
  """
  if not topology:
    raise errors.UserError(
      "--topology is missing; give CHIP:SHAPE, for example v5e:16x16."
    )
  name = topology.partition(":")[0]
  chip = chips.named(name)
  if chip.platform != "tpu":
    raise errors.UserError(
      f"--topology is {topology!r}; compiling for GPUs needs the package "
      "jax-cuda13-plugin, which plan does not support yet, so give a TPU "
      "slice such as v5e:16x16."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      f"--topology is {topology!r}; compiling for TPUs needs the package "
      "libtpu, so run pip install 'dsl_jax[tpu]'."
    )
  # Without these settings of a TPU host libtpu waits for a metadata server.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Megacore makes the two cores of a v4 chip one device, as on TPU hosts.
  options = {"chip_config_name": "megacore"} if name == "v4" else {}
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"--topology is {topology!r}, which XLA rejects "
      f"({str(error).splitlines()[0][:200]}); write the shape of a slice, for "
      "example v5e:4x4 or v4:2x2x2."
    ) from error
  return chip, description.devices


def abstract_state(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> state_lib.TrainState:
  """Returns shapes and shardings of a train state."""
  tx = optim.make(cfg.optim, cfg.train.steps)
  init = denoiser_lib.make_denoiser(cfg.net).init
  return sharding_lib.abstract(
    mesh,
    jax.eval_shape(lambda: state_lib.create(init(jax.random.key(0)), tx)),
  )


def compile_step(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
  """Compiles the training step of a config for the devices of a mesh."""
  shape = cfg.train.batch_size, cfg.data.length
  rows = sharding_lib.batch_sharding(mesh, sharding_lib.ROWS)
  tokens_BL = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
  mask_BL = jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows)
  state = abstract_state(cfg, mesh)
  tx = optim.make(cfg.optim, cfg.train.steps)
  recipe = state_lib.make_recipe(cfg, mesh, tx, state)
  step = state_lib.jit_step(state_lib.train_step, mesh, state, recipe)
  return step.lower(state, tokens_BL, mask_BL).compile()


def _microbatch_rows(cfg, mesh):
  """Returns the number of rows that a device computes at once."""
  shards = sharding_lib.num_row_shards(mesh)
  microbatches = sharding_lib.num_microbatches(mesh, cfg)
  return cfg.train.batch_size // (shards * microbatches)


def _memory(compiled, chip):
  """Returns whether the program fits the chip, and the table of bytes."""
  stats = compiled.memory_analysis()
  new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  kinds = {
    "train state and batch": stats.argument_size_in_bytes,
    "gradients, activations": stats.temp_size_in_bytes + new_outputs,
    "program": stats.generated_code_size_in_bytes,
  }
  total = sum(kinds.values())
  fits = total <= _USABLE * chip.memory
  lines = ["", f"{'memory per device':<34}     GiB"]
  lines += [f"  {k:<32}{v / _GIB:>8.2f}" for k, v in kinds.items()]
  share = f"{total / chip.memory:.0%} of {chip.memory / _GIB:.0f} GiB"
  verdict = "fits" if fits else "does not fit"
  lines.append(f"  {'total':<32}{total / _GIB:>8.2f}  {share}: {verdict}")
  return fits, lines


def _collectives(program):
  """Returns the table of collectives, those of a kind on one line."""
  groups = collections.defaultdict(list)
  for c in program.collectives:
    groups[c.kind, c.group, c.loop].append(c)
  lines = ["", f"{'collectives per step':<46}  times  MB total  MB sent"]
  for (kind, group, loop), members in sorted(groups.items()):
    name = f"{kind} over {group}" + (f" in the loop {loop}" if loop else "")
    times = sum(c.times for c in members)
    size = sum(c.bytes * c.times for c in members) / 1e6
    sent = sum(c.sent for c in members) / 1e6
    lines.append(f"  {name:<44}{times:>7}{size:>10.1f}{sent:>9.1f}")
  lines.append(f"largest array: {program.largest / 1e6:,.1f} M elements")
  return lines


def _time(cfg, chip, mesh, program):
  """Returns the roofline of a step and of the whole training."""
  rows = _microbatch_rows(cfg, mesh)
  work = costs.work(cfg.net, cfg.data.length, rows, mesh.shape["model"])
  tokens = cfg.train.batch_size * cfg.data.length
  device_tokens = tokens / mesh.size
  products = device_tokens * costs.seconds(work, cfg.net.dtype, chip)
  network = sum(c.sent for c in program.collectives) / chip.link_rate
  step = max(products, network)
  mfu = work.model * device_tokens / step / chip.bf16_flops
  exact = device_tokens * work.exact / chip.exact_flops / products
  days = step * cfg.train.steps / 86400
  return [
    "",
    "time per step at the chip's peak rates  ms",
    f"  {'matrix products':<32}{1e3 * products:>8.1f}",
    f"  {'network':<32}{1e3 * network:>8.1f}",
    f"scores of f32 precision take {exact:.0%} of the products' time",
    f"model FLOPs per step: {work.model * tokens:.3g}; executed, with "
    f"recomputation: {work.done * tokens:.3g}",
    f"a step takes at least {1e3 * step:.1f} ms: MFU at most {mfu:.0%}",
    f"{cfg.train.steps:,} steps take at least {days:.2f} days, "
    f"{24 * days * mesh.size:,.0f} chip-hours",
    f"peak rates: {chip.source}",
  ]


def _advice(cfg, mesh):
  """Returns which keys to change, and in which direction, to need less."""
  changes = []
  rows = _microbatch_rows(cfg, mesh)
  if rows > 1:
    changes.append(f"set mesh.rows below {rows}")
  if cfg.net.remat != "full":
    stronger = "dots or full" if cfg.net.remat == "none" else "full"
    changes.append(f"set net.remat to {stronger}")
  if mesh.shape["fsdp"] * mesh.shape["model"] < mesh.size:
    changes.append(f"raise mesh.fsdp above {mesh.shape['fsdp']}")
  if changes:
    return "to need less memory: " + ", ".join(changes)
  return "to need less memory: use more or larger chips"


def plan(cfg: config_lib.Config) -> None:
  """Prints whether the training step fits a topology, and its least time.

  XLA compiles the step for the topology, which needs no such device. Memory
  and collectives are those of the compiled program.

  Args:
    cfg: mesh.topology names the topology; neither data nor weights are read.

  Raises:
    errors.UserError: invalid topology, no compiler for it, or a batch or mesh
      that does not fit it.
  """
  with errors.user_errors():
    chip, devices = topology_devices(cfg.mesh.topology)
    mesh = sharding_lib.make_mesh(cfg.mesh, devices)
    shards = sharding_lib.num_row_shards(mesh)
    divisor = shards * sharding_lib.num_microbatches(mesh, cfg)
    trained.check_batch(
      "train.batch_size", cfg.train.batch_size, divisor=divisor
    )
  axes = " ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(f"{cfg.name} on {cfg.mesh.topology}: {mesh.size} devices, mesh {axes}")
  try:
    compiled = compile_step(cfg, mesh)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    print(f"does not fit: {str(error).splitlines()[0]}")
    print(_advice(cfg, mesh))
    return
  program = hlo.read(compiled.as_text() or "")
  fits, memory = _memory(compiled, chip)
  time = _time(cfg, chip, mesh, program)
  print("\n".join([*memory, *_collectives(program), *time]))
  if not fits:
    print(_advice(cfg, mesh))
