"""The one sampler: it runs rows of per-token SNRs. Traced code."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import channel, sphere
from dsl_jax.samplers import policies, steps
from dsl_jax.samplers.steps import Inputs, Settings, State


class Rows(NamedTuple):
  """Consecutive rows of a path.

  Attributes:
    snr_RBL: the rows, without the one on which the state stands.
    step_RB: the step of the whole path that leads to each of them: the noise
      of a step is the same wherever it is run.
    first: how many steps were run before.
    stop: how many there are after these; rows beyond are padding.
    last: how many there are in all, up to the last that moves a token.
  """

  snr_RBL: jax.Array
  step_RB: jax.Array
  first: jax.Array
  stop: jax.Array
  last: jax.Array


def start(
  params, row_BL: jax.Array, prompt_BL: jax.Array, inputs: Inputs, settings
) -> State:
  """Returns the state on a path's first row: masks and prompt tokens."""
  net, held_BL = steps.bind(params, settings), jnp.isinf(row_BL)
  x = sphere.embed(net.table_VD, prompt_BL)
  z = channel.hard(x, held_BL, clean_snr=inputs.clean_snr)
  rows = None
  if net.mask_M is not None:
    rows = jnp.broadcast_to(net.mask_M, (*row_BL.shape, len(net.mask_M)))
    rows = steps.embed(net, inputs, False, held_BL, row_BL, z, prompt_BL, rows)
  logp = jnp.zeros(row_BL.shape)
  return State(held_BL, row_BL, z, rows, prompt_BL, logp, jnp.int32(0))


def run(
  params,
  key: jax.Array,
  state: State,
  rows: Rows,
  inputs: Inputs,
  policy,
  settings: Settings,
) -> State:
  """Runs consecutive rows of a path.

  Args:
    params: of the denoiser.
    key: typed random key of the whole path.
    state: on the first of the rows.
    rows: of the path.
    inputs: arguments of the sampler.
    policy: or None.
    settings: of the sampler.

  Returns:
    The state after them.
  """
  net = steps.bind(params, settings)
  sequence_B = jnp.arange(rows.snr_RBL.shape[1], dtype=jnp.int32)
  key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)

  def body(carry):
    k, state = carry
    at = lambda x: jax.lax.dynamic_index_in_dim(x, k - rows.first, 0, False)
    row_BL, step_B = at(rows.snr_RBL), at(rows.step_RB)
    keys = steps.Keys(*jnp.moveaxis(jax.vmap(_keys)(key_B, step_B), 1, 0))
    plan = functools.partial(_plan, policy, row_BL, k, k + 1 < rows.last)
    return k + 1, steps.step(net, keys, state, plan, inputs, settings)

  going = lambda carry: carry[0] < rows.stop
  return jax.lax.while_loop(going, body, (rows.first, state))[1]


def _keys(key, step):
  """The keys of one sequence in one step."""
  return jax.random.split(jax.random.fold_in(key, step), 3)


def _plan(policy, row_BL, k, free, state, logp_BL=None):
  """Returns the next row, and whether the policy looks at candidates first.

  Called before the network, without logp_BL, a policy that looks is not asked
  for its row: nothing moves. The last row is the path's, whatever the policy.
  """
  if policy is None:
    return row_BL, None
  looks = policy.looks if isinstance(policy, policies.Policy) else True
  if looks is True and logp_BL is None:
    return jnp.where(free, state.snr_BL, row_BL), free
  confidence_BL = jnp.exp(state.logp_BL if logp_BL is None else logp_BL)
  bent = policy(confidence_BL, state.snr_BL, k)
  if np.shape(bent) != row_BL.shape:
    raise ValueError(
      f"policy returned shape {np.shape(bent)}; return a row of {row_BL.shape}."
    )
  bent = jnp.where(bent >= 0, bent, state.snr_BL)  # no SNR is no move
  bent = jnp.where(state.held_BL, jnp.inf, bent)
  looks = free & looks(k) if callable(looks) else None
  return jnp.where(free, bent, row_BL), looks
