"""One step of the sampler: from a row of SNRs to the next. Traced code."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, sphere
from dsl_jax.nets import readout
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import moving


class State(NamedTuple):
  """What a row leaves behind.

  Attributes:
    held_BL: true where a prompt token stands.
    snr_BL: current SNR per token.
    z_BLD: the channel.
    rows_BLM: input embeddings of z, or None for a denoiser without `embed`.
    tokens_BL: the last token drawn at each position.
    logp_BL: the logarithm of its confidence when it was drawn.
    calls: network calls so far.
  """

  held_BL: jax.Array
  snr_BL: jax.Array
  z_BLD: jax.Array
  rows_BLM: jax.Array | None
  tokens_BL: jax.Array
  logp_BL: jax.Array
  calls: jax.Array


class Settings(NamedTuple):
  """What is compiled into the program; see `front.generate`.

  Without `soft` every row is hard, see `pieces.cut`.
  """

  denoiser: Denoiser
  integrator: str
  strict: bool
  noise: float
  truncated: bool
  confidence: str
  soft: bool = True


class Inputs(NamedTuple):
  """What the program takes as arguments; see `front.generate`."""

  clean_snr: jax.Array
  temperature: jax.Array
  top_p: jax.Array
  hard_rows: jax.Array | None


class Keys(NamedTuple):
  """Random keys of a step, one per sequence."""

  draw: jax.Array
  up: jax.Array
  down: jax.Array


class Net(NamedTuple):
  """A denoiser with what does not depend on the state, computed once."""

  params: dict
  denoiser: Denoiser
  table_VD: jax.Array
  head_VM: jax.Array
  bias_V: jax.Array | None
  mask_M: jax.Array | None  # input embedding of the mask


def bind(params, settings: Settings) -> Net:
  """Evaluates what does not depend on the state."""
  denoiser = settings.denoiser
  table_VD, mask = denoiser.table(params), None
  if denoiser.embed is not None:
    mask = denoiser.embed(params, jnp.zeros((1, 1, table_VD.shape[1])))[0, 0]
  return Net(params, denoiser, table_VD, *denoiser.head(params), mask)


def step(
  net: Net,
  keys: Keys,
  state: State,
  plan,
  inputs: Inputs,
  settings: Settings,
) -> State:
  """Asks the network if a token rises, then moves every token.

  Args:
    net: the denoiser.
    keys: of this step.
    state: before.
    plan: (state, logp_BL or None) -> the next row, and whether candidates are
      wanted before it is settled (None for never); see `driver`.
    inputs: arguments of the sampler.
    settings: of the sampler.

  Returns:
    The state after.
  """
  snr = state.snr_BL
  following, looks = plan(state)
  ask, drawn = following > snr, _drawn(settings, snr, following)
  if looks is not None:
    ask, drawn = (jnp.where(looks, jnp.isfinite(snr), x) for x in (ask, drawn))
  ask = jnp.any(ask)
  hidden, tokens, logp = _ask(net, keys, ask, drawn, state, inputs, settings)
  if looks is not None:
    following = jnp.where(looks, plan(state, logp)[0], following)

  drawn = _drawn(settings, snr, following)
  tokens = jnp.where(drawn, tokens, state.tokens_BL)
  logp = jnp.where(drawn, logp, state.logp_BL)
  x = sphere.embed(net.table_VD, tokens)
  # Moves between the mask and the commitment are free of noise.
  ends = (following != snr) & (jnp.isinf(following) | (following == 0))
  hard = channel.hard(x, jnp.isinf(following), clean_snr=inputs.clean_snr)
  z, more = jnp.where(ends[..., None], hard, state.z_BLD), jnp.int32(0)
  if settings.soft:
    z, more = _soft(
      net, keys, state, following, tokens, hidden, z, inputs, settings
    )
  moved, rows = following != snr, state.rows_BLM
  if rows is not None:
    soft = settings.soft
    rows = embed(net, inputs, soft, moved, following, z, tokens, rows)
  calls = state.calls + ask.astype(jnp.int32) + more
  return State(state.held_BL, following, z, rows, tokens, logp, calls)


def embed(net, inputs, soft, where_BL, snr_BL, z_BLD, tokens_BL, rows_BLM):
  """Input embeddings of z where asked, else the old ones.

  Masks, and committed tokens whose rows are given, are look-ups; only the rest
  runs the converter, if there may be any.
  """
  at = lambda where_BL: where_BL[..., None]
  rows = rows_BLM
  rows = jnp.where(at(where_BL & (snr_BL == 0)), net.mask_M[None, None], rows)
  rest = where_BL & (snr_BL > 0)
  if inputs.hard_rows is not None:
    hard = inputs.hard_rows.astype(rows.dtype)[tokens_BL]
    rows = jnp.where(at(rest & jnp.isinf(snr_BL)), hard, rows)
    rest = rest & jnp.isfinite(snr_BL)
    if not soft:
      return rows
  convert = functools.partial(net.denoiser.embed, net.params)
  return moving.update(rest, convert, z_BLD, rows, len(net.table_VD))


def _drawn(settings, snr_BL, following_BL):
  """Where a token is drawn: commitments, and every rise by samples."""
  rises = following_BL > snr_BL
  if settings.integrator == "sample":
    return rises
  return rises & jnp.isinf(following_BL)


def _ask(net, keys, ask, where_BL, state, inputs, settings):
  """Hidden states and drawn tokens with their log-confidence, if asked."""

  seen = state.z_BLD, state.rows_BLM, state.snr_BL
  old = {"tokens": state.tokens_BL, "logp": state.logp_BL}

  def call():
    h = _hidden(net.denoiser, net.params, *seen)
    tokens, logp = moving.draw(
      keys.draw,
      where_BL,
      h,
      net.head_VM,
      net.bias_V,
      **old,
      temperature=inputs.temperature,
      top_p=inputs.top_p if settings.truncated else 1.0,
      strict=settings.strict,
      confidence=settings.confidence,
    )
    return h, tokens, logp

  def rest():
    h = _hidden.eval_shape(net.denoiser, net.params, *seen)
    return jnp.zeros(h.shape, h.dtype), *old.values()

  return jax.lax.cond(ask, call, rest)


@functools.partial(jax.jit, static_argnums=0)  # traced once for all programs
def _hidden(denoiser, params, z, rows, snr):
  """Hidden states, from kept input embeddings where the denoiser has them."""
  if rows is None:
    return readout.see(denoiser, params, z, snr)
  return denoiser.trunk(params, rows, z)


def _soft(net, keys, state, following, tokens, hidden, z_BLD, inputs, settings):
  """Moves from or to finite SNRs; z, and the network calls that they took."""
  snr = state.snr_BL
  climbs = (following > snr) & jnp.isfinite(following)
  climb = functools.partial(
    _climb, net, keys.up, state, following, tokens, hidden, inputs, settings
  )
  z, more = jax.lax.cond(
    jnp.any(climbs), climb, lambda _, z: (z, jnp.int32(0)), climbs, z_BLD
  )
  falls = (following < snr) & (following > 0)
  fall = jax.vmap(
    functools.partial(channel.backtrack, clean_snr=inputs.clean_snr)
  )
  z = jax.lax.cond(
    jnp.any(falls),
    lambda z: fall(keys.down, z, snr, jnp.where(falls, following, snr)),
    lambda z: z,
    z,
  )
  return z, more


def _climb(
  net, key_B, state, following, tokens, hidden, inputs, settings, climbs, z
):
  """Moves up to finite SNRs; z, and the network calls that it took."""
  x = sphere.embed(net.table_VD, tokens)
  snr, target = state.snr_BL, jnp.where(climbs, following, state.snr_BL)
  advance = jax.vmap(
    functools.partial(
      channel.advance, clean_snr=inputs.clean_snr, noise=settings.noise
    )
  )

  def up(x):
    risen = advance(key_B, state.z_BLD, x, snr, target)
    return jnp.where(climbs[..., None], risen, z)

  def mean(h):
    how = {"bias_V": net.bias_V, "implementation": readout.way(net.denoiser)}
    return moving.mean(climbs, h, net.head_VM, net.table_VD, **how)

  if settings.integrator == "sample":
    return up(x), jnp.int32(0)
  first = mean(hidden)
  attempt = up(first)
  if settings.integrator == "mean":
    return attempt, jnp.int32(0)
  rows, moved = state.rows_BLM, following != snr
  if rows is not None:
    rows = embed(net, inputs, True, moved, following, attempt, tokens, rows)
  h = _hidden(net.denoiser, net.params, attempt, rows, following)
  # With the key of the attempt: the corrected step keeps its noise.
  return up(0.5 * (first + mean(h))), jnp.int32(1)
