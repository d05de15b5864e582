"""Checks of what a user asks the sampler for, before anything is compiled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import checks, paths
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
  inf, cold = float("inf"), "use a finite number, at least 0"
  share = "a share lies in [0, 1]"
  checks.clean_snr(clean_snr)
  checks.number("temperature", temperature, lambda x: 0 <= x < inf, cold)
  checks.number("top_p", top_p, lambda x: 0 < x <= 1, "it lies in (0, 1]")
  checks.number("noise", noise, lambda x: 0 <= x <= 1, share)
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


def _rows(hard_rows, vocab_size):
  shape = np.shape(hard_rows)
  if hard_rows is not None and shape[:1] != (vocab_size,):
    raise ValueError(
      f"hard_rows has shape {shape}; use what samplers.hard_rows "
      f"gives for the {vocab_size} tokens here."
    )


def _path(path_TBL, prompt_BL):
  """The path with a batch axis; [T+1, L] serves the batch of the prompt."""
  path = path_TBL
  if not isinstance(path, jax.core.Tracer):
    paths.check(path)
    path = np.asarray(path, np.float32)
  if path.ndim == 2:
    shape = np.shape(prompt_BL)  # a wrong one is told later
    batch = shape[0] if len(shape) == 2 and shape[0] else 1
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
  known = np.isinf(path[0])
  checks.ids("prompt_BL", prompt_BL, vocab_size, known)
  return np.where(known, np.asarray(prompt_BL), 0).astype(np.int32)
