"""Prompts with gaps: [MASK] is a gap of one token, [MASK:9] one of nine."""

import re
from typing import NamedTuple

import numpy as np

from dsl_jax.data import tokenizers
from dsl_jax.runtime import errors, storage

_GAP = re.compile(r"\[MASK(?::([0-9]+))?\]")


class Prompt(NamedTuple):
  """Given tokens of one sequence."""

  text: str  # as it was written
  tokens_L: np.ndarray  # int32, 0 where no token is given
  prompt_mask_L: np.ndarray  # where a token is given


def parse(
  text: str, tokenizer: tokenizers.Tokenizer, length: int, *, name: str
) -> Prompt:
  """Parses a prompt; the positions after its last token are open.

  Texts between gaps are encoded separately. Errors begin with the name.
  """
  if any("\ud800" <= letter <= "\udfff" for letter in text):
    raise ValueError(f"{name} has bytes that are not UTF-8; write UTF-8.")
  tokens: list[int] = []  # -1 in gaps
  for number, part in enumerate(_GAP.split(text)):
    if number % 2:  # a gap: its size, or None for [MASK]
      # A gap longer than the sequence is an error below and needs no memory.
      size = min(int(part or 1), length + 1)
      if not size:
        raise ValueError(f"{name} has the gap [MASK:{part}]; use 1 or more.")
      tokens += [-1] * size
    elif part:
      try:
        tokens += tokenizer.encode(part).tolist()
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
  tokens_L = np.full(max(length, len(tokens)), -1, np.int32)
  tokens_L[: len(tokens)] = tokens
  prompt_mask_L = tokens_L >= 0
  if len(tokens) > length or prompt_mask_L.all():
    raise ValueError(
      f"{name} has {len(tokens)} tokens with its gaps; use at most "
      f"data.length, which is {length}, and leave a position open."
    )
  return Prompt(text, np.maximum(tokens_L, 0), prompt_mask_L)


def load_lines(path: str) -> list[tuple[str, str]]:
  """Loads a name for errors and the text of every line that is not empty."""
  with errors.reading(f"the prompts {path!r}", "give a UTF-8 text file."):
    lines = storage.local(path).read_text("utf-8").split("\n")
  named = [(f"line {i} of {path}", line) for i, line in enumerate(lines, 1)]
  if not any(lines):
    raise ValueError(f"the prompts {path!r} are empty; write one per line.")
  return [(name, line) for name, line in named if line]
