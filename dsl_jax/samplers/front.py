"""What users call: checks of the request, then the traced driver."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import paths
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import driver

INTEGRATORS = ("mean", "sample", "heun")
CONFIDENCES = ("probability", "entropy")


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
  confidence: str = "probability",
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
    policy: (confidence_BL, snr_BL, step) -> next_BL, replaces the path's rows
      except the first and the last one; prompts stay.
    prompt_BL: ids where the path's first row is inf; others are ignored.
    strict_top_p: ReMDM's rule, which drops the token that crosses top_p.
    noise: share of the Brownian motion in finite moves up, 1 is the SDE of the
      channel, 0 its probability flow.
    confidence: what policies see of a candidate, and of a committed token when
      it was drawn: its "probability", or exp(-"entropy") of the prediction.

  Returns:
    tokens_BL, int32.

  Raises:
    ValueError: for a bad path, an unknown integrator, numbers out of range, or
      a prompt that is missing, of another shape, or outside the vocabulary.
  """
  path, prompt, numbers, policy, settings = _request(
    params,
    path_TBL,
    denoiser,
    clean_snr,
    integrator=integrator,
    temperature=temperature,
    top_p=top_p,
    policy=policy,
    prompt_BL=prompt_BL,
    strict_top_p=strict_top_p,
    noise=noise,
    confidence=confidence,
  )
  return _generate(params, key, path, prompt, numbers, policy, settings)


class Samples(NamedTuple):
  """What `sample` returns.

  Attributes:
    tokens_BL: int32.
    calls: network calls, each over the whole batch.
  """

  tokens_BL: jax.Array
  calls: int


def sample(
  params,
  key: jax.Array,
  path_TBL: jax.Array,
  *,
  denoiser: Denoiser,
  clean_snr: float,
  rows: int = 64,
  callback: Callable[[int, driver.State], None] | None = None,
  sharding: jax.sharding.Sharding | None = None,
  **options,
) -> Samples:
  """Runs a path on the host's side of `generate`, some rows at a time.

  Rows that move nothing are dropped for every sequence on its own (without a
  policy or callback, which count rows), and the rest goes to the device in
  pieces of one size: one program for paths of any length, and a long path
  never lies on the device.

  Args:
    params: of the denoiser.
    key: typed random key.
    path_TBL: as for `generate`.
    denoiser: functions of the network.
    clean_snr: scale of a committed token.
    rows: rows in a piece.
    callback: called with (row, state) after every piece.
    sharding: of arrays whose first axis is the batch; None leaves them be.
    **options: as for `generate`.

  Returns:
    Tokens and network calls.

  Raises:
    ValueError: as `generate`, or rows below 1.
  """
  if rows < 1:
    raise ValueError(f"rows is {rows}; it must be at least 1.")
  path, prompt, numbers, policy, settings = _request(
    params, path_TBL, denoiser, clean_snr, host=True, **options
  )
  if policy is None and callback is None:
    path = paths.compact(path)
  pieces = max(1, -(-(len(path) - 1) // rows))
  last = jnp.int32(_last_move(path))
  path = paths.pad(path, pieces * rows + 1)

  def put(array, axis):
    if sharding is None:
      return jnp.asarray(array)
    spec = jax.sharding.PartitionSpec(*[None] * axis, *sharding.spec)
    return jax.device_put(array, jax.NamedSharding(sharding.mesh, spec))

  first_row, prompt = put(path[0], 0), put(prompt, 0)
  state = _start(params, first_row, prompt, numbers, settings)
  for first in range(0, pieces * rows, rows):
    piece = put(path[first : first + rows + 1], 1)
    piece_first = jnp.int32(first)
    state = _run(
      params, key, state, piece, piece_first, last, numbers, policy, settings
    )
    if callback:
      callback(min(first + rows, int(last)), state)
  return Samples(state.tokens_BL, int(state.calls))


_start = jax.jit(driver.start, static_argnames="settings")
_run = jax.jit(driver.run, static_argnames="settings")


@functools.partial(jax.jit, static_argnames="settings")
def _generate(params, key, path, prompt, numbers, policy, settings):
  state = driver.start(params, path[0], prompt, numbers, settings)
  moves_T = jnp.any(path[1:] != path[:-1], axis=(1, 2))
  rows = jnp.arange(1, len(path), dtype=jnp.int32)
  last = jnp.max(jnp.where(moves_T, rows, 0), initial=0)
  first = jnp.int32(0)
  state = driver.run(
    params, key, state, path, first, last, numbers, policy, settings
  )
  return state.tokens_BL


def _request(
  params,
  path_TBL,
  denoiser,
  clean_snr,
  *,
  integrator="mean",
  temperature=1.0,
  top_p=1.0,
  policy=None,
  prompt_BL=None,
  strict_top_p=False,
  noise=1.0,
  confidence="probability",
  host=False,
):
  """Checks a request; path [T+1, B, L], prompt, and what `driver.run` takes."""
  _check(integrator, temperature, top_p, noise, confidence)
  if not isinstance(path_TBL, jax.core.Tracer):
    paths.check(path_TBL)
  numpy = np if host else jnp
  path = numpy.asarray(path_TBL, np.float32)
  if path.ndim == 2:
    batch = 1 if prompt_BL is None else len(prompt_BL)
    path = numpy.broadcast_to(path[:, None], (len(path), batch, path.shape[-1]))
  vocab_size = jax.eval_shape(denoiser.table, params).shape[0]
  prompt = _prompt(prompt_BL, path, vocab_size)
  if policy is not None and not isinstance(policy, jax.tree_util.Partial):
    policy = jax.tree_util.Partial(policy)
  settings = driver.Settings(
    denoiser=Denoiser(*(getattr(denoiser, f, None) for f in Denoiser._fields)),
    integrator=integrator,
    strict=strict_top_p,
    noise=noise,
    truncated=not isinstance(top_p, (int, float)) or top_p < 1,
    confidence=confidence,
  )
  numbers = (clean_snr, temperature, top_p)
  numbers = driver.Numbers(*(jnp.asarray(x, jnp.float32) for x in numbers))
  return path, prompt, numbers, policy, settings


def _last_move(path):
  """Index of the last row that differs from the one before it."""
  moves = np.flatnonzero(np.any(path[1:] != path[:-1], axis=(1, 2)))
  return moves[-1] + 1 if len(moves) else 0


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


def _check(integrator, temperature, top_p, noise, confidence):
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
  if confidence not in CONFIDENCES:
    raise ValueError(
      f"confidence is {confidence!r}; use {' or '.join(CONFIDENCES)}."
    )
