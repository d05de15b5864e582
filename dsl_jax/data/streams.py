"""Documents to one stream of tokens, counted and hashed on the way."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dsl_jax.data import characters
from dsl_jax.data.tokenizers import Tokenizer

_BATCH = 256  # documents encoded together


def is_words(tokenizer: Tokenizer) -> bool:
  """Returns whether tokens are pieces of words rather than characters."""
  return not isinstance(tokenizer, characters.CharTokenizer)


class TokenStream:
  """The tokens of documents as one stream, in arrays of any length.

  Word tokenizers: EOS follows every document. Character tokenizers: the text
  is normalised to their alphabet, with one space between documents.

  Args:
    documents: texts, read once.
    tokenizer: makes the tokens.
    progress: called with 1 after every document read.

  Attributes:
    documents: the number read so far.
    tokens: the number yielded so far.
    digest: sha256 of the texts read so far, each ended by a zero byte.
  """

  def __init__(
    self,
    documents: Iterable[str],
    tokenizer: Tokenizer,
    progress: Callable[[int], object],
  ):
    self._texts = documents
    self._tokenizer = tokenizer
    self._progress = progress
    self.documents = 0
    self.tokens = 0
    self.digest = hashlib.sha256()

  def __iter__(self) -> Iterator[np.ndarray]:
    encode = _words if is_words(self._tokenizer) else _characters
    for ids in encode(self._read(), self._tokenizer):
      self.tokens += ids.size
      yield ids

  def _read(self) -> Iterator[str]:
    """The documents themselves, counted and hashed."""
    for text in self._texts:
      self.digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
      self.documents += 1
      self._progress(1)
      yield text


def _words(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
  """Tokens of every document, then EOS where the tokenizer has one."""
  end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  while batch := list(itertools.islice(texts, _BATCH)):
    for ids in tokenizer.encode_many(batch):
      yield np.append(ids, end).astype(np.int32)


def _characters(
  texts: Iterator[str], tokenizer: Tokenizer
) -> Iterator[np.ndarray]:
  """Tokens of a running text: one space between documents, never two."""
  last = ""
  for text in texts:
    text = characters.normalize_text8(text)
    if last:
      text = text.removeprefix(" ")
      text = text if last == " " else " " + text
    last = text[-1:] or last
    yield tokenizer.encode(text)
