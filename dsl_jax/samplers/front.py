"""What users call: checks of the request, then the traced driver."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsl_jax.core import checks
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import driver, pieces, requests


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
  hard_rows: jax.Array | None = None,
) -> jax.Array:
  """Samples tokens along a path; one network call for a row that moves.

  From SNR t to t', with p(.|z) from one call: up to a finite t',
  z + d m + sqrt(d) eps with m the posterior mean or e(s), s ~ p(.|z); up to
  inf, s ~ p(.|z) is committed; down, the Brownian bridge. The loop ends at the
  last row that moves, so paths padded with their last row share one program.

  A sequence depends on the key, its place in the batch and its own path alone.

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
    hard_rows: from `hard_rows`, spares committed tokens the converter.

  Returns:
    tokens_BL, int32.

  Raises:
    ValueError: for a bad path, an unknown integrator, numbers out of range, or
      a prompt that is missing, of another shape, or outside the vocabulary.
  """
  request = requests.read(
    params,
    key,
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
    hard_rows=hard_rows,
  )
  return _generate(params, key, *request)


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
  rows: int = pieces.ROWS,
  callback: Callable[[int, driver.State], None] | None = None,
  sharding: jax.NamedSharding | None = None,
  **options,
) -> Samples:
  """Runs a path on the host's side of `generate`, some rows at a time.

  Returns what `generate` returns, but steps that move nothing are dropped for
  every sequence on its own (without a policy or callback, which count rows),
  and the rest goes to the device in pieces padded to the next power of two:
  paths of any length share the programs of such a bound, one for rows that
  only mask and commit and one for all others, and a long path never lies on
  the device.

  Args:
    params: of the denoiser.
    key: typed random key.
    path_TBL: as for `generate`.
    denoiser: functions of the network.
    clean_snr: scale of a committed token.
    rows: rows in a piece, at most.
    callback: called with (row, state) after every so many rows and the last.
    sharding: of arrays whose first axis is the batch; None leaves them be.
    **options: as for `generate`.

  Returns:
    Tokens and network calls.

  Raises:
    ValueError: as `generate`, or rows below 1.
  """
  rows = checks.count("rows", rows)
  if not (callback is None or callable(callback)):
    raise ValueError(f"callback is {callback!r}; give a function or None.")
  if not (sharding is None or isinstance(sharding, jax.NamedSharding)):
    raise ValueError(f"sharding is {sharding!r}; give a jax.NamedSharding.")
  request = requests.read(params, key, path_TBL, denoiser, clean_snr, **options)
  path, prompt, inputs, policy, settings = request

  def put(array, axis):
    if sharding is None:
      return jnp.asarray(array)
    spec = jax.sharding.PartitionSpec(*[None] * axis, *sharding.spec)
    return jax.device_put(array, jax.NamedSharding(sharding.mesh, spec))

  first_row, prompt = put(path[0], 0), put(prompt, 0)
  state = _start(params, first_row, prompt, inputs, settings)
  bent = policy is not None
  counted = bent or callback is not None
  for piece, soft in pieces.cut(path, rows, together=counted, soft=bent):
    stop, last = int(piece.stop), int(piece.last)
    piece = piece._replace(
      snr_RBL=put(piece.snr_RBL, 1), step_RB=put(piece.step_RB, 1)
    )
    kind = settings._replace(soft=soft)
    state = _run(params, key, state, piece, inputs, policy, kind)
    if callback and (stop % rows == 0 or stop == last):
      callback(stop, state)
  return Samples(state.tokens_BL, int(state.calls))


@functools.partial(jax.jit, static_argnames="denoiser")
def _hard_rows(params, clean_snr, denoiser):
  z_VD = clean_snr * denoiser.table(params)
  return denoiser.embed(params, z_VD[None])[0]


def hard_rows(
  params, *, denoiser: Denoiser, clean_snr: float
) -> jax.Array | None:
  """Input embeddings of all committed tokens, the converter of clean_snr e(v).

  With them a move between mask and commitment is a look-up. They cost V rows
  of the converter once; a sampler without them pays for every commitment.

  Args:
    params: of the denoiser.
    denoiser: functions of the network.
    clean_snr: scale of a committed token.

  Returns:
    rows_VM, or None for a denoiser whose converter is not apart.
  """
  if getattr(denoiser, "embed", None) is None:
    return None
  return _hard_rows(params, jnp.float32(clean_snr), denoiser)


_start = jax.jit(driver.start, static_argnames="settings")
_run = jax.jit(driver.run, static_argnames="settings")


@functools.partial(jax.jit, static_argnames="settings")
def _generate(params, key, path, prompt, inputs, policy, settings):
  state = driver.start(params, path[0], prompt, inputs, settings)
  if len(path) == 1:
    return state.tokens_BL
  moves_T = jnp.any(path[1:] != path[:-1], axis=(1, 2))
  step_T = jnp.arange(len(path) - 1, dtype=jnp.int32)
  last = jnp.max(jnp.where(moves_T, step_T + 1, 0), initial=0)
  step_TB = jnp.broadcast_to(step_T[:, None], (len(path) - 1, path.shape[1]))
  rows = driver.Rows(path[1:], step_TB, jnp.int32(0), last, last)
  state = driver.run(params, key, state, rows, inputs, policy, settings)
  return state.tokens_BL
