"""Prompts with gaps: [MASK] is a gap of one token, [MASK:9] one of nine."""

import re
from typing import NamedTuple

import numpy as np

from dsl_jax.data import tokenizers

_GAP = re.compile(r"\[MASK(?::([0-9]+))?\]")


class Prompt(NamedTuple):
  """Given tokens of one sequence.

  Attributes:
    text: as it was written.
    tokens_L: int32, 0 where nothing is given.
    known_L: where a token is given.
  """

  text: str
  tokens_L: np.ndarray
  known_L: np.ndarray


def parse(
  text: str, tokenizer: tokenizers.Tokenizer, length: int, *, name: str
) -> Prompt:
  """Reads a prompt; what follows its last token is open.

  The pieces between gaps are encoded each on its own, so that their tokens
  stand unchanged in every sample.

  Args:
    text: pieces of text and gaps in any order; "" leaves everything open.
    tokenizer: of the model.
    length: L.
    name: of the prompt, for errors.

  Returns:
    The prompt, of L positions.

  Raises:
    ValueError: a gap of no token, text the tokenizer does not know, or a
      prompt that leaves nothing open or is longer than L.
  """
  tokens, known, start = [], [], 0
  for gap in [*_GAP.finditer(text), None]:
    piece = text[start : gap.start() if gap else len(text)]
    try:
      ids = tokenizer.encode(piece).tolist() if piece else []
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from error
    tokens, known = tokens + ids, known + [True] * len(ids)
    if gap:
      size, start = int(gap[1] or 1), gap.end()
      # Larger than any sequence is as wrong as long, and takes no memory.
      size = min(size, length + 1)
      if not size:
        raise ValueError(f"{name} has the gap {gap[0]}; use 1 or more.")
      tokens, known = tokens + [0] * size, known + [False] * size
  if len(tokens) > length:
    raise ValueError(
      f"{name} has {len(tokens)} tokens with its gaps; use at most "
      f"data.length, which is {length}."
    )
  missing = length - len(tokens)
  known_L = np.array(known + [False] * missing, bool)
  if known_L.all():
    raise ValueError(
      f"{name} has {len(tokens)} tokens, all of data.length; use fewer or "
      "leave a gap."
    )
  return Prompt(text, np.array(tokens + [0] * missing, np.int32), known_L)


def read(path: str) -> list[tuple[str, str]]:
  """Reads a file of prompts, one a line; empty lines are left out.

  Returns:
    (where it stands, text) of every prompt.

  Raises:
    ValueError: no readable file, no UTF-8, or no prompt in it.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"the prompts {path!r} cannot be read ({error}); give a UTF-8 text file."
    ) from error
  lines = [line.removesuffix("\r") for line in lines]
  found = [
    (f"line {number} of {path}", line)
    for number, line in enumerate(lines, 1)
    if line
  ]
  if not found:
    raise ValueError(f"the prompts {path!r} are empty; write one a line.")
  return found
