"""Tokenizers by spec: characters, bytes, BPE, SentencePiece, Hugging Face's.

A marker such as <|endoftext|>, </s> or [EOS] in a text is the marker's id, and
decoding writes it: texts with markers come back as the ids that they were. The
space before a word is that of the text, except at its start, where many models
put one themselves: ids that begin inside a word come back as those of a word.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dsl_jax.runtime import errors, storage

SPECS = (
  "text8",
  "text8-mdlm",
  "bytes",
  "gpt2",
  "gpt2:DIR",
  "sentencepiece:FILE",
  "sentencepiece-train:PIECES",
  "hf:NAME_OR_DIR",
)
_GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_GPT2_VOCAB = 50257
_SENTENCEPIECE_FILE = "tokenizer.model"  # in a folder
# Appended to a SentencePiece model, a protocol buffer, it turns off two of its
# rules: a space put before a text, and those removed at its ends.
_INSIDE = b"\x1a\x04\x18\0\x20\0"
_SPACE = "\u2581"  # as SentencePiece writes it
_WORD = r"(?<=\S)(?=[ \n])"  # GPT-2 always begins a word before a first space
_ENCODED = 1_000_000  # characters encoded at a time: bounds the BPE's memory
_SENTENCES = 20_000  # that a vocabulary is trained on
# SentencePiece drops longer sentences than 4,192 bytes without a word.
_SENTENCE = re.compile(r"(?s).{1,1000}(?=\s)|.{1,1000}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = "zero one two three four five six seven eight nine"
_DIGITS = {ord("0") + n: f" {word} " for n, word in enumerate(_WORDS.split())}
_SPELLED = str.maketrans(_LETTERS.upper(), _LETTERS) | _DIGITS
# Names of markers in tokenizer.json files, the first that is there.
_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "[CLS]", "<|endoftext|>")
_EOS = ("<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]", "<|endoftext|>")
_HF_FIX = "give a directory or file with a tokenizer.json, or a name online."
_UNK = ("[UNK]", "<unk>", "<|unk|>")
_PAD = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
_MDLM_SPECIALS = "[CLS] [SEP] [BOS] [EOS] [PAD] [RESERVED] [UNK]"


class Tokenizer(Protocol):
  """Text to ids and back."""

  name: str  # the kind of tokenizer
  vocab_size: int  # ids are 0..vocab_size-1
  bos_id: int | None  # row markers, if it has them
  eos_id: int | None
  unk_id: int | None  # of what the vocabulary does not have
  pad_id: int | None = None  # padding of rows, which otherwise is EOS
  fingerprint: str  # sha256 of the vocabulary, not of its files
  files: dict[str, bytes]  # what `load` reads from a folder, NAME:FOLDER

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], with the markers in the text and no others."""

  def encode_inside(self, text: str, first=False, last=False) -> np.ndarray:
    """Encodes a part of a text: no space is put or lost where it goes on."""
    return self.encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes every text, in parallel where the library can."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids, markers included."""


class _MarkedTokenizer(Tokenizer):
  """Finds markers in texts and in ids; encodes and decodes what is between."""

  # Of what is between markers; whether it is first and last in the text.
  _encode: Callable[[str, bool, bool], Any]
  _decode: Callable[[list[int], bool, bool], str]

  def _mark(self, markers: Mapping[str, int]) -> None:
    """Sets the markers and their ids."""
    self._markers = markers
    self._name_of = {token: name for name, token in markers.items()}
    names = map(re.escape, sorted(markers, key=len, reverse=True))
    self._pattern = re.compile(f"({'|'.join(names) or '(?!)'})")

  def encode(self, text: str) -> np.ndarray:
    return self.encode_inside(text, first=True, last=True)

  def encode_inside(self, text: str, first=False, last=False) -> np.ndarray:
    words, parts = self._pattern.split(text), []
    for n, word in enumerate(words):
      if n % 2:
        parts.append([self._markers[word]])
      elif word:
        ends = first and n == 0, last and n == len(words) - 1
        parts.append(self._encode(word, *ends))
    return np.array(list(itertools.chain(*parts)), np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    marks = itertools.groupby(np.asarray(ids).tolist(), self._name_of.get)
    groups, text = [(name, list(group)) for name, group in marks], ""
    for n, (name, group) in enumerate(groups):
      ends = n == 0, n == len(groups) - 1
      text += name * len(group) if name else self._decode(group, *ends)
    return text


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


class CharTokenizer(_MarkedTokenizer):
  """One id per character, and names of more than one for special ids."""

  def __init__(self, name: str, symbols: Sequence[str]):
    self.name = name
    self.files: dict[str, bytes] = {}
    self.vocab_size = len(symbols)
    markers = {x: i for i, x in enumerate(symbols) if len(x) > 1}
    self._mark(markers)
    self.bos_id, self.eos_id, self.pad_id = map(
      markers.get, ("[BOS]", "[EOS]", "[PAD]")
    )
    self.unk_id: int | None = None
    listing = "\n".join(symbols)
    self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    self._symbols = np.array(symbols, object)
    self._id_of = np.full(256, -1, np.int32)
    for token, symbol in enumerate(symbols):
      if len(symbol) == 1:
        self._id_of[ord(symbol)] = token

  def normalize(self, text: str) -> str:
    """Maps all but the markers of a text onto the alphabet, if it leaves it."""
    words = self._pattern.split(text)
    if re.search("[^a-z ]", "".join(words[::2])):
      words[::2] = map(normalize_text8, words[::2])
    return "".join(words)

  def _encode(self, text, *_):
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    tokens = self._id_of[np.minimum(codes, 255)]
    if tokens.size and tokens.min() < 0:
      position = int(np.argmax(tokens < 0))
      raise ValueError(
        f"text has {text[position]!r} at position {position}, outside the "
        f"alphabet of tokenizer {self.name!r}; apply normalize_text8 first."
      )
    return tokens

  def _decode(self, ids, *_):
    ids = np.asarray(ids, np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
      raise ValueError(
        f"ids are in {ids.min()}..{ids.max()} but tokenizer {self.name!r} "
        f"has 0..{self.vocab_size - 1}; use the tokenizer that made them."
      )
    return "".join(self._symbols[ids])


class LibraryTokenizer(Tokenizer):
  """A model of the package tokenizers, with the markers its names tell.

  The vocabulary has the size of the model's, tokens added to it included.
  """

  def __init__(
    self, name: str, model, facts: str, files: dict[str, bytes], inside=None
  ):
    vocab = model.get_vocab(with_added_tokens=True)
    self.name, self.files, self._model = name, files, model
    self._inside = inside or model  # which puts no space before a text
    self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    self.vocab_size = max(vocab.values()) + 1
    self.bos_id, self.eos_id, self.unk_id, self.pad_id = (
      next((vocab[x] for x in names if x in vocab), None)
      for names in (_BOS, _EOS, _UNK, _PAD)
    )
    marks = {self.bos_id, self.eos_id, self.unk_id} - {None}
    for one in (self._model, self._inside):
      one.add_special_tokens([model.id_to_token(x) for x in marks])
    added = [x.content for x in model.get_added_tokens_decoder().values()]
    self._marker = re.compile("|".join(map(re.escape, added)) or "(?!)")

  def _encode(self, texts):
    """Encodes texts up to the first marker, and from there as inside."""
    heads = [self._marker.split(text, 1)[0] for text in texts]
    rests = [text[len(head) :] for text, head in zip(texts, heads)]
    pairs = zip(
      self._model.encode_batch_fast(heads, add_special_tokens=False),
      self._inside.encode_batch_fast(rests, add_special_tokens=False),
    )
    return [np.array(head.ids + rest.ids, np.int32) for head, rest in pairs]

  def encode(self, text: str) -> np.ndarray:
    # Only BPE of bytes is known to encode parts as it does the whole.
    parts = cut(text, _ENCODED, _WORD) if self.name == "gpt2" else [text]
    return np.concatenate([self._encode([part])[0] for part in parts])

  def encode_inside(self, text: str, first=False, last=False) -> np.ndarray:
    model = self._model if first else self._inside
    return np.array(model.encode(text, add_special_tokens=False).ids, np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    if max(map(len, texts), default=0) > _ENCODED:
      return [self.encode(text) for text in texts]
    return self._encode(texts)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    ids = np.asarray(ids).tolist()
    first, text = (
      self._model.decode(x, skip_special_tokens=False) for x in (ids[:1], ids)
    )
    return text if first or not ids else f" {text}"  # decoders drop a space


def _load_gpt2(vocab_path: str, merges_path: str) -> LibraryTokenizer:
  """GPT-2's byte-level BPE from its tables."""
  library = errors.require("tokenizers", "data")
  tables = f"{vocab_path} and {merges_path}"
  with errors.reading(tables, "use the directory of GPT-2's own files."):
    text = library.ByteLevelBPETokenizer(vocab_path, merges_path).to_str()
    model = library.Tokenizer.from_str(text)
    model.add_special_tokens(["<|endoftext|>"])
    facts = json.loads(text)["model"]
    vocab, merges = facts["vocab"], facts["merges"]
    if sorted(vocab.values()) != list(range(_GPT2_VOCAB)):
      raise ValueError(f"{len(vocab)} ids instead of {_GPT2_VOCAB}")
    contents = (
      storage.to_path(x).read_bytes() for x in (vocab_path, merges_path)
    )
    files = dict(zip(_GPT2_FILES[0], contents))
  content = json.dumps([sorted(vocab, key=vocab.get), merges])
  return LibraryTokenizer("gpt2", model, content, files)


def _find_gpt2(directory: str) -> list[str]:
  """GPT-2's two tables in a directory, or from the Hugging Face hub for ""."""
  if not directory:
    hub = errors.require("huggingface_hub", "data")
    fix = "check the connection, or give a local copy as gpt2:DIR."
    with errors.reading("the tokenizer gpt2 of the Hugging Face hub", fix):
      return [hub.hf_hub_download("gpt2", name) for name in _GPT2_FILES[0]]
  for names in _GPT2_FILES:
    paths = [storage.to_path(directory) / name for name in names]
    if all(path.is_file() for path in paths):
      return [str(storage.local(path)) for path in paths]
  raise ValueError(
    f"tokenizer is 'gpt2:{directory}' but that directory has no tables; put "
    "vocab.json and merges.txt there."
  )


class SentencePieceTokenizer(_MarkedTokenizer):
  def __init__(self, path: str):
    library = errors.require("sentencepiece", "data")
    file = storage.to_path(path)
    if file.is_dir():
      file /= _SENTENCEPIECE_FILE
    with errors.reading(path, "prepare the rows, or train it with spm_train."):
      content = file.read_bytes()
      if not content:  # the library accepts it as a model not loaded yet
        raise RuntimeError("it is empty")
      self._model = library.SentencePieceProcessor(model_proto=content)
    self.name = "sentencepiece"
    self.files = {_SENTENCEPIECE_FILE: content}
    self.vocab_size = self._model.vocab_size()
    model, ids = self._model, range(self.vocab_size)
    markers = model.bos_id(), model.eos_id(), model.pad_id()  # -1 if none
    self.bos_id, self.eos_id, self.pad_id = (
      None if x < 0 else x for x in markers
    )
    self.unk_id: int | None = model.unk_id()
    marks = [x for x in ids if model.is_control(x) or model.is_unknown(x)]
    self._mark({model.id_to_piece(x): x for x in marks})
    self._inside = library.SentencePieceProcessor(model_proto=content + _INSIDE)
    # Some put the space after a text; white space is part of the word before.
    self.is_suffix = model.encode("a", out_type=str)[-1].endswith(_SPACE)
    self.fingerprint = hashlib.sha256(content).hexdigest()

  def _encode(self, text, first, last):
    """Applies the model's rules at an end of a text, and only there."""
    inside = self._inside.encode
    if not (last if self.is_suffix else first):
      return inside(text)
    start = 0 if first else len(text) - len(text.lstrip(" "))
    stop = len(text) if last else len(text.rstrip(" "))
    body = self._model.encode(text[start:stop])
    return inside(text[:start]) + body + inside(text[stop:])

  def _decode(self, ids, first, last):
    is_end = last if self.is_suffix else first
    return (is_end and self._model.decode(ids)) or self._inside.decode(ids)


class ByteTokenizer(_MarkedTokenizer):
  """UTF-8 bytes, and one marker before and after a row."""

  name = "bytes"
  vocab_size = 257
  bos_id = eos_id = 256
  unk_id = None
  fingerprint = hashlib.sha256(b"bytes and <|endoftext|>").hexdigest()

  def __init__(self):
    self.files: dict[str, bytes] = {}
    self._mark({"<|endoftext|>": 256})

  def _encode(self, text, *_):
    return list(text.encode())

  def _decode(self, ids, *_):
    return bytes(ids).decode(errors="replace")


def _unspaced(node: dict) -> dict:
  """Turns off the part of a tokenizer.json that puts a space before a text."""
  off: dict[str, dict] = {
    "Metaspace": {"prepend_scheme": "never"},
    "Prepend": {"prepend": ""},
    "ByteLevel": {"add_prefix_space": False},
  }
  return node | off.get(str(node.get("type")), {})


def _load_hf(where: str) -> LibraryTokenizer:
  """A tokenizer.json: a file, in a directory, or of a name on the hub."""
  library = errors.require("tokenizers", "data")
  path = storage.to_path(where)
  if path.is_dir():
    path /= "tokenizer.json"
  with errors.reading(f"the tokenizer hf:{where}", _HF_FIX):
    if not (path.exists() or path.suffix == ".json"):
      hub = errors.require("huggingface_hub", "data")
      path = storage.to_path(hub.hf_hub_download(where, "tokenizer.json"))
    content = path.read_text("utf-8")
    model, inside = (
      library.Tokenizer.from_str(x)
      for x in (content, json.dumps(json.loads(content, object_hook=_unspaced)))
    )
    for one in (model, inside):
      one.no_padding()
      one.no_truncation()
    facts = json.dumps(json.loads(content), sort_keys=True)
  files = {"tokenizer.json": content.encode()}
  return LibraryTokenizer("hf", model, facts, files, inside)


def trained_file(spec: str, folder: str) -> str:
  """Returns the file of a vocabulary that is to be trained, otherwise ""."""
  name, _, pieces = spec.partition(":")
  path = f"{folder}/sentencepiece-{pieces}.model"
  return path if name == "sentencepiece-train" and pieces else ""


def train(documents: Iterable[str], spec: str) -> bytes:
  """Trains a SentencePiece model; the same documents give the same bytes.

  It restores every text (U+2581 as a space): rare characters become bytes.
  Uses the first 20,000 pieces of at most 1,000 characters.
  """
  library, model = errors.require("sentencepiece", "data"), io.BytesIO()
  sentences = itertools.chain.from_iterable(map(_SENTENCE.findall, documents))
  try:
    library.SentencePieceTrainer.train(
      sentence_iterator=itertools.islice(sentences, _SENTENCES),
      model_writer=model,
      vocab_size=int(spec.partition(":")[2]),
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      num_threads=16,  # not that of the machine, which would change the result
      minloglevel=2,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).rpartition("] ")[2].rstrip(". ")
    raise ValueError(
      f"tokenizer is {spec!r} but no such vocabulary can be made of this text "
      f"({reason}); choose another number of pieces, 256 of which are bytes."
    ) from error
  return model.getvalue()


def pieces(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
  """Returns the text of each id inside a text, with the space of a word."""
  word = tokenizer.encode("a").tolist()  # decoders drop a space at an end
  size = len(tokenizer.decode(word))
  if getattr(tokenizer, "is_suffix", False):
    return [tokenizer.decode([int(x), *word])[:-size] for x in ids]
  return [tokenizer.decode([*word, int(x)])[size:] for x in ids]


def readable(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
  """Returns the text without BOS and EOS: a blank line is between documents."""
  markers, parts = (tokenizer.bos_id, tokenizer.eos_id), []
  groups = itertools.groupby(np.asarray(ids).tolist(), markers.__contains__)
  for is_marker, group in groups:
    if not is_marker:
      parts.append(tokenizer.decode(list(group)).strip())
  return "\n\n".join(filter(None, parts))


def load(spec: str, folder: str = "") -> Tokenizer:
  """Makes the tokenizer of a spec of `SPECS`, with its `trained_file`."""
  name, _, where = spec.partition(":")
  if spec == "text8":
    return CharTokenizer(spec, [" ", *_LETTERS])
  if spec == "text8-mdlm":  # MDLM's numbering without its mask row
    return CharTokenizer(spec, [*_MDLM_SPECIALS.split(), *_LETTERS, " "])
  if name == "gpt2":
    return _load_gpt2(*_find_gpt2(where))
  if name == "sentencepiece" and where:
    return SentencePieceTokenizer(where)
  if path := trained_file(spec, folder):
    return SentencePieceTokenizer(path)
  if name == "hf" and where:
    return _load_hf(where)
  if spec == "bytes":
    return ByteTokenizer()
  raise ValueError(f"tokenizer is {spec!r}{errors.nearest(name, SPECS)}")
