"""Checks of what a user asks the sampler for, before anything is compiled."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import paths
from dsl_jax.nets.denoiser import Denoiser
from dsl_jax.samplers import policies, steps

INTEGRATORS = ("mean", "sample", "heun")
CONFIDENCES = ("probability", "entropy")


class Request(NamedTuple):
  """A request in the order `driver.run` takes it.

  Attributes:
    path: [T+1, B, L], on the host unless it is traced.
    prompt: [B, L], zero where no prompt stands.
    inputs: arguments of the program.
    policy: a pytree, or None.
    settings: what is compiled into the program.
  """

  path: np.ndarray | jax.Array
  prompt: np.ndarray | jax.Array
  inputs: steps.Inputs
  policy: object
  settings: steps.Settings


def read(
  params,
  key,
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
  hard_rows=None,
) -> Request:
  """Checks a request; see `front.generate` for its parts."""
  _word("integrator", integrator, INTEGRATORS)
  _word("confidence", confidence, CONFIDENCES)
  inf = float("inf")
  _number("clean_snr", clean_snr, lambda x: 0 < x < inf, "use one above 0")
  _number("temperature", temperature, lambda x: x >= 0, "use at least 0")
  _number("top_p", top_p, lambda x: 0 < x <= 1, "a nucleus lies in (0, 1]")
  _number("noise", noise, lambda x: 0 <= x <= 1, "a share lies in [0, 1]")
  dtype = getattr(key, "dtype", np.dtype(object))
  if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    raise ValueError(f"key is {key!r}; make one with jax.random.key(seed).")
  if key.shape:
    raise ValueError(f"key has shape {key.shape}; give a single key.")
  path = _path(path_TBL, prompt_BL)
  table = jax.eval_shape(denoiser.table, params)
  _rows(hard_rows, table.shape[0])
  if policy is not None and not isinstance(
    policy, (jax.tree_util.Partial, policies.Policy)
  ):
    policy = jax.tree_util.Partial(policy)
  settings = steps.Settings(
    denoiser=Denoiser(*(getattr(denoiser, f, None) for f in Denoiser._fields)),
    integrator=integrator,
    strict=bool(strict_top_p),
    noise=float(noise),
    truncated=isinstance(top_p, jax.core.Tracer) or float(top_p) < 1,
    confidence=confidence,
  )
  numbers = (clean_snr, temperature, top_p)
  numbers = (jnp.asarray(x, jnp.float32) for x in numbers)
  inputs = steps.Inputs(*numbers, hard_rows)
  prompt = _prompt(prompt_BL, path, table.shape[0])
  return Request(path, prompt, inputs, policy, settings)


def _word(name, value, known):
  if value not in known:
    raise ValueError(f"{name} is {value!r}; use {', '.join(known)}.")


def _number(name, value, allowed, mend):
  """Refuses a concrete number out of range, NaN included."""
  if isinstance(value, jax.core.Tracer):
    return
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not allowed(number):
    raise ValueError(f"{name} is {value!r}; {mend}.")


def _rows(hard_rows, vocab_size):
  if hard_rows is not None and len(hard_rows) != vocab_size:
    raise ValueError(
      f"hard_rows has shape {hard_rows.shape}; use what samplers.hard_rows "
      f"gives for the {vocab_size} tokens here."
    )


def _path(path_TBL, prompt_BL):
  """The path with a batch axis; [T+1, L] serves the batch of the prompt."""
  path = path_TBL
  if not isinstance(path, jax.core.Tracer):
    paths.check(path)
    path = np.asarray(path, np.float32)
  if path.ndim == 2:
    batch = 1 if prompt_BL is None else len(prompt_BL)
    xp = jnp if isinstance(path, jax.core.Tracer) else np
    path = xp.broadcast_to(path[:, None], (len(path), batch, path.shape[-1]))
  return path


def _prompt(prompt_BL, path, vocab_size):
  """Checks the prompt; zeros where there is none."""
  shape, traced = path.shape[1:], jax.core.Tracer
  if prompt_BL is None:
    if not isinstance(path, traced) and np.isinf(path[0]).any():
      raise ValueError(
        "prompt_BL is None, but the path's first row is inf somewhere; give "
        "the tokens that stand there."
      )
    return jnp.zeros(shape, jnp.int32)
  if np.shape(prompt_BL) != shape:
    raise ValueError(
      f"prompt_BL has shape {np.shape(prompt_BL)}; the path needs {shape}."
    )
  if isinstance(prompt_BL, traced) or isinstance(path, traced):
    return jnp.asarray(prompt_BL, jnp.int32)
  prompt = np.asarray(prompt_BL)
  if prompt.dtype.kind not in "iu":
    raise ValueError(f"prompt_BL has dtype {prompt.dtype}; give integer ids.")
  known = np.isinf(path[0])
  outside = known & ((prompt < 0) | (prompt >= vocab_size))
  if outside.any():
    b, i = (int(x) for x in np.argwhere(outside)[0])
    raise ValueError(
      f"prompt_BL is {int(prompt[b, i])} at batch {b}, column {i}; ids lie in "
      f"[0, {vocab_size})."
    )
  return np.where(known, prompt, 0).astype(np.int32)
