"""Bounds on held-out rows, in bits a character with standard errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax import likelihood, paths
from dsl_jax.data import packing
from dsl_jax.nets.denoiser import Denoiser
from studies.small import data, model

SNR_GRID = np.geomspace(0.1, 100.0, 32)  # the integral's, cut at the last
# Bound -> independent draws that are averaged.
DRAWS = {"endpoint": 4, "integral": 1, "masked:32": 1, "geometric:32": 1}
BATCH = 64


def held_out(packed: packing.Packed, count: int) -> np.ndarray:
  """Returns rows spread evenly over a split, int32 [count, L].

  Args:
    packed: the split.
    count: rows, at most as many as there are.
  """
  place = np.linspace(0, len(packed.tokens_NL) - 1, count).astype(int)
  return np.asarray(packed.tokens_NL[place])


def characters(tokens_NL: np.ndarray) -> np.ndarray:
  """Returns the number of characters of every row, without its markers."""
  return np.array([len(text) for text in data.texts(tokens_NL)])


def nats(
  params: dict,
  tokens_NL: np.ndarray,
  bound: str,
  *,
  denoiser: Denoiser,
  clean_snr: float = model.CLEAN_SNR,
  draws: int = 1,
) -> np.ndarray:
  """Returns a bound on -log p of every row, [N]; noise is the same every time.

  Args:
    params: of the denoiser.
    tokens_NL: rows, a multiple of BATCH.
    bound: `endpoint`, `integral`, or `masked:T` and `geometric:T`, the bound of
      a sampler of T steps.
    denoiser: functions of the network.
    clean_snr: scale of a committed token.
    draws: independent repetitions that are averaged.
  """
  one = _bound(bound, denoiser, clean_snr)
  found = []
  for first in range(0, len(tokens_NL), BATCH):
    tokens_BL = jnp.asarray(tokens_NL[first : first + BATCH])
    keys = jax.random.split(jax.random.key(first), draws)
    found.append(np.mean([one(params, key, tokens_BL) for key in keys], axis=0))
  return np.concatenate(found)


def bits(nats_N: np.ndarray, chars_N: np.ndarray) -> tuple[float, float]:
  """Returns bits a character of all rows and its standard error over rows.

  The estimate is a ratio of sums; the error is the usual linearised one. For
  the error of a difference of two bounds give the difference of their nats.

  Args:
    nats_N: of every row.
    chars_N: characters of every row.
  """
  bits_N = nats_N / np.log(2)
  ratio = np.sum(bits_N) / np.sum(chars_N)
  rest_N = bits_N - ratio * chars_N
  error = np.std(rest_N, ddof=1) / np.sqrt(len(rest_N)) / np.mean(chars_N)
  return float(ratio), float(error)


def mmse(
  params: dict, tokens_NL: np.ndarray, denoiser: Denoiser
) -> list[float]:
  """Returns E|x - xhat|^2 a token with all tokens at one SNR of the grid.

  Args:
    params: of the denoiser.
    tokens_NL: rows.
    denoiser: functions of the network.
  """
  rows = jnp.asarray(tokens_NL[:BATCH])
  curve = jax.jit(
    lambda params: likelihood.mmse_curve(
      params,
      jax.random.key(0),
      rows,
      denoiser=denoiser,
      snr_grid=jnp.asarray(SNR_GRID, jnp.float32),
    )
  )
  return np.round(np.asarray(curve(params), np.float64), 5).tolist()


@functools.cache
def _bound(name, denoiser, clean_snr):
  """The compiled bound of a name: params, key, rows to nats of rows."""
  kind, _, steps = name.partition(":")
  how = {"denoiser": denoiser, "clean_snr": clean_snr}

  def one(params, key, tokens_BL):
    if kind == "endpoint":
      return likelihood.endpoint_nats(params, key, tokens_BL, **how)[0]
    if kind == "integral":
      grid = jnp.asarray(SNR_GRID)
      return likelihood.integral_nats(
        params, key, tokens_BL, denoiser=denoiser, snr_grid=grid
      )[0]
    path_key, key = jax.random.split(key)
    B, L = tokens_BL.shape
    if kind == "masked":
      path = paths.masked(path_key, int(steps), B, L)
    else:
      low, high = SNR_GRID[[0, -1]]
      path = paths.geometric(int(steps), L, snr_min=low, snr_max=high)
    nats_BL = likelihood.path_nats(params, key, tokens_BL, path, **how)
    return jnp.sum(nats_BL, axis=-1)

  return jax.jit(one)
