"""The one sampler: it runs any array of per-token SNRs.

`generate` and `sample` check a request, then loop over the steps of its path;
`step.step` is one of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import channel, checks, paths, sphere
from dsl_jax.core.paths import algebra
from dsl_jax.nets import denoiser as denoiser_lib
from dsl_jax.samplers import policies
from dsl_jax.samplers import step as step_lib
from dsl_jax.samplers.step import Options, State

SEGMENT_ROWS = 64  # rows that `sample` gives to a program at a time


class Segment(NamedTuple):
  """Consecutive steps of a path, given to one program."""

  snr_TBL: checks.Array  # after each step
  step_TB: checks.Array  # of the whole path, which determines a step's noise
  first: jax.Array | np.int32  # steps before the segment
  stop: jax.Array | np.int32  # steps up to its end; others are padding
  last: jax.Array | np.int32  # steps up to the last that moves a token


class Samples(NamedTuple):
  """What `sample` returns."""

  tokens_BL: jax.Array  # int32
  calls: int  # of the network, each over the whole batch


def _check_path(path, prompt_BL):
  """The path with a batch axis; [T+1, L] serves the batch of the prompt."""
  if not isinstance(path, jax.core.Tracer):
    paths.check(path)
    path = np.asarray(path, np.float32)
  if path.ndim == 2:
    shape = np.shape(prompt_BL)  # a wrong one is rejected later
    batch = shape[0] if len(shape) == 2 and shape[0] else 1
    xp = jnp if isinstance(path, jax.core.Tracer) else np
    path = xp.broadcast_to(path[:, None], (len(path), batch, path.shape[-1]))
  return path


def _check_prompt(prompt_BL, path_TBL, vocab_size):
  """The prompt; zeros where there is none."""
  shape, traced = path_TBL.shape[1:], jax.core.Tracer
  if prompt_BL is None:
    if not isinstance(path_TBL, traced) and np.isinf(path_TBL[0]).any():
      raise ValueError(
        "prompt_BL is None, but the path's first row is inf somewhere; give "
        "the tokens at these positions."
      )
    return jnp.zeros(shape, jnp.int32)
  if np.shape(prompt_BL) != shape:
    raise ValueError(
      f"prompt_BL has shape {np.shape(prompt_BL)}; the path needs {shape}."
    )
  if isinstance(prompt_BL, traced) or isinstance(path_TBL, traced):
    return jnp.asarray(prompt_BL, jnp.int32)
  prompt_mask_BL = np.isinf(path_TBL[0])
  checks.ids("prompt_BL", prompt_BL, vocab_size, prompt_mask_BL)
  return np.where(prompt_mask_BL, np.asarray(prompt_BL), 0).astype(np.int32)


def _check_request(params, key, path, options: Options):
  """Checks arguments of `generate`, before anything is compiled.

  Returns path_TBL (on the host unless it is traced), and options with arrays
  for numbers, a prompt that is zero elsewhere, and the policy as a pytree.
  """
  denoiser, policy = options.denoiser, options.policy
  prompt_BL, top_p = options.prompt_BL, options.top_p
  checks.word("integrator", options.integrator, ("mean", "sample", "heun"))
  checks.word("confidence", options.confidence, step_lib.CONFIDENCES)
  checks.not_negative("temperature", options.temperature)
  checks.number("top_p", top_p, lambda x: 0 < x <= 1, "it must lie in (0, 1]")
  checks.probability("noise", options.noise)
  checks.positive("clean_snr", options.clean_snr)
  checks.key(key)
  if not callable(getattr(denoiser, "table", None)):
    raise ValueError(f"denoiser is {denoiser!r}; make one with make_denoiser.")
  if not (policy is None or callable(policy)):
    raise ValueError(f"policy is {policy!r}; give one of samplers.policies.")
  if not (prompt_BL is None or isinstance(prompt_BL, jax.Array)):
    try:
      prompt_BL = np.asarray(prompt_BL)
    except ValueError as error:
      raise ValueError("prompt_BL is ragged; give ids [B, L].") from error
  path_TBL = _check_path(path, prompt_BL)
  table_VD = jax.eval_shape(denoiser.table, params)
  known = (jax.tree_util.Partial, policies.Policy)
  if policy is not None and not isinstance(policy, known):
    policy = jax.tree_util.Partial(policy)
  truncates = isinstance(top_p, jax.core.Tracer) or float(top_p) < 1
  return path_TBL, dataclasses.replace(
    options,
    denoiser=denoiser_lib.as_tuple(denoiser),
    clean_snr=jnp.asarray(options.clean_snr, jnp.float32),
    temperature=jnp.asarray(options.temperature, jnp.float32),
    top_p=jnp.asarray(top_p, jnp.float32) if truncates else None,
    policy=policy,
    prompt_BL=_check_prompt(prompt_BL, path_TBL, table_VD.shape[0]),
    strict_top_p=bool(options.strict_top_p),
    noise=float(options.noise),
  )


def _needs_candidates(policy, k, is_free):
  """Whether all open positions need a candidate; None means never."""
  if policy is None:
    return None
  if not isinstance(policy, policies.Policy):
    return is_free
  if policy.needs_confidence is None:
    return None
  return is_free & policy.needs_confidence(k)


def _next_snr(policy, planned_BL, k, is_free, state: State, logp_BL=None):
  """The next SNRs: the policy's where it is free, else the path's.

  logp_BL is of the candidates; before there are any, nothing moves by a policy
  that always needs them.
  """
  if policy is None:
    return planned_BL
  if logp_BL is None and not isinstance(policy, policies.Policy):
    return jnp.where(is_free, state.snr_BL, planned_BL)
  confidence_BL = jnp.exp(state.logp_BL if logp_BL is None else logp_BL)
  next_BL = policy(confidence_BL, state.snr_BL, k)
  if np.shape(next_BL) != planned_BL.shape:
    raise ValueError(
      f"policy returned shape {np.shape(next_BL)}; return {planned_BL.shape}."
    )
  # NaN and negative SNRs do not move a token; prompts stay.
  next_BL = jnp.where(next_BL >= 0, next_BL, state.snr_BL)
  next_BL = jnp.where(state.prompt_mask_BL, jnp.inf, next_BL)
  return jnp.where(is_free, next_BL, planned_BL)


def _start(params, snr_BL, options: Options) -> State:
  """The state before the first step: masks and prompt tokens."""
  model = step_lib.bind(params, options)
  prompt_mask_BL, embeddings_BLM = jnp.isinf(snr_BL), None
  x_BLD = sphere.embed(model.table_VD, options.prompt_BL)
  z_BLD = channel.hard(x_BLD, prompt_mask_BL, clean_snr=options.clean_snr)
  if model.mask_M is not None:
    masks_BLM = jnp.broadcast_to(
      model.mask_M, (*snr_BL.shape, len(model.mask_M))
    )
    embeddings_BLM = step_lib.embed(
      model, prompt_mask_BL, snr_BL, z_BLD, masks_BLM
    )
  return State(
    prompt_mask_BL=prompt_mask_BL,
    snr_BL=snr_BL,
    z_BLD=z_BLD,
    embeddings_BLM=embeddings_BLM,
    tokens_BL=options.prompt_BL,
    logp_BL=jnp.zeros(snr_BL.shape),
    calls=jnp.int32(0),
  )


def _run_segment(
  params, key, state: State, segment: Segment, options: Options
) -> State:
  """Runs consecutive steps of a path; `key` is that of the whole path."""
  model, policy = step_lib.bind(params, options), options.policy
  sequence_B = jnp.arange(segment.snr_TBL.shape[1], dtype=jnp.int32)
  key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)

  def step_keys(key, step):
    return jax.random.split(jax.random.fold_in(key, step), 3)

  def body(carry):
    k, state = carry
    i = k - segment.first
    planned_BL = jax.lax.dynamic_index_in_dim(segment.snr_TBL, i, 0, False)
    step_B = jax.lax.dynamic_index_in_dim(segment.step_TB, i, 0, False)
    keys = step_lib.Keys(
      *jnp.moveaxis(jax.vmap(step_keys)(key_B, step_B), 1, 0)
    )
    is_free = k + 1 < segment.last  # the last step is always the path's
    next_snr = functools.partial(_next_snr, policy, planned_BL, k, is_free)
    needs = _needs_candidates(policy, k, is_free)
    return k + 1, step_lib.step(model, keys, state, next_snr, needs)

  def unfinished(carry):
    return carry[0] < segment.stop

  return jax.lax.while_loop(unfinished, body, (segment.first, state))[1]


_jit_start = jax.jit(_start)
_jit_run_segment = jax.jit(_run_segment)


@jax.jit
def _run_path(params, key, path_TBL, options: Options):
  """All steps of a path in one program."""
  state = _start(params, path_TBL[0], options)
  if len(path_TBL) == 1:
    return state.tokens_BL
  moves_T = jnp.any(path_TBL[1:] != path_TBL[:-1], axis=(1, 2))
  step_T = jnp.arange(len(path_TBL) - 1, dtype=jnp.int32)
  last = jnp.max(jnp.where(moves_T, step_T + 1, 0), initial=0)
  step_TB = jnp.broadcast_to(step_T[:, None], (len(step_T), path_TBL.shape[1]))
  segment = Segment(path_TBL[1:], step_TB, jnp.int32(0), last, last)
  return _run_segment(params, key, state, segment, options).tokens_BL


def segments(
  path_TBL: np.ndarray, rows: int, *, together: bool
) -> Iterator[Segment]:
  """Cuts a path [T+1, B, L] into segments that share a program. Host code.

  A segment has at most `rows` steps, padded to a power of two. Steps that move
  nothing are dropped: for every sequence on its own, or, with `together`, those
  after the last that moves any sequence.
  """
  step_TB = algebra.moving_steps(path_TBL, together=together)
  last = len(step_TB)
  rows = min(rows, max(last, SEGMENT_ROWS))
  bound = 1 << (rows - 1).bit_length()
  sequence_B = np.arange(path_TBL.shape[1])
  for first in range(0, last, rows):
    part_TB = step_TB[first : first + rows]
    snr_TBL = path_TBL[part_TB + 1, sequence_B]
    missing = (0, bound - len(part_TB))
    yield Segment(
      snr_TBL=np.pad(snr_TBL, (missing, (0, 0), (0, 0)), "edge"),
      step_TB=np.pad(part_TB, (missing, (0, 0)), "edge").astype(np.int32),
      first=np.int32(first),
      stop=np.int32(first + len(part_TB)),
      last=np.int32(last),
    )


def generate(
  params,
  key: jax.Array,
  path_TBL: checks.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  **options,
) -> jax.Array:
  """Samples tokens_BL along a path; one network call for a step that moves.

  From SNR t to t', with p(.|z) from one call: up to a finite t',
  z + d m + sqrt(d) eps with m the posterior mean or e(s), s ~ p(.|z); up to
  inf, s ~ p(.|z) is committed; down, the Brownian bridge. The loop ends at the
  last step that moves, so paths padded with their last row share one program.

  A sequence depends on the key, its place in the batch and its own path alone.

  Args:
    path_TBL: [T+1, B, L], or [T+1, L] for the prompt's batch or one sequence.
    **options: integrator, temperature, top_p, policy, prompt_BL, strict_top_p,
      noise and confidence, the fields of `Options`.

  Raises:
    ValueError: for a bad path, an unknown integrator, numbers out of range, or
      a prompt that is missing, of another shape, or outside the vocabulary.
  """
  how = Options(denoiser=denoiser, clean_snr=clean_snr, **options)
  return _run_path(params, key, *_check_request(params, key, path_TBL, how))


def sample(
  params,
  key: jax.Array,
  path_TBL: checks.Array,
  *,
  denoiser: denoiser_lib.Denoiser,
  clean_snr: float,
  rows: int = SEGMENT_ROWS,
  callback: Callable[[int, State], None] | None = None,
  sharding: jax.NamedSharding | None = None,
  **options,
) -> Samples:
  """Runs a path of any length, segment by segment, from the host.

  Returns the tokens of `generate`, but steps that move nothing are dropped for
  every sequence on its own (unless a policy or callback counts steps), and the
  path goes to the device in segments padded to a power of two: paths of any
  length share one program, and a long path is never copied as a whole.

  Args:
    rows: steps in a segment, at most.
    callback: called with (steps done, state) after every segment.
    sharding: of arrays whose first axis is the batch, or None.
    **options: of `generate`, as the other arguments.
  """
  rows = checks.count("rows", rows)
  how = Options(denoiser=denoiser, clean_snr=clean_snr, **options)
  path, how = _check_request(params, key, path_TBL, how)

  def put(array, batch_axis):
    if sharding is None:
      return jnp.asarray(array)
    spec = jax.sharding.PartitionSpec(*[None] * batch_axis, *sharding.spec)
    return jax.device_put(array, jax.NamedSharding(sharding.mesh, spec))

  prompt = dataclasses.replace(how, prompt_BL=put(how.prompt_BL, 0))
  state = _jit_start(params, put(path[0], 0), prompt)
  how = dataclasses.replace(how, prompt_BL=None)
  counted = how.policy is not None or callback is not None
  for segment in segments(np.asarray(path), rows, together=counted):
    stop = int(segment.stop)
    segment = segment._replace(
      snr_TBL=put(segment.snr_TBL, 1), step_TB=put(segment.step_TB, 1)
    )
    state = _jit_run_segment(params, key, state, segment, how)
    if callback is not None:
      callback(stop, state)
  return Samples(state.tokens_BL, int(state.calls))
