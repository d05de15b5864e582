"""One step of the sampler, from one array of SNRs to the next. Traced code.

Work over the vocabulary is done at the positions that need it, usually few.
They are gathered in tiles of one size, as many as the busiest sequence needs,
so that one program pays for what moves whatever the path. The result at a
position depends on its own key and inputs, not on its tile or other sequences.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, platforms, sphere, vocab
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.nets.denoiser import Denoiser

CONFIDENCES = ("probability", "truncated", "entropy")


class State(NamedTuple):
  """The state of a batch between two steps."""

  prompt_mask_BL: jax.Array  # true at prompt tokens
  snr_BL: jax.Array
  z_BLD: jax.Array
  embeddings_BLM: jax.Array | None  # of z, if the denoiser has an `embed`
  tokens_BL: jax.Array  # the last token drawn at each position,
  logp_BL: jax.Array  # and the logarithm of its confidence then
  calls: jax.Array  # of the network, so far


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["clean_snr", "temperature", "top_p", "policy", "prompt_BL"],
  meta_fields=["denoiser", "integrator", "strict_top_p", "noise", "confidence"],
)
@dataclasses.dataclass(frozen=True)
class Options:
  """How tokens are drawn and moved; meta fields are compiled in."""

  denoiser: Denoiser
  clean_snr: Any
  # Of finite moves up: "mean", "sample", or "heun" (two calls).
  integrator: str = "mean"
  # Of the prediction, for drawn tokens and for posterior means alike.
  temperature: Any = 1.0  # 0 takes the arg-max
  top_p: Any = 1.0  # nucleus, in (0, 1]
  # Replaces the path's SNRs except at the start and the end; prompts stay.
  policy: Any = None
  prompt_BL: Any = None  # ids where the path's first row is inf
  # ReMDM's rule, which drops the token that crosses top_p.
  strict_top_p: bool = False
  # Fraction of the Brownian motion in finite moves up: 1 is the SDE of the
  # channel, 0 its probability flow.
  noise: float = 1.0
  # What policies see of a candidate, and of a committed token when it was
  # drawn: its "probability", that after temperature and nucleus ("truncated"),
  # or exp(-"entropy") of the prediction.
  confidence: str = "probability"


class Keys(NamedTuple):
  """Random keys of a step, one per sequence."""

  draw: jax.Array
  up: jax.Array
  down: jax.Array


class BoundModel(NamedTuple):
  """A model with a run's options, and what it makes of params alone."""

  params: dict
  options: Options
  table_VD: jax.Array
  head_VM: jax.Array
  bias_V: jax.Array | None
  mask_M: jax.Array | None  # input embedding of the mask


def _apply(
  where_BL: jax.Array,
  fn: Callable,
  x_BLC: jax.Array,
  old,
  vocab_size: int,
  *,
  always_tiles: bool = False,
):
  """Replaces `old` by fn(x_BKC, position_BK) where asked, in tiles of K.

  Where most of a sequence is asked for, fn(x_BLC, None) at all positions is
  cheaper than gathering them. With `always_tiles` fn may rely on positions.
  """
  B, L = where_BL.shape
  count_B1 = jnp.sum(where_BL, axis=1, dtype=jnp.int32)[:, None]
  busiest = jnp.max(count_B1)

  def in_tiles(platform, old):
    size = max(1, min(L, platform.whole_scores // (B * vocab_size)))
    # Positions asked for come first; the padding L is out of range.
    order = jnp.argsort(~where_BL, axis=1, stable=True).astype(jnp.int32)
    order = jnp.where(jnp.arange(L, dtype=jnp.int32)[None] < count_B1, order, L)
    order = jnp.pad(order, ((0, 0), (0, -L % size)), constant_values=L)
    # Batched over sequences, so that a batch over devices stays where it is.
    take = jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))
    put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))

    def tile(i, old):
      at = jax.lax.dynamic_slice_in_dim(order, i * size, size, axis=1)
      new = fn(take(x_BLC, at), at)
      return jax.tree.map(lambda x, y: put(x, at, y), old, new)

    return jax.lax.fori_loop(0, (busiest + size - 1) // size, tile, old)

  gathered = functools.partial(platforms.choose, in_tiles)

  def everywhere(old):
    return jnp.where(where_BL[..., None], fn(x_BLC, None), old)

  if always_tiles:
    return gathered(old)
  return jax.lax.cond(2 * busiest > L, everywhere, gathered, old)


def bind(params, options: Options) -> BoundModel:
  denoiser = options.denoiser
  table_VD, mask = denoiser.table(params), None
  if denoiser.embed is not None:
    mask = denoiser.embed(params, jnp.zeros((1, 1, table_VD.shape[1])))[0, 0]
  head_VM, bias_V = denoiser.head(params)
  return BoundModel(params, options, table_VD, head_VM, bias_V, mask)


def embed(
  model: BoundModel, where_BL, snr_BL, z_BLD, embeddings_BLM
) -> jax.Array | None:
  """Input embeddings of z where asked; masks need no converter."""
  if embeddings_BLM is None or model.mask_M is None:
    return None
  denoiser = model.options.denoiser
  is_mask = (where_BL & (snr_BL == 0))[..., None]
  embeddings_BLM = jnp.where(is_mask, model.mask_M[None, None], embeddings_BLM)

  def convert(z, _):
    return denoiser.embed(model.params, z).astype(embeddings_BLM.dtype)

  where_BL = where_BL & (snr_BL > 0)
  return _apply(where_BL, convert, z_BLD, embeddings_BLM, len(model.table_VD))


@functools.partial(jax.jit, static_argnums=0)  # traced once for all programs
def _hidden(denoiser, params, z_BLD, embeddings_BLM, snr_BL):
  if embeddings_BLM is None:
    return denoiser_lib.hidden_states(denoiser, params, z_BLD, snr_BL)
  return denoiser.trunk(params, embeddings_BLM, z_BLD)


def _draws_token(options, snr_BL, next_BL):
  """Where a move draws a token: commitments, and all moves up by samples."""
  rises = next_BL > snr_BL
  if options.integrator == "sample":
    return rises
  return rises & jnp.isinf(next_BL)


def _call_network(model: BoundModel, key_B, needed, draw_BL, state: State):
  """Hidden states, and tokens drawn with their log-confidence where asked.

  Without need, nothing is computed: hidden states are zero and tokens stay.
  """
  options = model.options
  args = model.params, state.z_BLD, state.embeddings_BLM, state.snr_BL
  old = state.tokens_BL, state.logp_BL

  def draw(h_BKM, position_BK):
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    tokens, logp = vocab.draw(
      fold(key_B, position_BK),
      h_BKM,
      model.head_VM,
      bias_V=model.bias_V,
      temperature=options.temperature,
      top_p=1.0 if options.top_p is None else options.top_p,
      strict=options.strict_top_p,
      truncated=options.confidence == "truncated",
    )
    if options.confidence == "entropy":
      logp = -vocab.entropy(h_BKM, model.head_VM, bias_V=model.bias_V)
    return tokens, logp

  def call():
    h = _hidden(options.denoiser, *args)
    V = len(model.head_VM)
    return h, *_apply(draw_BL, draw, h, old, V, always_tiles=True)

  def skip():
    h = _hidden.eval_shape(options.denoiser, *args)
    return jnp.zeros(h.shape, h.dtype), *old

  return jax.lax.cond(needed, call, skip)


def _move_up(
  model: BoundModel, key_B, state: State, next_BL, h_BLM, tokens_BL, z_BLD
):
  """Finite moves up from state.z_BLD; z and the network calls they took.

  z_BLD holds the tokens that were committed or masked in the same step.
  """
  options, snr_BL = model.options, state.snr_BL
  climbs_BL = (next_BL > snr_BL) & jnp.isfinite(next_BL)
  target_BL = jnp.where(climbs_BL, next_BL, snr_BL)
  advance = jax.vmap(
    functools.partial(
      channel.advance, clean_snr=model.options.clean_snr, noise=options.noise
    )
  )

  def up(x_BLD):
    risen_BLD = advance(key_B, state.z_BLD, x_BLD, snr_BL, target_BL)
    return jnp.where(climbs_BL[..., None], risen_BLD, z_BLD)

  def expectation(h, _):
    args, bias_V = (model.head_VM, model.table_VD), model.bias_V
    if options.top_p is not None:
      how = {"temperature": options.temperature, "top_p": options.top_p}
      return vocab.truncated_expectation(
        h, *args, bias_V=bias_V, strict=options.strict_top_p, **how
      )
    # Streamed: a temperature is a factor of all scores, 1 changes no bit.
    factor = 1 / jnp.maximum(options.temperature, 1e-6)
    h = (h * factor).astype(h.dtype)
    bias_V = None if bias_V is None else bias_V * factor
    return vocab.expectation(h, *args, bias_V=bias_V)

  def mean(h_BLM):
    zeros = jnp.zeros_like(z_BLD)
    return _apply(climbs_BL, expectation, h_BLM, zeros, len(model.head_VM))

  if options.integrator == "sample":
    return up(sphere.embed(model.table_VD, tokens_BL)), jnp.int32(0)
  mean_BLD = mean(h_BLM)
  attempt_BLD = up(mean_BLD)
  if options.integrator == "mean":
    return attempt_BLD, jnp.int32(0)
  # Heun: a second call where the attempt ended; the same key, the same noise.
  embeddings_BLM = embed(
    model, next_BL != snr_BL, next_BL, attempt_BLD, state.embeddings_BLM
  )
  h_BLM = _hidden(
    options.denoiser, model.params, attempt_BLD, embeddings_BLM, next_BL
  )
  return up(0.5 * (mean_BLD + mean(h_BLM))), jnp.int32(1)


def _move(
  model: BoundModel, keys: Keys, state: State, next_BL, h_BLM, tokens_BL
):
  """Moves every token; z after the step and the network calls it took."""
  snr_BL, clean_snr = state.snr_BL, model.options.clean_snr
  # Commitments and masks are free of noise.
  committed_BL = jnp.isinf(next_BL)
  ends_BL = (next_BL != snr_BL) & (committed_BL | (next_BL == 0))
  x_BLD = sphere.embed(model.table_VD, tokens_BL)
  hard_BLD = channel.hard(x_BLD, committed_BL, clean_snr=clean_snr)
  z_BLD = jnp.where(ends_BL[..., None], hard_BLD, state.z_BLD)

  climbs_BL = (next_BL > snr_BL) & ~committed_BL
  z_BLD, calls = jax.lax.cond(
    jnp.any(climbs_BL),
    lambda z: _move_up(model, keys.up, state, next_BL, h_BLM, tokens_BL, z),
    lambda z: (z, jnp.int32(0)),
    z_BLD,
  )
  falls_BL = (next_BL < snr_BL) & (next_BL > 0)
  target_BL = jnp.where(falls_BL, next_BL, snr_BL)
  backtrack = jax.vmap(
    functools.partial(channel.backtrack, clean_snr=clean_snr)
  )
  z_BLD = jax.lax.cond(
    jnp.any(falls_BL),
    lambda z: backtrack(keys.down, z, snr_BL, target_BL),
    lambda z: z,
    z_BLD,
  )
  return z_BLD, calls


def step(model: BoundModel, keys: Keys, state: State, next_snr, needs) -> State:
  """Calls the network if a token rises, then moves every token.

  Args:
    next_snr: (state, logp_BL of candidates, if any) -> next_snr_BL.
    needs: whether that needs a candidate at every open position; None for
      never.
  """
  options, snr_BL = model.options, state.snr_BL
  next_BL = next_snr(state)
  rises_BL = next_BL > snr_BL
  draw_BL = _draws_token(options, snr_BL, next_BL)
  if needs is not None:
    is_open_BL = jnp.isfinite(snr_BL)
    rises_BL = jnp.where(needs, is_open_BL, rises_BL)
    draw_BL = jnp.where(needs, is_open_BL, draw_BL)
  needed = jnp.any(rises_BL)
  h_BLM, tokens_BL, logp_BL = _call_network(
    model, keys.draw, needed, draw_BL, state
  )
  if needs is not None:
    next_BL = jnp.where(needs, next_snr(state, logp_BL), next_BL)

  draw_BL = _draws_token(options, snr_BL, next_BL)
  tokens_BL = jnp.where(draw_BL, tokens_BL, state.tokens_BL)
  logp_BL = jnp.where(draw_BL, logp_BL, state.logp_BL)
  z_BLD, calls = _move(model, keys, state, next_BL, h_BLM, tokens_BL)
  embeddings_BLM = embed(
    model, next_BL != snr_BL, next_BL, z_BLD, state.embeddings_BLM
  )
  return state._replace(
    snr_BL=next_BL,
    z_BLD=z_BLD,
    embeddings_BLM=embeddings_BLM,
    tokens_BL=tokens_BL,
    logp_BL=logp_BL,
    calls=state.calls + calls + needed.astype(jnp.int32),
  )
