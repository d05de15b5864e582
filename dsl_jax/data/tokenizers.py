"""Tokenizers by spec: characters, GPT-2's byte-level BPE, SentencePiece."""

import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from dsl_jax.data import characters
from dsl_jax.runtime import errors

SPECS = ("text8", "text8-mdlm", "gpt2", "gpt2:DIR", "sentencepiece:FILE")
_GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_GPT2_VOCAB = 50257
_WORD = r"(?<=\S)(?=[ \n])"  # GPT-2 always begins a word before a first space
_ENCODED = 1_000_000  # characters encoded at a time: bounds the BPE's memory


class Tokenizer(Protocol):
  """Text to ids and back."""

  name: str  # the kind of tokenizer
  vocab_size: int  # ids are 0..vocab_size-1
  bos_id: int | None  # row markers, if it has them
  eos_id: int | None
  fingerprint: str  # sha256 of the vocabulary, not of its files

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], without markers."""

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes every text, in parallel where the library can."""

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids."""


class Gpt2Tokenizer:
  """GPT-2's byte-level BPE, 50257 ids; 50256 begins and ends a row."""

  def __init__(self, vocab_path: str, merges_path: str):
    library = errors.require("tokenizers", "data")
    tables = f"{vocab_path} and {merges_path}"
    with errors.reading(tables, "use the directory of GPT-2's own files."):
      vocab = json.loads(pathlib.Path(vocab_path).read_text("utf-8"))
      lines = pathlib.Path(merges_path).read_text("utf-8").split("\n")
      merges = [tuple(x.split()) for x in lines if x and x[:8] != "#version"]
      model = library.models.BPE(vocab, merges)
      if sorted(vocab.values()) != list(range(_GPT2_VOCAB)):
        raise ValueError(f"{len(vocab)} ids instead of {_GPT2_VOCAB}")
    self.name = "gpt2"
    self.vocab_size = _GPT2_VOCAB
    self.bos_id: int | None = _GPT2_VOCAB - 1
    self.eos_id: int | None = _GPT2_VOCAB - 1
    content = json.dumps([sorted(vocab, key=vocab.get), merges])
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
    self._bpe = library.Tokenizer(model)
    byte_level = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    self._bpe.pre_tokenizer = byte_level
    self._bpe.decoder = library.decoders.ByteLevel()

  def encode(self, text: str) -> np.ndarray:
    parts = characters.cut(text, _ENCODED, _WORD)
    ids = [self._bpe.encode(part).ids for part in parts]
    return np.array(list(itertools.chain(*ids)), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    if max(map(len, texts), default=0) > _ENCODED:
      return [self.encode(text) for text in texts]
    encodings = self._bpe.encode_batch_fast(list(texts))
    return [np.array(encoding.ids, np.int32) for encoding in encodings]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._bpe.decode(np.asarray(ids).tolist())


def _find_gpt2(directory: str) -> tuple[str, str]:
  """GPT-2's two tables in a directory, or from the Hugging Face hub for ""."""
  if not directory:
    hub = errors.require("huggingface_hub", "data")
    fix = "check the connection, or give a local copy as gpt2:DIR."
    with errors.reading("the tokenizer gpt2 of the Hugging Face hub", fix):
      vocab, merges = (hub.hf_hub_download("gpt2", x) for x in _GPT2_FILES[0])
    return vocab, merges
  for names in _GPT2_FILES:
    vocab, merges = (os.path.join(directory, name) for name in names)
    if os.path.isfile(vocab) and os.path.isfile(merges):
      return vocab, merges
  raise ValueError(
    f"tokenizer is 'gpt2:{directory}' but that directory has no tables; put "
    "vocab.json and merges.txt there."
  )


class SentencePieceTokenizer:
  """A SentencePiece model file."""

  def __init__(self, path: str):
    library = errors.require("sentencepiece", "data")
    fix = "train a model with tokenizers.train_sentencepiece."
    with errors.reading(path, fix):
      content = pathlib.Path(path).read_bytes()
      if not content:  # the library accepts it as a model not loaded yet
        raise RuntimeError("it is empty")
      self._model = library.SentencePieceProcessor(model_proto=content)
    self.name = "sentencepiece"
    self.vocab_size = self._model.vocab_size()
    markers = self._model.bos_id(), self._model.eos_id()  # -1 if it has none
    self.bos_id, self.eos_id = (None if x < 0 else x for x in markers)
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._model.encode(text), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(x, np.int32) for x in self._model.encode(list(texts))]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._model.decode(np.asarray(ids).tolist())


def train_sentencepiece(
  texts: Iterable[str], out: str, vocab_size: int
) -> SentencePieceTokenizer:
  """Trains a lossless unigram model with byte fallback and writes it to `out`.

  Of `vocab_size` ids 259 are markers and bytes. Long lines are cut.
  """
  library = errors.require("sentencepiece", "data")
  lines = (
    line[start : start + 4000]
    for text in texts
    for line in text.splitlines()
    for start in range(0, len(line), 4000)
  )
  model = io.BytesIO()
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
  pathlib.Path(out).write_bytes(model.getvalue())
  return SentencePieceTokenizer(out)


def load(spec: str) -> Tokenizer:
  """Makes the tokenizer that a spec of `SPECS` names.

  `gpt2` fetches its tables from the Hugging Face hub; `gpt2:DIR` has
  vocab.json and merges.txt, or encoder.json and vocab.bpe.
  """
  name, _, where = spec.partition(":")
  if spec == "text8":
    return characters.text8()
  if spec == "text8-mdlm":
    return characters.text8_mdlm()
  if name == "gpt2":
    return Gpt2Tokenizer(*_find_gpt2(where))
  if name == "sentencepiece" and where:
    return SentencePieceTokenizer(where)
  raise ValueError(f"tokenizer is {spec!r}{errors.nearest(name, SPECS)}")
