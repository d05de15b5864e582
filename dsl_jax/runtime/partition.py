"""Where arrays live: a mesh of devices, shardings from the shapes."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dsl_jax.runtime import errors, schema

AXES = ("data", "fsdp", "model")
# Axis 0 of these is the vocabulary, which the model axis splits.
_VOCABULARY = {
  ("embed", "embedding"),
  ("head", "kernel"),
  ("head", "bias"),
  ("converter", "table"),
  ("converter", "bias"),
}
_SMALL = 2**14  # elements; smaller leaves are kept whole on every device


def make_mesh(cfg: schema.Mesh) -> jax.sharding.Mesh:
  """Arranges all devices as (data, fsdp, model).

  Args:
    cfg: sizes; at most one is -1 and takes what is left.

  Returns:
    The mesh.

  Raises:
    errors.UserError: the sizes do not multiply to the number of devices.
  """
  count, shape = jax.device_count(), [cfg.data, cfg.fsdp, cfg.model]
  known = math.prod(n for n in shape if n > 0)
  if shape.count(-1) == 1 and count % known == 0:
    shape[shape.index(-1)] = count // known
  if -1 in shape or math.prod(shape) != count:
    raise errors.UserError(
      f"mesh is data={cfg.data} fsdp={cfg.fsdp} model={cfg.model}; with at "
      f"most one -1 it must multiply to the {count} devices here."
    )
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, P())


def rows(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over the data and fsdp axes."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def of_tree(mesh: jax.sharding.Mesh, tree):
  """Returns the tree of shardings for params, averages and moments.

  The vocabulary goes over the model axis where it divides, and the largest
  axis that is left over fsdp; small leaves stay whole.

  Args:
    mesh: from `make_mesh`.
    tree: arrays or their shapes; optimiser states repeat the parameters'
      paths and so follow the same rules.

  Returns:
    The same tree of `NamedSharding`.
  """

  def leaf(path, x):
    names = tuple(getattr(k, "key", None) for k in path[-2:])
    spec = [None] * x.ndim
    if names in _VOCABULARY and x.shape[0] % mesh.shape["model"] == 0:
      spec[0] = "model"
    free = [i for i, taken in enumerate(spec) if not taken]
    free = [i for i in free if x.shape[i] % mesh.shape["fsdp"] == 0]
    if free and math.prod(x.shape) >= _SMALL:
      spec[max(free, key=lambda i: x.shape[i])] = "fsdp"
    return NamedSharding(mesh, P(*spec))

  return jax.tree_util.tree_map_with_path(leaf, tree)


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
    The array, rows over data and fsdp.
  """
  return jax.make_array_from_callback(
    batch.shape, rows(mesh), lambda index: batch[index]
  )
