"""Planning: compiles a run's programs for devices that are not here."""

import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dsl_jax import likelihood, samplers
from dsl_jax.nets import attention
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import costs, errors, hlo, optim
from dsl_jax.runtime import sharding as sharding_lib
from dsl_jax.runtime import state as state_lib

_USABLE = 0.9  # of the memory; the runtime and fragmentation take the rest


def _describe(topology, name, shape):
  """Returns the devices of a topology as their compiler describes them."""
  if name in costs.GPUS:
    target = pathlib.Path(costs.__file__).parent / "gpus" / f"{name}.txtpb"
    if not shape.isdecimal() or int(shape) < 1:
      raise RuntimeError("the number of GPUs must be 1 or more")
    return topologies.get_topology_desc(
      "", "cuda", target_config=target.read_text(), topology=f"1x{shape}x1"
    ).devices
  if "0" in shape.split("x"):  # newer versions of libtpu crash
    raise RuntimeError("a size is 0")
  # Without these settings of a TPU host libtpu waits for a metadata server.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Megacore makes the two cores of a v4 chip one device, as on TPU hosts.
  options = {"chip_config_name": "megacore"} if name == "v4" else {}
  return topologies.get_topology_desc(topology, "tpu", **options).devices


def topology_devices(topology: str) -> tuple[costs.Chip, list]:
  """Returns the chip and the devices of CHIP:SHAPE (TPUs) or CHIP:NUMBER."""
  name, _, shape = topology.partition(":")
  chips = costs.TPUS | costs.GPUS
  if name not in chips:
    raise errors.UserError(
      "--topology must be CHIP:SHAPE of TPUs or CHIP:NUMBER of GPUs, for "
      f"example v5e:16x16 or h100:8; there is no chip {name!r}"
      + errors.nearest(name, chips)
    )
  extra = "cuda-plan" if name in costs.GPUS else "tpu"
  try:
    return chips[name], _describe(topology, name, shape)
  except RuntimeError as error:
    raise errors.UserError(
      f"--topology is {topology!r}; write v5e:4x4, v4:2x2x2 or h100:8 after "
      f"pip install 'dsl_jax[{extra}]' ({str(error).splitlines()[0][:200]})."
    ) from error


def _compile(function, mesh, *args):
  platform = mesh.devices.flat[0].platform
  names = ({"gpu": "cuda"}.get(platform, platform),)
  return function.trace(*args).lower(lowering_platforms=names).compile()


def compile_step(
  cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
  """Compiles the training step of a config for the devices of a mesh."""
  tx = optim.make(cfg.optim, cfg.train.steps)
  state = state_lib.abstract(cfg, mesh, tx)
  shape = cfg.train.batch_size, cfg.data.length
  rows = sharding_lib.batch_sharding(mesh, sharding_lib.ROWS)
  tokens_BL = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
  eos_id = 0 if cfg.data.pad else None  # any: the programs are the same
  step = state_lib.jit_step(state_lib.train_step, cfg, mesh, tx, state, eos_id)
  return _compile(step, mesh, state, tokens_BL)


def compile_inference(
  mode: str, cfg: config_lib.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
  """Compiles the masked bound of a batch ("eval"), or a step of "sample"."""
  denoiser = denoiser_lib.make_denoiser(cfg.net)
  length = cfg.data.length
  size = cfg.eval.batch_size if mode == "eval" else cfg.sample.batch_size
  batch = -(-size // mesh.size) * mesh.size
  spec = jax.sharding.PartitionSpec(sharding_lib.AXES)
  function: Callable = likelihood.endpoint_nats
  if mode == "eval":
    inputs = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  else:
    function = functools.partial(samplers.generate, top_p=cfg.sample.top_p)
    spec = jax.sharding.PartitionSpec(None, sharding_lib.AXES)
    inputs = jax.ShapeDtypeStruct((2, batch, length), jnp.float32)
  rows = jax.sharding.NamedSharding(mesh, spec)
  replicated = sharding_lib.replicated(mesh)
  run = jax.jit(
    functools.partial(function, denoiser=denoiser, clean_snr=cfg.clean_snr),
    in_shardings=(replicated, replicated, rows),
  )
  key = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(denoiser.init, key)
  return _compile(run, mesh, params, key, inputs)


def _print_memory(compiled, chip):
  """Prints the memory of a device by use; returns whether it is enough."""
  stats = compiled.memory_analysis()
  new_outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
  uses = {
    "weights, states and batch": stats.argument_size_in_bytes,
    "gradients, activations": stats.temp_size_in_bytes + new_outputs,
    "program": stats.generated_code_size_in_bytes,
  }
  uses["total"] = total = sum(uses.values())
  print(f"\n{'memory per device':<34}     GiB", end="")
  for use, size in uses.items():
    print(f"\n  {use:<32}{size / 2**30:>8.2f}", end="")
  share = f"{total / chip.memory:.0%} of {chip.memory / 2**30:.0f} GiB"
  fits = total <= _USABLE * chip.memory
  print(f"  {share}: {'fits' if fits else 'does not fit'}")
  return fits


def _print_collectives(collectives):
  """Prints the collectives, those of a kind on one line."""
  if not collectives:
    return
  groups = {}
  for c in collectives:
    groups.setdefault((c.kind, c.group, c.loop), []).append(c)
  print(f"\n{'collectives per step':<46}  times  MB total  MB sent")
  for (kind, group, loop), members in sorted(groups.items()):
    name = f"{kind} over {group}" + (f" in the loop {loop}" if loop else "")
    times = sum(c.times for c in members)
    size = sum(c.bytes * c.times for c in members) / 1e6
    sent = sum(c.sent for c in members) / 1e6
    print(f"  {name:<44}{times:>7}{size:>10.1f}{sent:>9.1f}")


def _print_time(cfg, chip, mesh, collectives):
  """Prints the roofline of a step and of the whole training."""
  work = costs.work(cfg.net, cfg.data.length, accelerator=True)
  tokens = cfg.train.batch_size * cfg.data.length
  device_tokens = tokens / mesh.size
  exact = chip.exact * work.exact
  flops = exact + work.done - work.exact
  products = device_tokens * flops / chip.bf16_flops
  network = sum(c.sent for c in collectives) / chip.link_rate
  step = max(products, network)
  mfu = work.model * device_tokens / step / chip.bf16_flops
  days = step * cfg.train.steps / 86400
  print(
    "\ntime per step at the chip's peak rates  ms",
    f"  {'matrix products':<32}{1e3 * products:>8.1f}",
    f"  {'network':<32}{1e3 * network:>8.1f}",
    f"scores of f32 precision take {exact / flops:.0%} of the products' time",
    f"model FLOPs per step: {work.model * tokens:.3g}; executed, with "
    f"recomputation: {work.done * tokens:.3g}",
    f"a step takes at least {1e3 * step:.1f} ms: MFU at most {mfu:.0%}",
    f"{cfg.train.steps:,} steps take at least {days:.2f} days, "
    f"{24 * days * mesh.size:,.0f} chip-hours",
    f"peak rates: {chip.source}",
    sep="\n",
  )


def _print_program(compile_it, cfg, mesh, chip):
  """Prints memory and kernels; returns collectives and whether it fits."""
  try:
    compiled = compile_it(cfg, mesh)
  except RuntimeError as error:
    if "cuDNN not found" in str(error):
      raise errors.UserError(
        "net.attention is 'cudnn', which compiles after pip install "
        "nvidia-cudnn-cu13; or use --config.net.attention=xla."
      ) from error
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    print(f"\ndoes not fit: {str(error).splitlines()[0]}")
    return None, False
  collectives, largest, kernels = hlo.read(compiled.as_text() or "")
  fits = _print_memory(compiled, chip)
  print(f"kernels: {kernels:,}; largest array: {largest / 1e6:,.1f} M elements")
  return collectives, fits


def _advice(cfg, mesh, rows):
  """Returns which keys to change, and in which direction, to need less."""
  stronger = {"none": "dots or full", "dots": "full"}.get(cfg.net.remat)
  sharded = mesh.shape["fsdp"] * mesh.shape["model"] == mesh.size
  changes = [
    f"set mesh.rows below {rows}" if rows > 1 else "",
    f"set net.remat to {stronger}" if stronger else "",
    "" if sharded else f"raise mesh.fsdp above {mesh.shape['fsdp']}",
  ]
  changes = list(filter(None, changes)) or ["use more or larger chips"]
  return "to need less memory: " + ", ".join(changes)


def plan(cfg: config_lib.Config) -> None:
  """Prints whether the training step fits mesh.topology, and its least time."""
  # The plugin for GPUs refuses to start without a driver, but it compiles.
  jax.config.update("jax_platforms", "cpu")
  with errors.user_errors():
    chip, devices = topology_devices(cfg.mesh.topology)
    attention.check(cfg.net.attention, devices[0].platform)
    mesh = sharding_lib.make_mesh(cfg.mesh, devices)
    microbatches = sharding_lib.num_microbatches(mesh, cfg)
  divisor = sharding_lib.num_row_shards(mesh) * microbatches
  rows = cfg.train.batch_size // divisor  # that a device computes at once
  state = state_lib.abstract(cfg, mesh, optim.make(cfg.optim, cfg.train.steps))
  taken = costs.device_bytes(state)
  axes = " ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(f"{cfg.name} on {cfg.mesh.topology}: {mesh.size} devices, mesh {axes}")
  if taken > chip.memory:  # the compiler may take hours to say so
    print(f"does not fit: {taken / 2**30:,.1f} GiB of states per device")
    print(_advice(cfg, mesh, rows))
    return
  collectives, fits = _print_program(compile_step, cfg, mesh, chip)
  if collectives is not None:
    _print_collectives(collectives)
    _print_time(cfg, chip, mesh, collectives)
  if not fits:
    print(_advice(cfg, mesh, rows))
  for mode in ("eval", "sample"):
    print(f"\na batch of --mode={mode}, weights on every device", end="")
    compile_it = functools.partial(compile_inference, mode)
    _print_program(compile_it, cfg, mesh, chip)
