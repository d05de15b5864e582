"""Where arrays live: a mesh of devices, shardings from the shapes.

Rows of a training batch go over data and fsdp, the positions of a row over
model. Weights, averages and moments are whole along data and cut along fsdp and
model; a step gathers them once and scatters the sums of its gradients once,
whatever the number of microbatches. Of the rows of the vocabulary it gathers
only a run on each device along model.
"""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsl_jax.nets import runs
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

AXES = ("data", "fsdp", "model")
ROWS = AXES[:2]  # what rows of a training batch go over
_SMALL = 2**14  # elements; smaller leaves are kept whole on every device


def sizes(cfg: config_lib.Mesh, count: int) -> tuple[int, int, int]:
  """Returns how many devices lie along data, fsdp and model.

  Args:
    cfg: at most one size is -1 and takes what is left.
    count: of the devices.

  Raises:
    errors.UserError: the sizes do not multiply to the number of devices.
  """
  shape = [cfg.data, cfg.fsdp, cfg.model]
  known = math.prod(n for n in shape if n > 0)
  if shape.count(-1) == 1 and count % known == 0:
    shape[shape.index(-1)] = count // known
  if -1 in shape or math.prod(shape) != count:
    raise errors.UserError(
      f"mesh is data={cfg.data} fsdp={cfg.fsdp} model={cfg.model}; with at "
      f"most one -1 it must multiply to the {count} devices here."
    )
  return tuple(shape)


def make_mesh(cfg: config_lib.Mesh, devices=None) -> jax.sharding.Mesh:
  """Arranges devices as (data, fsdp, model).

  Args:
    cfg: see `sizes`.
    devices: None takes all there are.

  Returns:
    The mesh.

  Raises:
    errors.UserError: the sizes do not multiply to the number of devices.
  """
  shape = sizes(cfg, len(devices or jax.devices()))
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def rows(mesh: jax.sharding.Mesh, axes=AXES) -> NamedSharding:
  """Returns the sharding of a batch: rows over all axes, or over some."""
  return NamedSharding(mesh, P(axes))


def shares(mesh: jax.sharding.Mesh) -> int:
  """Returns in how many shares the rows of a training batch go."""
  return math.prod(mesh.shape[name] for name in ROWS)


def of_tree(mesh: jax.sharding.Mesh, tree):
  """Returns the tree of shardings for params, averages and moments.

  The largest axis that divides goes over fsdp and model, but not the first of
  several: blocks and rows of the vocabulary stay whole. So do small leaves.

  Args:
    mesh: from `make_mesh`.
    tree: arrays or their shapes; optimiser states repeat the parameters'
      shapes and so follow the same rules.

  Returns:
    The same tree of `NamedSharding`.
  """
  parts = mesh.shape["fsdp"] * mesh.shape["model"]

  def leaf(x):
    spec = [None] * x.ndim
    first = int(x.ndim > 1)
    free = [i for i in range(first, x.ndim) if x.shape[i] % parts == 0]
    if free and parts > 1 and math.prod(x.shape) >= _SMALL:
      spec[max(free, key=lambda i: x.shape[i])] = ("fsdp", "model")
    return NamedSharding(mesh, P(*spec))

  return jax.tree.map(leaf, tree)


def abstract(mesh: jax.sharding.Mesh, tree):
  """Returns the shapes of a tree with the shardings of `of_tree`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    of_tree(mesh, tree),
  )


def put_rows(mesh: jax.sharding.Mesh, batch: np.ndarray) -> jax.Array:
  """Makes a global array of a batch that every process has read.

  Each process hands over the rows of its own devices, wherever the mesh put
  them, so the batch is the same on any number of hosts.

  Args:
    mesh: from `make_mesh`.
    batch: the global batch, [B, ...].

  Returns:
    The array, rows over all axes; zeros fill up to a multiple of the devices.
  """
  missing = -len(batch) % mesh.size
  batch = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1))
  return jax.make_array_from_callback(
    batch.shape, rows(mesh), lambda index: batch[index]
  )


def passes(mesh: jax.sharding.Mesh, cfg: config_lib.Config) -> int:
  """Returns in how many equal parts a device computes its rows of a batch.

  At least train.microbatches, and enough for at most mesh.rows at once.

  Raises:
    errors.UserError: the devices cannot have equal shares.
  """
  batch, length = cfg.train.batch_size, cfg.data.length
  if batch % shares(mesh):
    raise errors.UserError(
      f"train.batch_size is {batch}; use a multiple of {shares(mesh)}, the "
      "devices along data and fsdp."
    )
  if length % mesh.shape["model"]:
    raise errors.UserError(
      f"mesh.model is {mesh.shape['model']}; it must divide data.length, which "
      f"is {length}."
    )
  share = batch // shares(mesh)
  parts = -(-share // (cfg.mesh.rows or share))
  while share % parts:
    parts += 1
  return max(cfg.train.microbatches, parts)


def rows_at_once(mesh: jax.sharding.Mesh, cfg: config_lib.Config) -> int:
  """Returns how many rows a device computes in one of its `passes`."""
  return cfg.train.batch_size // shares(mesh) // passes(mesh, cfg)


def spread(
  mesh: jax.sharding.Mesh, params, rows=AXES, in_runs: Sequence = ()
) -> Callable:
  """Returns fn -> fn that computes its sums over all devices.

  Each device gathers the weights, calls fn on its own rows, and takes part in
  one reduction of the results. No other communication is left to the
  compiler: within fn everything is local, but for what fn itself sends.

  Args:
    mesh: from `make_mesh`.
    params: abstract, with the shardings of `of_tree`.
    rows: axes that rows go over. Devices along the others call fn on the same
      rows, and their results are summed too.
    in_runs: names of leaves of which a device along model gets its run of the
      first axis, see `nets.runs`.

  Returns:
    Takes fn: (params, *rows) -> (sums, grads), grads like the params it gets,
    and gives the same function of cut params and of rows that are spread over
    devices. With gradients=False fn gives (sums,).
  """
  specs = jax.tree.map(lambda x: x.sharding.spec, params)

  def gather(params):
    def leaf(path, x, spec):
      if mesh.shape["model"] > 1 and _names(path) in in_runs:
        return _gather_run(x, spec)
      return _gather(x, spec)

    return jax.tree_util.tree_map_with_path(leaf, params, specs)

  def wrap(fn, *, gradients=True):
    def local(params, *arrays):
      whole, scatter = jax.vjp(gather, params)
      sums, *grads = fn(whole, *arrays)
      grads = [jax.tree.map(_sum, scatter(g)[0], specs) for g in grads]
      return jax.lax.psum(sums, AXES), *grads

    def spread_fn(params, *arrays):
      return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, *(P(rows) for _ in arrays)),
        out_specs=(P(), specs) if gradients else (P(),),
        check_vma=False,
      )(params, *arrays)

    return spread_fn

  return wrap


def gathered(
  mesh: jax.sharding.Mesh, params, in_runs: Sequence
) -> tuple[int, float]:
  """Counts what a step gathers, without compiling it.

  Args:
    mesh: from `make_mesh`.
    params: abstract, with the shardings of `of_tree`.
    in_runs: see `spread`.

  Returns:
    How many weights, and gradients, a device has while the step runs; how many
    of them it sends on rings, to gather the ones and reduce the others.
  """
  data, fsdp, model = mesh.shape.values()
  held, sent = 0, 0.0
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if model > 1 and _names(path) in in_runs and any(x.sharding.spec):
      held += -(-x.size // model)
      ways = fsdp + 1 - 1 / model - 1 / data
      sent += 2 * x.size / (fsdp * model) * ways
    else:
      held += x.size
      sent += 2 * x.size * (1 - 1 / mesh.size)
  return held, sent


def _names(path):
  """Keys of a leaf's path."""
  return tuple(entry.key for entry in path)


def _gather(x, spec):
  """One whole array from the pieces that devices hold."""
  for axis, names in enumerate(spec):
    if names:
      x = jax.lax.all_gather(x, names, axis=axis, tiled=True)
  return x


def _gather_run(x, spec):
  """This device's run of rows, of an array that is cut into columns or not."""
  if not any(spec):
    return runs.own(x, "model")
  x = runs.pad(x, "model")
  x = jax.lax.all_to_all(x, "model", split_axis=0, concat_axis=1, tiled=True)
  return jax.lax.all_gather(x, "fsdp", axis=1, tiled=True)


def _sum(x, spec):
  """The sum over the devices that hold the same piece."""
  cut = {name for names in spec if names for name in names}
  return jax.lax.psum(x, [name for name in AXES if name not in cut])


def read_rows(
  mesh: jax.sharding.Mesh, shape: tuple[int, ...], read: Callable
) -> jax.Array:
  """Makes a training batch; every process reads its own devices' rows only.

  Args:
    mesh: from `make_mesh`.
    shape: of the global batch; its rows divide by `shares`.
    read: k -> the k-th of so many equal, consecutive shares.

  Returns:
    The array, rows over data and fsdp.
  """
  share = shape[0] // shares(mesh)

  def piece(index):
    return read((index[0].start or 0) // share)

  return jax.make_array_from_callback(shape, rows(mesh, ROWS), piece)
