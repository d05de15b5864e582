"""Character tokenizers: text8's 27 symbols, alone or in MDLM's numbering."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = "zero one two three four five six seven eight nine"
_DIGITS = {ord("0") + n: f" {word} " for n, word in enumerate(_WORDS.split())}
_SPELLED = str.maketrans(_LETTERS.upper(), _LETTERS) | _DIGITS
_MDLM_SPECIALS = "[CLS] [SEP] [BOS] [EOS] [PAD] [RESERVED] [UNK]"


def cut(text: str, size: int, edge: str) -> Iterator[str]:
  """Cuts out the first match of `edge` after every `size` characters."""
  pattern, start = re.compile(edge), 0
  while match := pattern.search(text, start + size):
    yield text[start : match.start()]
    start = match.end()
  yield text[start:]


def normalize_text8(text: str) -> str:
  """Maps any text onto a-z and single spaces, as the text8 script does.

  Letters become lower case, digits are spelled out, and any sequence of other
  characters becomes one space. Text already in the alphabet is unchanged.
  """
  return re.sub("[^a-z]+", " ", text.translate(_SPELLED))


class CharTokenizer:
  """One id per character; special ids are never produced by `encode`.

  `symbols` has the symbol of every id in order: one character, or a longer
  name for a special id.
  """

  def __init__(
    self,
    name: str,
    symbols: Sequence[str],
    bos_id: int | None = None,
    eos_id: int | None = None,
  ):
    self.name = name
    self.vocab_size = len(symbols)
    self.bos_id = bos_id
    self.eos_id = eos_id
    listing = "\n".join(symbols)
    self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    self._symbols = np.array(list(symbols), object)
    self._id_of = np.full(256, -1, np.int32)
    for token, symbol in enumerate(symbols):
      if len(symbol) == 1:
        self._id_of[ord(symbol)] = token

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n]; raises ValueError for text outside the alphabet."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    tokens = self._id_of[np.minimum(codes, 255)]
    if tokens.size and tokens.min() < 0:
      position = int(np.argmax(tokens < 0))
      raise ValueError(
        f"text has {text[position]!r} at position {position}, outside the "
        f"alphabet of tokenizer {self.name!r}; apply normalize_text8 first."
      )
    return tokens

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids; a special id shows its name."""
    ids = np.asarray(ids, np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
      raise ValueError(
        f"ids are in {ids.min()}..{ids.max()} but tokenizer {self.name!r} "
        f"has 0..{self.vocab_size - 1}; use the tokenizer that made them."
      )
    return "".join(self._symbols[ids])


def text8() -> CharTokenizer:
  """Makes text8's 27 symbols: id 0 is the space, 1..26 are a-z."""
  return CharTokenizer("text8", " " + _LETTERS)


def text8_mdlm() -> CharTokenizer:
  """Makes MDLM's text8 vocabulary without its mask row, 34 ids."""
  symbols = (*_MDLM_SPECIALS.split(), *_LETTERS, " ")
  return CharTokenizer("text8-mdlm", symbols, bos_id=2, eos_id=3)
