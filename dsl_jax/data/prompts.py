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
    tokens_L: int32, 0 where no token is given.
    prompt_mask_L: where a token is given.
  """

  text: str
  tokens_L: np.ndarray
  prompt_mask_L: np.ndarray


def parse(
  text: str, tokenizer: tokenizers.Tokenizer, length: int, *, name: str
) -> Prompt:
  """Parses a prompt; the positions after its last token are open.

  The texts between gaps are encoded separately, so that their tokens are the
  same in every sample.

  Args:
    text: text and gaps in any order; "" leaves everything open.
    tokenizer: of the model.
    length: L.
    name: of the prompt, for errors.

  Returns:
    The prompt, of L positions.

  Raises:
    ValueError: a gap of size 0, text that the tokenizer cannot encode, or a
      prompt that leaves nothing open or is longer than L.
  """
  tokens: list[int] = []
  given: list[bool] = []
  for number, part in enumerate(_GAP.split(text)):
    if number % 2:  # a gap: its size, or None for [MASK]
      # A gap longer than the sequence is an error below and needs no memory.
      size = min(int(part or 1), length + 1)
      if not size:
        raise ValueError(f"{name} has the gap [MASK:{part}]; use 1 or more.")
      tokens += [0] * size
      given += [False] * size
    elif part:
      try:
        ids = tokenizer.encode(part).tolist()
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
      tokens += ids
      given += [True] * len(ids)
  if len(tokens) > length:
    raise ValueError(
      f"{name} has {len(tokens)} tokens with its gaps; use at most "
      f"data.length, which is {length}."
    )
  if sum(given) == length:
    raise ValueError(
      f"{name} has {length} tokens, all of data.length; use fewer or leave a "
      "gap."
    )
  tokens_L = np.zeros(length, np.int32)
  tokens_L[: len(tokens)] = tokens
  prompt_mask_L = np.zeros(length, bool)
  prompt_mask_L[: len(given)] = given
  return Prompt(text, tokens_L, prompt_mask_L)


def load_lines(path: str) -> list[tuple[str, str]]:
  """Reads a file of prompts, one per line; empty lines are left out.

  Returns:
    (name of the line for errors, text) of every prompt.

  Raises:
    ValueError: the file cannot be read, is not UTF-8, or has no prompt.
  """
  try:
    with open(path, encoding="utf-8") as file:
      lines = file.read().split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"the prompts {path!r} cannot be read ({error}); give a UTF-8 text file."
    ) from error
  prompts = [
    (f"line {number} of {path}", line)
    for number, line in enumerate(lines, 1)
    if line
  ]
  if not prompts:
    raise ValueError(f"the prompts {path!r} are empty; write one per line.")
  return prompts
