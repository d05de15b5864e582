"""Tokenizers by spec: characters, GPT-2's byte-level BPE, SentencePiece."""

import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from dsl_jax.data import characters, extras
from dsl_jax.runtime import errors

SPECS = ("text8", "text8-mdlm", "gpt2", "gpt2:DIR", "sentencepiece:FILE")
_GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_GPT2_VOCAB = 50257
_ENCODED = 1_000_000  # characters encoded at a time: bounds the BPE's memory


class Tokenizer(Protocol):
  """Text to ids and back.

  Attributes:
    name: the kind of tokenizer.
    vocab_size: ids are 0..vocab_size-1.
    bos_id, eos_id: row markers, or None.
    fingerprint: sha256 of the vocabulary, independent of the file's layout.
  """

  name: str
  vocab_size: int
  bos_id: int | None
  eos_id: int | None
  fingerprint: str

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], without markers."""

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes every text, in parallel where the library can."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids."""


def _reason(error: Exception) -> str:
  """A library's message without the C++ location in front of it."""
  first = str(error).partition("\n")[0]
  return first.rpartition("] ")[2].rstrip(".")


def _cut_at_words(text: str) -> Iterator[str]:
  """Cuts a long text where GPT-2 always begins a word: before a first space."""
  edge = re.compile(r"(?<=\S)(?=[ \n])")
  start = 0
  while start < len(text):
    match = edge.search(text, start + _ENCODED)
    stop = match.start() if match else len(text)
    yield text[start:stop]
    start = stop


class Gpt2Tokenizer:
  """GPT-2's byte-level BPE, 50257 ids; 50256 begins and ends a row."""

  def __init__(self, vocab_path: str, merges_path: str):
    library = extras.require("tokenizers", "data")
    fix = "use the directory of GPT-2's own files."
    try:
      with open(vocab_path, encoding="utf-8") as file:
        vocab = json.load(file)
      ids = sorted(vocab.values())
      with open(merges_path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
      merges = [tuple(x.split()) for x in lines if x and x[:8] != "#version"]
      model = library.models.BPE(vocab, merges)
    except Exception as error:  # the library raises plain Exception
      raise ValueError(
        f"{vocab_path} and {merges_path} are not the tables of a BPE "
        f"({_reason(error)}); {fix}"
      ) from error
    if ids != list(range(_GPT2_VOCAB)):
      raise ValueError(
        f"{vocab_path} has {len(vocab)} ids instead of GPT-2's {_GPT2_VOCAB}; "
        f"{fix}"
      )
    self.name = "gpt2"
    self.vocab_size = _GPT2_VOCAB
    self.bos_id: int | None = _GPT2_VOCAB - 1
    self.eos_id: int | None = _GPT2_VOCAB - 1
    content = json.dumps([sorted(vocab, key=vocab.get), merges])
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
    self._bpe = library.Tokenizer(model)
    self._bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    self._bpe.decoder = library.decoders.ByteLevel()

  def encode(self, text: str) -> np.ndarray:
    ids = [self._bpe.encode(part).ids for part in _cut_at_words(text)]
    return np.array(list(itertools.chain(*ids)), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    if max(map(len, texts), default=0) > _ENCODED:
      return [self.encode(text) for text in texts]
    encodings = self._bpe.encode_batch_fast(list(texts))
    return [np.array(encoding.ids, np.int32) for encoding in encodings]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._bpe.decode(np.asarray(ids).tolist())


def _find_gpt2(directory: str) -> tuple[str, str]:
  """The two table files in a directory, under either pair of names."""
  for names in _GPT2_FILES:
    vocab, merges = (os.path.join(directory, name) for name in names)
    if os.path.isfile(vocab) and os.path.isfile(merges):
      return vocab, merges
  raise ValueError(
    f"tokenizer is 'gpt2:{directory}' but that directory has no tables; put "
    "vocab.json and merges.txt there."
  )


def _fetch_gpt2() -> tuple[str, str]:
  """GPT-2's two table files from the Hugging Face hub or its cache."""
  hub = extras.require("huggingface_hub", "data")
  try:
    vocab, merges = (hub.hf_hub_download("gpt2", x) for x in _GPT2_FILES[0])
  except Exception as error:  # offline shows as many unrelated types
    raise ValueError(
      "tokenizer is 'gpt2' but its tables cannot be fetched from the Hugging "
      "Face hub; give a local copy as gpt2:DIR."
    ) from error
  return vocab, merges


def _marker(token: int) -> int | None:
  """None for SentencePiece's -1, a marker that the model does not have."""
  return None if token < 0 else token


class SentencePieceTokenizer:
  """A SentencePiece model file."""

  def __init__(self, path: str):
    library = extras.require("sentencepiece", "data")
    if not os.path.isfile(path):
      raise ValueError(
        f"the SentencePiece model {path!r} is not a file; train one "
        "with tokenizers.train_sentencepiece."
      )
    with open(path, "rb") as file:
      content = file.read()
    try:
      self._model = library.SentencePieceProcessor(model_proto=content)
      if not content:  # the library accepts it as a model not loaded yet
        raise RuntimeError
    except RuntimeError as error:
      raise ValueError(
        f"{path!r} is not a SentencePiece model; train one with "
        "tokenizers.train_sentencepiece."
      ) from error
    self.name = "sentencepiece"
    self.vocab_size = self._model.vocab_size()
    self.bos_id = _marker(self._model.bos_id())
    self.eos_id = _marker(self._model.eos_id())
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._model.encode(text), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    ids = self._model.encode(list(texts))
    return [np.array(x, np.int32) for x in ids]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._model.decode(np.asarray(ids).tolist())


def train_sentencepiece(
  texts: Iterable[str], out: str, vocab_size: int
) -> SentencePieceTokenizer:
  """Trains a lossless unigram model with byte fallback.

  Args:
    texts: training text; lines are cut to at most 4,000 characters.
    out: the model file to write.
    vocab_size: ids, of which 259 are markers and bytes.

  Returns:
    The tokenizer, as `load(f"sentencepiece:{out}")` makes it.
  """
  library = extras.require("sentencepiece", "data")
  lines = (
    line[start : start + 4000]
    for text in texts
    for line in text.splitlines()
    for start in range(0, len(line), 4000)
  )
  model = io.BytesIO()
  try:
    library.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=model,
      vocab_size=vocab_size,
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      max_sentence_length=16000,  # bytes; longer lines are silently dropped
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f"vocab_size is {vocab_size}, for which these texts give no "
      f"SentencePiece model; change it or use more text ({_reason(error)})."
    ) from error
  with open(out, "wb") as file:
    file.write(model.getvalue())
  return SentencePieceTokenizer(out)


def load(spec: str) -> Tokenizer:
  """Makes the tokenizer that a spec names.

  Args:
    spec: `text8`, `text8-mdlm`, `gpt2` (files from the Hugging Face hub),
      `gpt2:DIR` (vocab.json and merges.txt, or encoder.json and vocab.bpe),
      or `sentencepiece:FILE`.

  Raises:
    ValueError: an unknown name, or files that are missing or not GPT-2's.
    ImportError: an optional package is missing.
  """
  name, _, where = spec.partition(":")
  if spec == "text8":
    return characters.text8()
  if spec == "text8-mdlm":
    return characters.text8_mdlm()
  if name == "gpt2":
    return Gpt2Tokenizer(*(_find_gpt2(where) if where else _fetch_gpt2()))
  if name == "sentencepiece" and where:
    return SentencePieceTokenizer(where)
  raise ValueError(f"tokenizer is {spec!r}{errors.nearest(name, SPECS)}")
