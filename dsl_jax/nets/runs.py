"""Rows of the vocabulary that are spread over an axis of a mesh.

Within a `jax.shard_map` each of the m devices along the axis has a run of
R = ceil(V / m) rows of the head and of the input embedding, and a run of the
positions of the same sequences, see `positions`. It goes over its rows for the
positions of all m, and what the softmax is divided by is summed over them.
"""

import jax
import jax.numpy as jnp

from dsl_jax.core import truncate, vocab
from dsl_jax.nets import positions


def length(size: int, name: str) -> int:
  """Returns R for a table of so many rows."""
  return -(-size // positions.parts(name))


def own(x: jax.Array, name: str, fill: float = 0.0) -> jax.Array:
  """Returns this device's run of rows; the last is filled up.

  Args:
    x: [V, ...], whole on every device.
    name: of the mesh axis; "" is one device.
    fill: value of rows past the end.
  """
  return positions.own(pad(x, name, fill), name, axis=0)


def pad(x: jax.Array, name: str, fill: float = 0.0) -> jax.Array:
  """Returns x, [V, ...], with rows up to a multiple of the devices."""
  missing = length(len(x), name) * positions.parts(name) - len(x)
  widths = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, widths, constant_values=fill)


def nll(
  h_BLM: jax.Array,
  head_RM: jax.Array,
  tokens_BL: jax.Array,
  *,
  bias_V: jax.Array,
  name: str,
  implementation: str,
) -> jax.Array:
  """`vocab.nll` of a device's positions.

  Args:
    h_BLM: hidden states of the device's positions.
    head_RM: the device's output rows.
    tokens_BL: target ids of the device's positions.
    bias_V: output bias, whole.
    name: of the mesh axis.
    implementation: one of `alternatives.NAMES`.

  Returns:
    nll_BL, f32, nats.
  """
  h_BLM, tokens_BL = (positions.whole(x, name) for x in (h_BLM, tokens_BL))
  rows = len(head_RM)
  local_BL = tokens_BL - jax.lax.axis_index(name) * rows
  top_BL, total_BL, target_BL = vocab.terms(
    h_BLM,
    head_RM,
    jnp.clip(local_BL, 0, rows - 1),
    bias_V=own(bias_V, name, truncate.NEVER),
    implementation=implementation,
  )
  here_BL = (local_BL >= 0) & (local_BL < rows)
  target_BL = jax.lax.psum(jnp.where(here_BL, target_BL, 0.0), name)
  top_BL, _, total_BL = _together(top_BL, total_BL, name)
  return positions.own(jnp.log(total_BL) + (top_BL - target_BL), name)


def expectation(
  q_BLK: jax.Array,
  keys_VK: jax.Array,
  values_RC: jax.Array,
  *,
  bias_V: jax.Array,
  name: str,
  implementation: str,
) -> jax.Array:
  """`vocab.expectation` of a device's positions.

  Args:
    q_BLK: queries of the device's positions.
    keys_VK: keys, whole: they are short.
    values_RC: the device's values.
    bias_V: bias of the scores, whole.
    name: of the mesh axis.
    implementation: one of `alternatives.NAMES`.

  Returns:
    mean_BLC, f32.
  """
  mean_BLC, *sums = vocab.mean_and_sums(
    positions.whole(q_BLK, name),
    own(keys_VK, name),
    values_RC,
    bias_V=own(bias_V, name, truncate.NEVER),
    implementation=implementation,
  )
  _, own_BL, total_BL = _together(*sums, name)
  mean_BLC = mean_BLC * (own_BL / total_BL)[..., None]
  return jax.lax.psum_scatter(mean_BLC, name, scatter_dimension=1, tiled=True)


def _together(top, total, name):
  """The largest maximum of all runs, this run's sum to it, and all of them."""
  most = jax.lax.pmax(jax.lax.stop_gradient(top), name)
  own = total * jnp.exp(top - most)
  return most, own, jax.lax.psum(own, name)
