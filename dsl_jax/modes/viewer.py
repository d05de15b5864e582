"""A self-contained HTML page on which one sample appears row by row."""

import base64
import os
import pathlib
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dsl_jax.core import vocab
from dsl_jax.data import extras, tokenizers
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib

COMMITTED = 255  # level of an infinite SNR; level 0 is the mask


class Row(NamedTuple):
  """State of a sequence after one row of its path.

  Attributes:
    number: of the row, 0 for the prompt.
    snr_L: SNRs.
    tokens_L: token ids, 0 at masks.
    confidence_L: probabilities of the tokens.
  """

  number: int
  snr_L: np.ndarray
  tokens_L: np.ndarray
  confidence_L: np.ndarray


def check(path: str) -> None:
  """Raises if the page cannot be written, or would replace a file.

  Raises:
    errors.UserError: names the file and the fix.
  """
  extras.require("jinja2", "demo")
  if jax.process_count() > 1:
    raise errors.UserError(
      f"--trace is {path} on {jax.process_count()} hosts; the page shows one "
      "sample of one host, so start a single process for it."
    )
  target = pathlib.Path(path)
  if target.exists():
    raise errors.UserError(
      f"--trace is {path}, which exists; name a new file or remove that one."
    )
  if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
    raise errors.UserError(
      f"--trace is {path}, which cannot be written; name a file in a writable "
      "folder."
    )


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


class Recorder:
  """Records the first sequence of a batch while it is sampled.

  Attributes:
    rows: the rows that change something.
    last: number of the last row.
  """

  def __init__(self, table_VD: jax.Array):
    self.rows: list[Row] = []
    self.last = 0
    self._table_VD = table_VD

  def __call__(self, number: int, state) -> None:
    """Records a row: the callback of `samplers.sample`, for every row."""
    tokens_L, snr_L = (
      np.asarray(x[0]) for x in (state.tokens_BL, state.snr_BL)
    )
    if not self.rows:
      prompt_L = np.where(state.prompt_mask_BL[0], np.inf, 0)
      self._keep(Row(0, prompt_L, tokens_L, np.ones(len(tokens_L))))
    confidence_L = np.exp(np.asarray(state.logp_BL[0]))
    finite_L = np.isfinite(snr_L) & (snr_L > 0)
    if finite_L.any():  # tokens that are not drawn yet
      nearest_BL, probability_BL = _nearest(self._table_VD, state.z_BLD[:1])
      tokens_L = np.where(finite_L, nearest_BL[0], tokens_L)
      confidence_L = np.where(finite_L, probability_BL[0], confidence_L)
    self._keep(Row(number, snr_L, tokens_L, confidence_L))

  def _keep(self, row):
    self.last = row.number
    if not self.rows or not np.array_equal(row.snr_L, self.rows[-1].snr_L):
      tokens_L = np.where(row.snr_L > 0, row.tokens_L, 0)
      self.rows.append(row._replace(tokens_L=tokens_L))

  def write(
    self, path: str, tokenizer: tokenizers.Tokenizer, *, title: str
  ) -> None:
    """Writes the page, whole or not at all."""
    jinja2 = extras.require("jinja2", "demo")
    numbers, snr_RL, tokens_RL, confidence_RL = map(
      np.stack, zip(*self.rows, strict=True)
    )
    ids, index_RL = np.unique(tokens_RL, return_inverse=True)
    texts = [tokenizer.decode([i]) for i in ids]
    levels_RL, scale = _levels(snr_RL)
    finite = ""
    if np.any((levels_RL > 0) & (levels_RL < COMMITTED)):
      finite = " to ".join(dict.fromkeys(f"{x:.3g}" for x in scale[[1, -2]]))
    confidence_RL = np.round(255 * np.clip(confidence_RL, 0, 1))
    data = {
      "length": levels_RL.shape[1],
      "rows": numbers.tolist(),
      "last": self.last,
      "snr": scale.tolist(),
      "texts": texts,
      "levels": _pack(levels_RL),
      "confidences": _pack(confidence_RL.astype(np.uint8)),
      "tokens": _pack(index_RL.astype("<u4")),
    }
    environment = jinja2.Environment(
      loader=jinja2.PackageLoader("dsl_jax.modes"), autoescape=True
    )
    page = environment.get_template("viewer.html").render(
      title=title,
      rows=len(numbers),
      length=data["length"],
      single_letters=all(len(text) == 1 for text in texts),
      finite=finite,
      data=data,
    )
    target = pathlib.Path(path)
    workdir_lib.write(str(target.parent), target.name, page)
