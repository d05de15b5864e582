"""Policies: the next row where it depends on the state, not on a schedule.

A policy is a pure function (confidence_BL, snr_BL, step) -> next_BL. Arrays it
needs are bound with `jax.tree_util.Partial`, so that they are arguments of the
compiled program.
"""

import jax
import jax.numpy as jnp


def commit(
  path_TBL: jax.Array, row: jax.Array | int, least: jax.Array | float
) -> jax.tree_util.Partial:
  """Follows a path, and at one step commits what the model is sure of.

  The hybrid sampler: a continuous path up to `row`, where tokens of at least
  some confidence are committed and all others return to the mask, then any
  discrete path, along which committed tokens stay.

  Args:
    path_TBL: the path given to `generate`.
    row: index of the row that is the commitment.
    least: confidence, a probability, from which a token is committed.

  Returns:
    The policy.
  """
  arrays = (jnp.asarray(path_TBL, jnp.float32), jnp.int32(row))
  return jax.tree_util.Partial(_commit, *arrays, jnp.float32(least))


def _commit(path_TBL, row, least, confidence_BL, snr_BL, step):
  planned = jax.lax.dynamic_index_in_dim(path_TBL, step + 1, 0, False)
  planned = jnp.broadcast_to(planned, snr_BL.shape)
  sure = jnp.where(confidence_BL >= least, jnp.inf, jnp.float32(0))
  later = jnp.maximum(planned, jnp.where(jnp.isinf(snr_BL), snr_BL, 0.0))
  following = jnp.where(step + 1 < row, planned, later)
  following = jnp.where(step + 1 == row, sure, following)
  # Prompts are inf from the first row on and never leave.
  return jnp.where(jnp.isinf(path_TBL[0]), jnp.inf, following)
