"""Positions of a row that are spread over an axis of a mesh.

Within a `jax.shard_map` each device along the axis has a run of positions of
the same rows. Attention needs the others, and what meets rows of the vocabulary
that are spread as well, see `runs`. An empty name is one device.
"""

import jax


def own(x: jax.Array, name: str, *, axis: int = 1) -> jax.Array:
  """Returns this device's run of positions.

  Args:
    x: an array that every device has whole.
    name: of the mesh axis; it divides the positions.
    axis: of the positions.
  """
  if not name:
    return x
  count = x.shape[axis] // parts(name)
  return jax.lax.dynamic_slice_in_dim(
    x, jax.lax.axis_index(name) * count, count, axis
  )


def whole(x: jax.Array, name: str, *, axis: int = 1) -> jax.Array:
  """Returns all positions of what each device has a run of; undoes `own`."""
  if not name:
    return x
  return jax.lax.all_gather(x, name, axis=axis, tiled=True)


def parts(name: str) -> int:
  """Returns in how many runs a row is cut."""
  return jax.lax.axis_size(name) if name else 1
