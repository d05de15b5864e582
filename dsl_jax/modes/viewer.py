"""A self-contained HTML page on which one sample appears step by step."""

import base64
import errno
import os
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import vocab
from dsl_jax.data import tokenizers
from dsl_jax.modes import pages
from dsl_jax.runtime import errors, storage

COMMITTED = 255  # level of an infinite SNR; level 0 is the mask


def check(path: str) -> None:
  """Raises if the page cannot be written, or would replace a file."""
  errors.require("jinja2", "demo")
  if jax.process_count() > 1:
    raise errors.UserError(
      f"--trace is {path} on {jax.process_count()} hosts; use a single one."
    )
  try:
    page = storage.to_path(path)
    if page.exists():
      raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    page.write_bytes(b"")
    page.unlink()
  except OSError as error:
    raise errors.UserError(
      f"--trace is {path}, which cannot be written ({storage.reason(error)}); "
      "name a new file in a writable folder."
    ) from error


@jax.jit
def _nearest(table_VD, z_BLD):
  """Returns the nearest tokens to z and their posterior given z alone."""
  tokens_BL = vocab.argmax(z_BLD, table_VD)
  return tokens_BL, jnp.exp(-vocab.nll(z_BLD, table_VD, tokens_BL))


def _levels(snr_RL):
  """Returns SNRs as bytes on a logarithmic scale, and the SNR of each byte."""
  finite = np.isfinite(snr_RL) & (snr_RL > 0)
  values = snr_RL[finite] if finite.any() else np.ones(1)
  low, high = values.min(), values.max()
  position = np.log(np.where(finite, snr_RL, low) / low)
  position = position / np.log(high / low) if high > low else position + 1
  levels = 1 + np.round(position * (COMMITTED - 2))
  levels = np.where(np.isinf(snr_RL), COMMITTED, np.where(finite, levels, 0))
  # JSON has no inf: the last entry is never shown.
  scale = np.array([0, *np.geomspace(low, high, COMMITTED - 1), 0.0])
  return levels.astype(np.uint8), scale


def _pack(array):
  return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()


class Step(NamedTuple):
  """One sequence after a step of its path."""

  number: int
  snr_L: np.ndarray
  tokens_L: np.ndarray  # drawn, or nearest where the SNR is finite
  confidence_L: np.ndarray  # their probabilities


class Trace:
  """Records the first sequence of a batch while it is sampled."""

  def __init__(self, table_VD: jax.Array):
    self._table_VD = table_VD
    self._last = 0  # number of the last step
    self.steps: list[Step] = []  # those that change something

  def __call__(self, number: int, state) -> None:
    """Records a step: the callback of `samplers.sample`, for every step."""
    self._last = number
    tokens_L = np.asarray(state.tokens_BL[0])
    snr_L = np.asarray(state.snr_BL[0])
    if not self.steps:
      prompt_L = np.where(state.prompt_mask_BL[0], np.inf, 0)
      self.steps.append(Step(0, prompt_L, tokens_L, np.ones(len(tokens_L))))
    if np.array_equal(snr_L, self.steps[-1].snr_L):
      return
    confidence_L = np.exp(np.asarray(state.logp_BL[0]))
    finite_L = np.isfinite(snr_L) & (snr_L > 0)
    if finite_L.any():  # tokens that are not drawn yet
      nearest_BL, probability_BL = _nearest(self._table_VD, state.z_BLD[:1])
      tokens_L = np.where(finite_L, nearest_BL[0], tokens_L)
      confidence_L = np.where(finite_L, probability_BL[0], confidence_L)
    self.steps.append(Step(number, snr_L, tokens_L, confidence_L))

  def write(self, path: str, tokenizer: tokenizers.Tokenizer, title: str):
    """Writes the page, whole or not at all."""
    numbers, *arrays = zip(*self.steps, strict=True)
    snr_RL, tokens_RL, confidence_RL = map(np.stack, arrays)
    tokens_RL = np.where(snr_RL > 0, tokens_RL, 0)
    ids, index_RL = np.unique(tokens_RL, return_inverse=True)
    levels_RL, scale = _levels(snr_RL)
    finite = ""
    if np.any((levels_RL > 0) & (levels_RL < COMMITTED)):
      finite = " to ".join(dict.fromkeys(f"{x:.3g}" for x in scale[[1, -2]]))
    confidence_RL = np.round(255 * np.clip(confidence_RL, 0, 1))
    data = {
      "length": levels_RL.shape[1],
      "rows": numbers,
      "last": self._last,
      "snr": scale.tolist(),
      "texts": tokenizers.pieces(tokenizer, ids),
      "levels": _pack(levels_RL),
      "confidences": _pack(confidence_RL.astype(np.uint8)),
      "tokens": _pack(index_RL.astype("<u4")),
    }
    pages.write(path, "viewer.html", title=title, finite=finite, data=data)
