"""Tokenizers by spec: characters, GPT-2's byte-level BPE, SentencePiece."""

import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from dsl_jax.runtime import errors

SPECS = ("text8", "text8-mdlm", "gpt2", "gpt2:DIR", "sentencepiece:FILE")
_GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_GPT2_VOCAB = 50257
_SENTENCEPIECE_FILE = "tokenizer.model"  # in a folder
_UNKNOWN = "\ue000"  # of Unicode's private use: no part of any piece
_WORD = r"(?<=\S)(?=[ \n])"  # GPT-2 always begins a word before a first space
_ENCODED = 1_000_000  # characters encoded at a time: bounds the BPE's memory
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = "zero one two three four five six seven eight nine"
_DIGITS = {ord("0") + n: f" {word} " for n, word in enumerate(_WORDS.split())}
_SPELLED = str.maketrans(_LETTERS.upper(), _LETTERS) | _DIGITS
_MDLM_SPECIALS = "[CLS] [SEP] [BOS] [EOS] [PAD] [RESERVED] [UNK]"


class Tokenizer(Protocol):
  """Text to ids and back."""

  name: str  # the kind of tokenizer
  vocab_size: int  # ids are 0..vocab_size-1
  bos_id: int | None  # row markers, if it has them
  eos_id: int | None
  unk_id: int | None  # of what the vocabulary does not have
  fingerprint: str  # sha256 of the vocabulary, not of its files
  files: dict[str, bytes]  # what `load` reads from a folder, NAME:FOLDER

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], without markers."""

  def encode_inside(self, text: str) -> np.ndarray:
    """Encodes text that follows other text: no space is put before it."""
    return self.encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes every text, in parallel where the library can."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids."""


def cut(text: str, size: int, edge: str) -> Iterator[str]:
  """Cuts out the first match of `edge` after every `size` characters."""
  pattern, start = re.compile(edge), 0
  while match := pattern.search(text, start + size):
    yield text[start : match.start()]
    start = match.end()
  yield text[start:]


def normalize_text8(text: str) -> str:
  """Maps any text onto a-z and single spaces, as the text8 script does."""
  return re.sub("[^a-z]+", " ", text.translate(_SPELLED))


class CharTokenizer(Tokenizer):
  """One id per character, and names of more than one for special ids."""

  def __init__(self, name: str, symbols: Sequence[str]):
    self.name = name
    self.unk_id: int | None = None
    self.files: dict[str, bytes] = {}
    self.vocab_size = len(symbols)
    has_markers = "[BOS]" in symbols
    self.bos_id = symbols.index("[BOS]") if has_markers else None
    self.eos_id = symbols.index("[EOS]") if has_markers else None
    listing = "\n".join(symbols)
    self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    self._symbols = np.array(symbols, object)
    self._id_of = np.full(256, -1, np.int32)
    for token, symbol in enumerate(symbols):
      if len(symbol) == 1:
        self._id_of[ord(symbol)] = token

  def encode(self, text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    tokens = self._id_of[np.minimum(codes, 255)]
    if tokens.size and tokens.min() < 0:
      position = int(np.argmax(tokens < 0))
      raise ValueError(
        f"text has {text[position]!r} at position {position}, outside the "
        f"alphabet of tokenizer {self.name!r}; apply normalize_text8 first."
      )
    return tokens

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    ids = np.asarray(ids, np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
      raise ValueError(
        f"ids are in {ids.min()}..{ids.max()} but tokenizer {self.name!r} "
        f"has 0..{self.vocab_size - 1}; use the tokenizer that made them."
      )
    return "".join(self._symbols[ids])


class Gpt2Tokenizer(Tokenizer):
  """GPT-2's byte-level BPE."""

  def __init__(self, vocab_path: str, merges_path: str):
    library = errors.require("tokenizers", "data")
    tables = f"{vocab_path} and {merges_path}"
    with errors.reading(tables, "use the directory of GPT-2's own files."):
      text = library.ByteLevelBPETokenizer(vocab_path, merges_path).to_str()
      self._bpe = library.Tokenizer.from_str(text)
      model = json.loads(text)["model"]
      vocab, merges = model["vocab"], model["merges"]
      paths = vocab_path, merges_path
      contents = [pathlib.Path(path).read_bytes() for path in paths]
      if sorted(vocab.values()) != list(range(_GPT2_VOCAB)):
        raise ValueError(f"{len(vocab)} ids instead of {_GPT2_VOCAB}")
    self.name = "gpt2"
    self.files = dict(zip(_GPT2_FILES[0], contents))
    self.vocab_size = _GPT2_VOCAB
    self.bos_id: int | None = 50256  # <|endoftext|>
    self.eos_id: int | None = 50256
    self.unk_id: int | None = None
    content = json.dumps([sorted(vocab, key=vocab.get), merges])
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    parts = cut(text, _ENCODED, _WORD)
    ids = [self._bpe.encode(part).ids for part in parts]
    return np.array(list(itertools.chain(*ids)), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    if max(map(len, texts), default=0) > _ENCODED:
      return [self.encode(text) for text in texts]
    encodings = self._bpe.encode_batch_fast(list(texts))
    return [np.array(encoding.ids, np.int32) for encoding in encodings]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._bpe.decode(np.asarray(ids).tolist())


def _find_gpt2(directory: str) -> list[str]:
  """GPT-2's two tables in a directory, or from the Hugging Face hub for ""."""
  if not directory:
    hub = errors.require("huggingface_hub", "data")
    fix = "check the connection, or give a local copy as gpt2:DIR."
    with errors.reading("the tokenizer gpt2 of the Hugging Face hub", fix):
      return [hub.hf_hub_download("gpt2", name) for name in _GPT2_FILES[0]]
  for names in _GPT2_FILES:
    paths = [os.path.join(directory, name) for name in names]
    if all(map(os.path.isfile, paths)):
      return paths
  raise ValueError(
    f"tokenizer is 'gpt2:{directory}' but that directory has no tables; put "
    "vocab.json and merges.txt there."
  )


class SentencePieceTokenizer(Tokenizer):
  def __init__(self, path: str):
    library = errors.require("sentencepiece", "data")
    if os.path.isdir(path):
      path = os.path.join(path, _SENTENCEPIECE_FILE)
    with errors.reading(path, "train a model with spm_train."):
      content = pathlib.Path(path).read_bytes()
      if not content:  # the library accepts it as a model not loaded yet
        raise RuntimeError("it is empty")
      self._model = library.SentencePieceProcessor(model_proto=content)
    self.name = "sentencepiece"
    self.files = {_SENTENCEPIECE_FILE: content}
    self.vocab_size = self._model.vocab_size()
    markers = self._model.bos_id(), self._model.eos_id()  # -1 if it has none
    self.bos_id, self.eos_id = (None if x < 0 else x for x in markers)
    self.unk_id: int | None = self._model.unk_id()
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._model.encode(text), np.int32)

  def encode_inside(self, text: str) -> np.ndarray:
    # Models put or trim a space at the start only: there is an unknown letter.
    start = len(self._model.encode(_UNKNOWN))
    return self.encode(_UNKNOWN + text)[start:]

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(x, np.int32) for x in self._model.encode(list(texts))]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._model.decode(np.asarray(ids).tolist())


def pieces(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
  """Returns the text of each id inside a text, with the space before a word.

  Markers, which decode to nothing, are written [BOS] and [EOS].
  """
  before = tokenizer.encode("a").tolist()  # decoders drop a space at the start
  start = len(tokenizer.decode(before))
  markers = {tokenizer.bos_id: "[BOS]", tokenizer.eos_id: "[EOS]"}
  return [
    tokenizer.decode([*before, token])[start:] or markers.get(token, "")
    for token in map(int, ids)
  ]


def load(spec: str) -> Tokenizer:
  """Makes the tokenizer that a spec of `SPECS` names."""
  name, _, where = spec.partition(":")
  if spec == "text8":
    return CharTokenizer(spec, [" ", *_LETTERS])
  if spec == "text8-mdlm":  # MDLM's numbering without its mask row
    return CharTokenizer(spec, [*_MDLM_SPECIALS.split(), *_LETTERS, " "])
  if name == "gpt2":
    return Gpt2Tokenizer(*_find_gpt2(where))
  if name == "sentencepiece" and where:
    return SentencePieceTokenizer(where)
  raise ValueError(f"tokenizer is {spec!r}{errors.nearest(name, SPECS)}")
