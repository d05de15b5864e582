"""The one sampler: it runs an array of per-token SNRs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import channel, paths, sphere
from dsl_jax.nets import readout
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import moving

INTEGRATORS = ("mean", "sample", "heun")


class State(NamedTuple):
  """What a row leaves behind.

  Attributes:
    snr_BL: current SNR per token.
    z_BLD: the channel.
    rows_BLM: input embeddings of z, or None for a denoiser without `embed`.
    tokens_BL: the last token drawn at each position.
    logp_BL: its log-probability when it was drawn.
  """

  snr_BL: jax.Array
  z_BLD: jax.Array
  rows_BLM: jax.Array | None
  tokens_BL: jax.Array
  logp_BL: jax.Array


class Settings(NamedTuple):
  """What is compiled into the program."""

  denoiser: Denoiser
  integrator: str
  strict: bool
  noise: float
  truncated: bool


def generate(
  params,
  key: jax.Array,
  path_TBL: jax.Array,
  *,
  denoiser: Denoiser,
  clean_snr: float,
  integrator: str = "mean",
  temperature: float = 1.0,
  top_p: float = 1.0,
  policy=None,
  prompt_BL: jax.Array | None = None,
  strict_top_p: bool = False,
  noise: float = 1.0,
) -> jax.Array:
  """Samples tokens along a path; one network call for a row that moves.

  From SNR t to t', with p(.|z) from one call: up to a finite t',
  z + d m + sqrt(d) eps with m the posterior mean or e(s), s ~ p(.|z); up to
  inf, s ~ p(.|z) is committed; down, the Brownian bridge. The loop ends at the
  last row that moves, so paths padded with their last row share one program.

  Args:
    params: of the denoiser.
    key: typed random key.
    path_TBL: [T+1, B, L], or [T+1, L] for the prompt's batch or one sequence.
    denoiser: functions of the network.
    clean_snr: scale of a committed token.
    integrator: of finite moves up: "mean", "sample", or "heun" (two calls).
    temperature: of drawn tokens; 0 takes the arg-max.
    top_p: nucleus of drawn tokens, in (0, 1].
    policy: (confidence_BL, snr_BL, step) -> next_BL, replaces the path's row
      except the last one. Confidence is the probability of the committed
      token when it was drawn, or of the candidate where none is.
    prompt_BL: ids where the path's first row is inf; others are ignored.
    strict_top_p: ReMDM's rule, which drops the token that crosses top_p.
    noise: share of the Brownian motion in finite moves up, 1 is the SDE of the
      channel, 0 its probability flow.

  Returns:
    tokens_BL, int32.

  Raises:
    ValueError: for a bad path, an unknown integrator, numbers out of range, or
      a prompt that is missing, of another shape, or outside the vocabulary.
  """
  _check(integrator, temperature, top_p, noise)
  if not isinstance(path_TBL, jax.core.Tracer):
    paths.check(path_TBL)
  path = jnp.asarray(path_TBL, jnp.float32)
  if path.ndim == 2:
    batch = 1 if prompt_BL is None else len(prompt_BL)
    path = jnp.broadcast_to(path[:, None], (len(path), batch, path.shape[-1]))
  vocab_size = jax.eval_shape(denoiser.table, params).shape[0]
  prompt = _prompt(prompt_BL, path, vocab_size)
  truncated = not isinstance(top_p, (int, float)) or top_p < 1
  if policy is not None and not isinstance(policy, jax.tree_util.Partial):
    policy = jax.tree_util.Partial(policy)
  settings = Settings(
    Denoiser(*(getattr(denoiser, f, None) for f in Denoiser._fields)),
    integrator,
    strict_top_p,
    noise,
    truncated,
  )
  numbers = (clean_snr, temperature, top_p)
  numbers = tuple(jnp.asarray(x, jnp.float32) for x in numbers)
  return _generate(params, key, path, prompt, numbers, policy, settings)


@functools.partial(jax.jit, static_argnames="settings")
def _generate(params, key, path, prompt, numbers, policy, settings):
  moves_T = jnp.any(path[1:] != path[:-1], axis=(1, 2))
  last = jnp.max(jnp.where(moves_T, jnp.arange(1, len(path)), 0), initial=0)
  step = functools.partial(_step, params, numbers=numbers, settings=settings)

  def body(carry):
    k, state = carry
    row = jax.lax.dynamic_index_in_dim(path, k + 1, 0, keepdims=False)
    row_key = jax.random.fold_in(key, k)
    if policy is None:
      run = lambda state: step(row_key, state, lambda _: row)
      moved = jnp.any(row != state.snr_BL)
      return k + 1, jax.lax.cond(moved, run, lambda state: state, state)

    def next_row(confidence):
      bent = policy(confidence, state.snr_BL, k)
      return jnp.where(k + 1 < last, bent, row)

    return k + 1, step(row_key, state, next_row, candidates=True)

  state = _start(params, key, path[0], prompt, numbers, settings)
  start = (jnp.int32(0), state)
  _, state = jax.lax.while_loop(lambda c: c[0] < last, body, start)
  return state.tokens_BL


def _start(params, key, snr, prompt, numbers, settings):
  """The state on the path's first row: masks and prompt tokens."""
  denoiser, clean_snr = settings.denoiser, numbers[0]
  x = sphere.embed(denoiser.table(params), prompt)
  z = channel.observe(key, x, snr, clean_snr=clean_snr)
  rows = denoiser.embed(params, z) if denoiser.embed else None
  return State(snr, z, rows, prompt, jnp.zeros(snr.shape))


def _step(params, key, state, next_row, *, numbers, settings, candidates=False):
  """One row: ask the network, draw or average, move."""
  denoiser = settings.denoiser
  clean_snr, temperature, top_p = numbers
  snr, z = state.snr_BL, state.z_BLD
  draw_key, up_key, down_key = jax.random.split(key, 3)

  def ask(z, rows, snr):
    if rows is None:
      return readout.see(denoiser, params, z, snr)
    return denoiser.trunk(params, rows, z)

  def draw(where):
    return moving.draw(
      draw_key,
      where,
      h,
      *denoiser.head(params),
      tokens=state.tokens_BL,
      logp=state.logp_BL,
      temperature=temperature,
      top_p=top_p if settings.truncated else 1.0,
      strict=settings.strict,
    )

  h = ask(z, state.rows_BLM, snr)
  committed = jnp.isinf(snr)
  if candidates:
    drawn = draw(~committed)
    following = next_row(jnp.exp(drawn[1]))
  else:
    following = next_row(None)
  rises = following > snr
  commits, climbs = rises & jnp.isinf(following), rises & ~jnp.isinf(following)
  by_token = commits | climbs if settings.integrator == "sample" else commits
  if not candidates:
    drawn = draw(by_token)
  tokens = jnp.where(by_token, drawn[0], state.tokens_BL)
  logp = jnp.where(by_token, drawn[1], state.logp_BL)

  table_VD = denoiser.table(params)

  def mean(h):
    return moving.mean(climbs, h, *denoiser.head(params), table_VD)

  def up(x):
    return channel.advance(
      up_key,
      z,
      x,
      snr,
      jnp.maximum(snr, following),
      clean_snr=clean_snr,
      noise=settings.noise,
    )

  x = sphere.embed(table_VD, tokens)
  if settings.integrator != "sample":
    first = mean(h)
    x = jnp.where(climbs[..., None], first, x)
  risen = up(x)
  if settings.integrator == "heun":

    def correct(risen):
      rows = denoiser.embed(params, risen) if denoiser.embed else None
      second = mean(ask(risen, rows, jnp.maximum(snr, following)))
      # The same key as before: the corrected step keeps its noise.
      both = jnp.where(climbs[..., None], 0.5 * (first + second), x)
      return up(both)

    keep = lambda risen: risen
    risen = jax.lax.cond(jnp.any(climbs), correct, keep, risen)
  fallen = channel.backtrack(
    down_key, z, snr, jnp.minimum(snr, following), clean_snr=clean_snr
  )
  z = jnp.where((following < snr)[..., None], fallen, risen)
  rows = state.rows_BLM
  if rows is not None:
    embed = lambda z: denoiser.embed(params, z)
    rows = moving.update(following != snr, embed, z, rows)
  return State(following, z, rows, tokens, logp)


def _prompt(prompt_BL, path, vocab_size):
  """Checks the prompt; zeros where there is none."""
  B, L = path.shape[1:]
  if prompt_BL is None:
    if not isinstance(path, jax.core.Tracer) and jnp.isinf(path[0]).any():
      raise ValueError(
        "prompt_BL is None, but the path's first row is inf somewhere; give "
        "the tokens that stand there."
      )
    return jnp.zeros((B, L), jnp.int32)
  if prompt_BL.shape != (B, L):
    raise ValueError(
      f"prompt_BL has shape {prompt_BL.shape}, the path needs {(B, L)}."
    )
  prompt = jnp.asarray(prompt_BL)
  if isinstance(prompt, jax.core.Tracer) or isinstance(path, jax.core.Tracer):
    return prompt.astype(jnp.int32)
  known = jnp.isinf(path[0])
  outside = known & ((prompt < 0) | (prompt >= vocab_size))
  if outside.any():
    b, i = (int(x[0]) for x in jnp.nonzero(outside))
    raise ValueError(
      f"prompt_BL is {int(prompt[b, i])} at batch {b}, column {i}; ids lie in "
      f"[0, {vocab_size})."
    )
  return jnp.where(known, prompt, 0).astype(jnp.int32)


def _check(integrator, temperature, top_p, noise):
  if integrator not in INTEGRATORS:
    raise ValueError(
      f"integrator is {integrator!r}; use {', '.join(INTEGRATORS)}."
    )
  if isinstance(temperature, (int, float)) and not temperature >= 0:
    raise ValueError(f"temperature is {temperature}; it must be at least 0.")
  if isinstance(top_p, (int, float)) and not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; a nucleus lies in (0, 1].")
  if not 0 <= noise <= 1:
    raise ValueError(f"noise is {noise}; a share lies in [0, 1].")
