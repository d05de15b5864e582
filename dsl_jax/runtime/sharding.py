"""The mesh of devices, and shardings of arrays from their shapes.

Rows of a training batch are sharded over data and fsdp, the positions of a row
over model. Weights, averages and moments are replicated along data and sharded
over fsdp and model; a step gathers them once and reduces the sums of its
gradients once, whatever the number of microbatches. Of the parameters with a
row for every token, a device along model gathers its own rows only.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsl_jax.nets import shards as shards_lib
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

AXES = ("data", "fsdp", "model")
ROWS = AXES[:2]  # over which rows of a training batch are sharded
_SMALL = 2**14  # elements; smaller leaves are replicated


def make_mesh(cfg: config_lib.Mesh, devices=None) -> jax.sharding.Mesh:
  """Arranges devices, by default all, along `AXES`; one -1 takes the rest."""
  count, shape = len(devices or jax.devices()), [cfg.data, cfg.fsdp, cfg.model]
  known = math.prod(n for n in shape if n > 0)
  if shape.count(-1) == 1 and count % known == 0:
    shape[shape.index(-1)] = count // known
  if -1 in shape or math.prod(shape) != count:
    raise errors.UserError(
      f"mesh is data={cfg.data} fsdp={cfg.fsdp} model={cfg.model}; with at "
      f"most one -1 it must multiply to the {count} devices here."
    )
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: jax.sharding.Mesh, axes=AXES) -> NamedSharding:
  """Returns the sharding of a batch: rows over all axes, or over some."""
  return NamedSharding(mesh, P(axes))


def shards(mesh: jax.sharding.Mesh) -> shards_lib.Shards:
  """Returns how devices along model share the work on a sequence."""
  return shards_lib.Shards("model" if mesh.shape["model"] > 1 else "")


def num_row_shards(mesh: jax.sharding.Mesh) -> int:
  """Returns how many shards the rows of a training batch have."""
  return math.prod(mesh.shape[name] for name in ROWS)


def abstract(mesh: jax.sharding.Mesh, tree):
  """Returns the shapes of params, averages and moments, with their shardings.

  The largest axis that divides is sharded over fsdp and model, but not the
  first of several (blocks, vocabulary rows). Small leaves are replicated.
  """
  parts = mesh.shape["fsdp"] * mesh.shape["model"]

  def leaf(x):
    spec = [None] * x.ndim
    first = int(x.ndim > 1)
    free = [i for i in range(first, x.ndim) if x.shape[i] % parts == 0]
    if free and parts > 1 and math.prod(x.shape) >= _SMALL:
      spec[max(free, key=lambda i: x.shape[i])] = ("fsdp", "model")
    sharding = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(leaf, tree)


def shardings(abstract):
  """Returns the shardings of an abstract tree."""
  return jax.tree.map(lambda x: x.sharding, abstract)


def put_batch(mesh: jax.sharding.Mesh, batch: np.ndarray) -> jax.Array:
  """Makes a global array of a batch that every process has read.

  Rows go over all axes; zeros fill up to a multiple of the devices.
  """
  missing = -len(batch) % mesh.size
  batch = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
  return jax.make_array_from_callback(
    batch.shape, batch_sharding(mesh), lambda index: batch[index]
  )


def num_microbatches(mesh: jax.sharding.Mesh, cfg: config_lib.Config) -> int:
  """Returns in how many microbatches a device computes its rows of a batch.

  At least train.microbatches, and enough for at most mesh.rows at once. Rejects
  a batch that cannot be split equally.
  """
  batch, length = cfg.train.batch_size, cfg.data.length
  model, row_shards = mesh.shape["model"], num_row_shards(mesh)
  if length % model:
    raise errors.UserError(
      f"mesh.model is {model}; it must divide data.length, which is {length}."
    )
  rows = max(batch // row_shards, 1)
  microbatches = -(-rows // (cfg.mesh.rows or rows))
  while rows % microbatches:
    microbatches += 1
  microbatches = max(cfg.train.microbatches, microbatches)
  divisor = row_shards * microbatches
  if batch % divisor:
    raise errors.UserError(
      f"train.batch_size is {batch}; use a multiple of {divisor}, to split it "
      "equally over devices and microbatches."
    )
  return microbatches


def _gather(x, spec):
  """The whole array from the shards that devices hold."""
  for axis, names in enumerate(spec):
    if names:
      x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
  return x


def _gather_own_rows(x, spec):
  """The device's own rows, of an array that is sharded by columns or not."""
  model = shards_lib.Shards("model")
  if not any(spec):
    return model.own_rows(x)
  x = model.pad_rows(x)
  x = jax.lax.all_to_all(x, "model", split_axis=0, concat_axis=1, tiled=True)
  return jax.lax.all_gather(x, "fsdp", axis=1, tiled=True)


def _sum(x, spec):
  """The sum over the devices that hold the same shard."""
  sharded = {name for names in spec if names for name in names}
  return jax.lax.psum(x, [name for name in AXES if name not in sharded])


def sum_over_devices(mesh: jax.sharding.Mesh, params) -> Callable:
  """Returns fn -> fn that computes its sums over all devices.

  fn: (params, key_B, tokens_BL, mask_BL) -> (sums, grads); `params` has shapes
  and shardings. The compiler adds no communication. Devices along model call fn
  on the same rows, and their equal results count once.
  """
  specs = jax.tree.map(lambda x: x.sharding.spec, params)
  copies = mesh.shape["model"]

  def gather(params):
    def leaf(path, x, spec):
      names = tuple(entry.key for entry in path)
      if copies > 1 and names in shards_lib.ROW_SHARDED:
        return _gather_own_rows(x, spec)
      return _gather(x, spec)

    return jax.tree_util.tree_map_with_path(leaf, params, specs)

  def wrap(fn):
    def local(params, *arrays):
      whole, scatter = jax.vjp(gather, params)
      sums, grads = fn(whole, *arrays)
      grads = jax.tree.map(_sum, scatter(grads)[0], specs)
      total = jax.lax.psum(sums, AXES), grads
      return jax.tree.map(lambda x: x / copies, total) if copies > 1 else total

    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(specs, P(ROWS), P(ROWS), P(ROWS)),
      out_specs=(P(), specs),
      check_vma=False,
    )

  return wrap
