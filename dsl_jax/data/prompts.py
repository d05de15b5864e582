"""Prompts with gaps: [MASK] is a gap of one token, [MASK:9] one of nine.

[BOS] and [EOS] are the tokenizer's markers.
"""

import re
from typing import NamedTuple

import numpy as np

from dsl_jax.data import tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

_SPECIAL = re.compile(r"\[(MASK(?::[0-9]+)?|BOS|EOS)\]")
_GAP = -1


class Prompt(NamedTuple):
  """Given tokens of one sequence."""

  text: str  # as it was written
  tokens_L: np.ndarray  # int32, 0 where no token is given
  prompt_mask_L: np.ndarray  # where a token is given


def _special(word, tokenizer, length):
  """Returns the tokens of MASK, MASK:9, BOS or EOS; `_GAP` in a gap."""
  kind, _, count = word.partition(":")
  if kind == "MASK":
    # A gap longer than the sequence is an error later and needs no memory.
    count = count.lstrip("0") if count else "1"
    size = int(count or 0) if len(count) < 10 else length + 1
    if not size:
      raise ValueError("has the gap [MASK:0]; use 1 or more.")
    return [_GAP] * min(size, length + 1)
  token = tokenizer.bos_id if kind == "BOS" else tokenizer.eos_id
  if token is None:
    raise ValueError(f"has [{word}], which {tokenizer.name!r} does not have.")
  return [token]


def _encode(text, tokenizer, **ends):
  """Returns the tokens of a text, normalised as the corpus was."""
  if re.search(r"(?i)\[(mask|bos\]|eos\])", text):
    raise ValueError("has a word that is not [MASK], [MASK:9], [BOS] or [EOS].")
  is_plain = all(x.isascii() or not x.isalpha() for x in text)
  if isinstance(tokenizer, tokenizers.CharTokenizer) and is_plain:
    text = tokenizer.normalize(text)
  ids = tokenizer.encode_inside(text, **ends).tolist()
  if tokenizer.unk_id in ids:
    raise ValueError(
      f"has characters that {tokenizer.name!r} lacks in {text[:80]!r}; leave "
      "them out, or write small letters if its corpus has no others."
    )
  return ids


def parse(
  text: str,
  tokenizer: tokenizers.Tokenizer,
  data: config_lib.Data,
  *,
  name: str,
) -> Prompt:
  """Parses a prompt; the positions after its last token are open.

  With `data.wrap` the row is between BOS and EOS, as those of training are,
  unless the prompt is empty. With `data.pad` BOS is given, and EOS is open.
  Errors begin with the name.
  """
  if any("\ud800" <= letter <= "\udfff" for letter in text):
    raise ValueError(f"{name} has bytes that are not UTF-8; write UTF-8.")
  tokens: list[int] = []
  words = _SPECIAL.split(text)
  try:
    for i, word in enumerate(words):
      if i % 2:
        tokens += _special(word, tokenizer, data.length)
      elif word:
        # A gap goes on, and so does what is open after the prompt.
        first = i == 0 or not words[i - 1].startswith("MASK")
        last = i + 1 < len(words) and not words[i + 1].startswith("MASK")
        tokens += _encode(word, tokenizer, first=first, last=last)
  except ValueError as error:
    raise ValueError(f"{name} {error}") from error
  has_eos = data.wrap and bool(text)
  has_bos = data.pad or has_eos
  if has_bos and tokens[:1] == [tokenizer.bos_id]:
    tokens = tokens[1:]
  room = data.length - has_bos - has_eos
  if has_eos and tokens[room:] == [tokenizer.eos_id]:  # a whole row is written
    tokens = tokens[:room]
  row: list = [tokenizer.bos_id] * has_bos + tokens
  row += [_GAP] * (room - len(tokens)) + [tokenizer.eos_id] * has_eos
  tokens_L = np.array(row, np.int32)
  prompt_mask_L = tokens_L != _GAP
  if len(tokens) > room or prompt_mask_L.all():
    raise ValueError(
      f"{name} has {len(tokens)} tokens with its gaps; use at most "
      f"data.length, which is {room}{' without BOS' * has_bos}"
      f"{' and EOS' * has_eos}, and leave a position open."
    )
  return Prompt(text, np.where(prompt_mask_L, tokens_L, 0), prompt_mask_L)


def load_lines(path: str) -> list[tuple[str, str]]:
  """Loads a name for errors and the text of every line that is not empty."""
  with errors.reading(f"the prompts {path!r}", "give a UTF-8 text file."):
    lines = storage.local(path).read_text("utf-8-sig").split("\n")
  named = [(f"line {i} of {path}", line) for i, line in enumerate(lines, 1)]
  if not any(lines):
    raise ValueError(f"the prompts {path!r} are empty; write one per line.")
  return [(name, line) for name, line in named if line]
