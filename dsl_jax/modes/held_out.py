"""The text a run is scored on: rows, their characters, a user's file."""

from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from dsl_jax.data import batches, packing, streams, tokenizers
from dsl_jax.modes import inputs
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors


def tokenizer(cfg: config_lib.Config) -> tokenizers.Tokenizer | None:
  """Loads the run's tokenizer, or says that characters cannot be counted.

  Raises:
    errors.UserError: it is not that of the network.
    ValueError, ImportError: it cannot be loaded and eval.text needs it.
  """
  try:
    found = tokenizers.load(cfg.data.tokenizer)
  except (ValueError, ImportError) as error:
    if cfg.eval.text:
      raise
    logging.warning("no bits per character: %s", error)
    return None
  inputs.check_vocabulary(cfg, found)
  return found


def draw_rows(packed: packing.Packed, count: int, seed: int) -> np.ndarray:
  """Draws rows without replacement; all of them where there are fewer."""
  N = len(packed.tokens_NL)
  rows = batches.row_at(np.arange(min(count, N)), N, seed)
  return np.asarray(packed.tokens_NL[rows], np.int32)


def read_text(cfg: config_lib.Config) -> str:
  """Reads the file eval.text.

  Raises:
    errors.UserError: it cannot be read, is not UTF-8, or empty.
  """
  path = cfg.eval.text
  try:
    with open(path, encoding="utf-8") as file:
      text = file.read()
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f"eval.text is {path!r}, which is not UTF-8 at byte {error.start}; "
      "convert it."
    ) from error
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"eval.text is {path!r}, which cannot be read; give the path of a text "
      "file."
    ) from error
  if not text.strip():
    raise errors.UserError(
      f"eval.text is {path!r}, which is empty; give a file with text."
    )
  return text


def text_ids(cfg: config_lib.Config, found: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the tokens of the file eval.text, normalised as the corpus was."""
  return encode(read_text(cfg), found)


def encode(text: str, found: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the tokens of a text, normalised as the corpus was."""
  stream = streams.TokenStream([text], found, lambda n: None)
  ids = np.concatenate([np.zeros(0, np.int32), *stream])
  return ids[:-1] if len(ids) and ids[-1] == found.eos_id else ids


def text_rows(
  cfg: config_lib.Config, found: tokenizers.Tokenizer
) -> np.ndarray:
  """Cuts the file eval.text into rows as the corpus was cut, [N, L].

  Raises:
    errors.UserError: the text is shorter than a row.
  """
  ids, L = text_ids(cfg, found), cfg.data.length
  inner = L - 2 * cfg.data.wrap
  if len(ids) < inner:
    raise errors.UserError(
      f"eval.text is {cfg.eval.text!r} with {len(ids)} tokens, shorter than "
      f"the context of {inner}; give a longer text."
    )
  rows = ids[: len(ids) // inner * inner].reshape(-1, inner)
  if cfg.data.wrap:
    edge = np.ones((len(rows), 1), np.int32)
    rows = np.concatenate([found.bos_id * edge, rows, found.eos_id * edge], 1)
  return rows


def characters(
  rows_NL: np.ndarray, found: tokenizers.Tokenizer | None
) -> np.ndarray | None:
  """Counts the characters of every row, markers left out."""
  if found is None:
    return None
  markers = [x for x in (found.bos_id, found.eos_id) if x is not None]
  return np.array(
    [len(found.decode(row[~np.isin(row, markers)])) for row in rows_NL]
  )


def batched(
  rows_NL: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields tokens_BL and mask_BL of one shape; see `batches.eval_batches`."""
  return batches.eval_batches(packing.Packed(rows_NL, {}), batch_size)


def check_batch(cfg: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Refuses an eval.batch_size that the devices cannot share equally."""
  if cfg.eval.batch_size % mesh.size:
    raise errors.UserError(
      f"eval.batch_size is {cfg.eval.batch_size}; use a multiple of "
      f"{mesh.size}, the number of devices."
    )
