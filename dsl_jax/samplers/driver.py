"""The one sampler: it runs rows of per-token SNRs. Traced code."""

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
  """What is compiled into the program; see `front.generate`."""

  denoiser: Denoiser
  integrator: str
  strict: bool
  noise: float
  truncated: bool
  confidence: str


class Numbers(NamedTuple):
  """What the program takes as arguments; see `front.generate`."""

  clean_snr: jax.Array
  temperature: jax.Array
  top_p: jax.Array


def run(
  params,
  key: jax.Array,
  state: State,
  path_RBL: jax.Array,
  first: jax.Array,
  last: jax.Array,
  numbers: Numbers,
  policy,
  settings: Settings,
) -> State:
  """Runs consecutive rows of a path.

  Args:
    params: of the denoiser.
    key: typed random key of the whole path.
    state: on the first of the rows.
    path_RBL: the rows.
    first: index of the first of them in the whole path.
    last: index of the last row of the whole path that moves.
    numbers: arguments of the sampler.
    policy: or None.
    settings: of the sampler.

  Returns:
    The state on the last of the rows, or on row `last` if that comes before.
  """
  step = functools.partial(_step, params, numbers=numbers, settings=settings)

  def body(carry):
    k, state = carry
    row = jax.lax.dynamic_index_in_dim(path_RBL, k - first + 1, 0, False)
    row_key = jax.random.fold_in(key, k)
    if policy is None:
      move = lambda state: step(row_key, state, lambda _: row)
      moved = jnp.any(row != state.snr_BL)
      return k + 1, jax.lax.cond(moved, move, lambda state: state, state)

    def next_row(confidence):
      bent = policy(confidence, state.snr_BL, k)
      bent = jnp.where(state.held_BL, jnp.inf, bent)
      return jnp.where(k + 1 < last, bent, row)

    return k + 1, step(row_key, state, next_row, candidates=True)

  stop = jnp.minimum(first + len(path_RBL) - 1, last)
  carry = (first, state)
  return jax.lax.while_loop(lambda c: c[0] < stop, body, carry)[1]


def start(
  params, row_BL: jax.Array, prompt_BL: jax.Array, numbers, settings
) -> State:
  """Returns the state on a path's first row: masks and prompt tokens."""
  denoiser, held_BL = settings.denoiser, jnp.isinf(row_BL)
  x = sphere.embed(denoiser.table(params), prompt_BL)
  z = channel.hard(x, held_BL, clean_snr=numbers.clean_snr)
  rows = denoiser.embed(params, z) if denoiser.embed else None
  logp = jnp.zeros(row_BL.shape)
  return State(held_BL, row_BL, z, rows, prompt_BL, logp, jnp.int32(0))


def _step(params, key, state, next_row, *, numbers, settings, candidates=False):
  """One row: ask the network if a token rises, then move."""
  snr = state.snr_BL
  draw_key, up_key, down_key = jax.random.split(key, 3)
  if candidates:
    h = _ask(params, settings, state.z_BLD, state.rows_BLM, snr)
    drawn = _draw(
      params, draw_key, ~jnp.isinf(snr), h, state, numbers, settings
    )
    following = next_row(jnp.exp(drawn[1]))
  else:
    following = next_row(None)

  rises = following > snr
  commits, climbs = (
    rises & jnp.isinf(following),
    rises & jnp.isfinite(following),
  )
  by_token = rises if settings.integrator == "sample" else commits

  def up(x):
    return channel.advance(
      up_key,
      state.z_BLD,
      x,
      snr,
      jnp.maximum(snr, following),
      clean_snr=numbers.clean_snr,
      noise=settings.noise,
    )

  def rise(state):
    if candidates:
      hidden, (tokens, logp) = h, drawn
    else:
      hidden = _ask(params, settings, state.z_BLD, state.rows_BLM, snr)
      tokens, logp = _draw(
        params, draw_key, by_token, hidden, state, numbers, settings
      )
    tokens = jnp.where(by_token, tokens, state.tokens_BL)
    logp = jnp.where(by_token, logp, state.logp_BL)
    denoiser = settings.denoiser
    table_VD, calls = denoiser.table(params), state.calls + 1
    x = sphere.embed(table_VD, tokens)

    def mean(h):
      return moving.mean(climbs, h, *denoiser.head(params), table_VD)

    if settings.integrator == "sample":
      z = up(x)
    else:
      first = mean(hidden)
      z = up(jnp.where(climbs[..., None], first, x))

    def correct(z):
      rows = denoiser.embed(params, z) if denoiser.embed else None
      h = _ask(params, settings, z, rows, jnp.maximum(snr, following))
      both = 0.5 * (first + mean(h))
      # The key of the first attempt: the corrected step keeps its noise.
      return up(jnp.where(climbs[..., None], both, x)), calls + 1

    if settings.integrator == "heun":
      keep = lambda z: (z, calls)
      z, calls = jax.lax.cond(jnp.any(climbs), correct, keep, z)
    return z, tokens, logp, calls

  def rest(state):
    return state.z_BLD, state.tokens_BL, state.logp_BL, state.calls

  z, tokens, logp, calls = jax.lax.cond(jnp.any(rises), rise, rest, state)
  fallen = channel.backtrack(
    down_key,
    state.z_BLD,
    snr,
    jnp.minimum(snr, following),
    clean_snr=numbers.clean_snr,
  )
  z = jnp.where((following < snr)[..., None], fallen, z)
  rows = state.rows_BLM
  if rows is not None:
    embed = functools.partial(settings.denoiser.embed, params)
    rows = moving.update(following != snr, embed, z, rows)
  return State(state.held_BL, following, z, rows, tokens, logp, calls)


def _ask(params, settings, z, rows, snr):
  """Hidden states, from kept input embeddings where the denoiser has them."""
  if rows is None:
    return readout.see(settings.denoiser, params, z, snr)
  return settings.denoiser.trunk(params, rows, z)


def _draw(params, key, where_BL, h, state, numbers, settings):
  """Tokens and log-confidence, new ones where asked."""
  head_VM, bias_V = settings.denoiser.head(params)
  tokens, logp = moving.draw(
    key,
    where_BL,
    h,
    head_VM,
    bias_V,
    tokens=state.tokens_BL,
    logp=state.logp_BL,
    temperature=numbers.temperature,
    top_p=numbers.top_p if settings.truncated else 1.0,
    strict=settings.strict,
  )
  if settings.confidence == "entropy":
    entropy = moving.entropy(where_BL, h, head_VM, bias_V)
    logp = jnp.where(where_BL, -entropy, state.logp_BL)
  return tokens, logp
