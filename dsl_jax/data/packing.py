"""Fixed-length token rows on disk: `SPLIT.bin` beside `SPLIT.json`.

The data file is plain little-endian int32 [N, L]. The manifest beside it
describes what the rows were made from and has the sha256 of the data, of every
16 MiB block of the data, and of the manifest itself. The data file is renamed
into place before its manifest: a split with a manifest is finished, one
without is made from the start.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from dsl_jax.data import characters
from dsl_jax.data.tokenizers import Tokenizer

_HASHED = 1 << 24  # bytes of a block, hashed together
_SAMPLES = 4  # blocks checked by `load`: files up to 64 MiB are checked whole
_TOKENS = 1 << 20  # tokens gathered before rows are written
_DOCUMENTS = 256  # documents encoded together


@dataclasses.dataclass(frozen=True)
class Packed:
  """The rows of one split.

  Attributes:
    tokens_NL: memory map, int32.
    manifest: split, length, rows, vocab_size, wrap, corpus, source, tokenizer
      (its spec), fingerprint, documents, tokens, dropped, text_sha256,
      data_sha256, chunk_sha256 (of the blocks), manifest_sha256.
  """

  tokens_NL: np.ndarray
  manifest: dict


class Origin(NamedTuple):
  """What rows are made from, for the manifest.

  Attributes:
    corpus: `corpora.Corpus.name`.
    source: `corpora.Corpus.source`.
    tokenizer: spec of `tokenizers.load`.
  """

  corpus: str
  source: str
  tokenizer: str


def _is_character(tokenizer: Tokenizer) -> bool:
  """Whether tokens are characters rather than words or parts of words."""
  return isinstance(tokenizer, characters.CharTokenizer)


def _encode_characters(
  documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[np.ndarray]:
  """Yields every document's tokens, with one space between two, never two."""
  last = ""
  for text in documents:
    text = characters.normalize_text8(text)
    if last:
      text = text.removeprefix(" ")
      text = text if last == " " else " " + text
    last = text[-1:] or last
    yield tokenizer.encode(text)


def encode_documents(
  documents: Iterable[str], tokenizer: Tokenizer
) -> Iterator[np.ndarray]:
  """Encodes documents to one stream of tokens, as rows are cut from it.

  Word tokenizers: EOS follows every document. Character tokenizers: the text
  is normalised to their alphabet, with one space between documents.

  Args:
    documents: texts.
    tokenizer: encodes them.

  Yields:
    int32 [n], one array per document.
  """
  if _is_character(tokenizer):
    yield from _encode_characters(documents, tokenizer)
    return
  end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  documents = iter(documents)
  while batch := list(itertools.islice(documents, _DOCUMENTS)):
    for ids in tokenizer.encode_many(batch):
      yield np.append(ids, end).astype(np.int32)


def _paths(directory: str, split: str) -> tuple[str, str]:
  """The data file and the manifest of a split."""
  stem = os.path.join(directory, split)
  return stem + ".bin", stem + ".json"


def _hash_manifest(manifest: dict) -> str:
  """sha256 of everything in a manifest except this hash itself."""
  content = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _load_manifest(directory: str, split: str) -> dict:
  """A manifest that has not been changed since it was written."""
  path = _paths(directory, split)[1]
  if not os.path.isfile(path):
    raise ValueError(
      f"{directory} has no prepared split {split!r}; make it with "
      f"python -m dsl_jax.data.prepare --out={directory}."
    )
  try:
    with open(path, encoding="utf-8") as file:
      manifest = json.load(file)
    intact = manifest["manifest_sha256"] == _hash_manifest(manifest)
  except (ValueError, KeyError, AttributeError, TypeError):
    intact = False
  if not intact:
    raise ValueError(
      f"{path} is damaged or not a manifest of packed rows; delete it and "
      "prepare the split again."
    )
  return manifest


def is_finished(directory: str, split: str) -> bool:
  """Returns whether a split has its manifest; `load` checks the data."""
  return os.path.exists(_paths(directory, split)[1])


def load(directory: str, split: str) -> Packed:
  """Opens the rows of a split and checks that they are what was written.

  Checks the manifest, the size and the hashes of the data: of a file up to
  64 MiB every byte, of a larger one four blocks of 16 MiB from first to last.

  Args:
    directory: where `write` put them.
    split: name of the split.

  Raises:
    ValueError: the split is missing, damaged, truncated or not its manifest's.
  """
  manifest = _load_manifest(directory, split)
  data_path, manifest_path = _paths(directory, split)
  fix = f"delete {data_path} and {manifest_path} and prepare them again."
  shape = manifest["rows"], manifest["length"]
  expected = 4 * shape[0] * shape[1]
  size = os.path.getsize(data_path) if os.path.isfile(data_path) else 0
  if size != expected:
    raise ValueError(
      f"{data_path} has {size} bytes instead of {expected}; {fix}"
    )
  hashes = manifest["chunk_sha256"]
  samples = np.linspace(0, len(hashes) - 1, min(_SAMPLES, len(hashes)))
  with open(data_path, "rb") as file:
    for i in samples.astype(int).tolist():
      file.seek(i * _HASHED)
      if hashlib.sha256(file.read(_HASHED)).hexdigest() != hashes[i]:
        raise ValueError(
          f"{data_path} is not the data that its manifest describes; {fix}"
        )
  return Packed(np.memmap(data_path, "<i4", "r", shape=shape), manifest)


def _check_settings(path: str, manifest: dict, settings: dict) -> None:
  """Rejects finished rows that were made with other settings."""
  for name, value in settings.items():
    if manifest[name] != value:
      raise ValueError(
        f"{path} was prepared with {name}={manifest[name]!r} instead of "
        f"{value!r}; choose another output directory or delete it."
      )


def _check_wrap(
  wrap: bool | None, length: int, tokenizer: Tokenizer, spec: str
) -> bool:
  """Whether rows have markers: by default if a word tokenizer has both."""
  marked = tokenizer.bos_id is not None and tokenizer.eos_id is not None
  if wrap is None:
    wrap = marked and not _is_character(tokenizer)
  if wrap and not marked:
    raise ValueError(
      f"wrap is True but tokenizer {spec!r} has no BOS and EOS; set it False."
    )
  if length < 1 + 2 * wrap:
    raise ValueError(
      f"length is {length}; a row with wrap={wrap} needs at least "
      f"{1 + 2 * wrap} tokens."
    )
  return wrap


class _Counter:
  """Counts and hashes what passes through; every text ends by a zero byte."""

  def __init__(self, progress: Callable[[int], object] | None):
    self._progress = progress or (lambda documents: None)
    self.documents = 0
    self.tokens = 0
    self.text_sha256 = hashlib.sha256()

  def count_documents(self, documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
      self.text_sha256.update(text.encode("utf-8", "surrogatepass") + b"\0")
      self.documents += 1
      self._progress(1)
      yield text

  def count_tokens(self, arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for ids in arrays:
      self.tokens += ids.size
      yield ids


def _cut_rows(arrays: Iterable[np.ndarray], inner: int) -> Iterator[np.ndarray]:
  """Yields whole rows of `inner` tokens, many at a time; drops the rest."""
  buffer, size = [np.zeros(0, np.int32)], 0
  for ids in arrays:
    buffer.append(ids)
    size += ids.size
    if size >= max(_TOKENS, inner):
      tokens = np.concatenate(buffer)
      edge = size // inner * inner
      yield tokens[:edge].reshape(-1, inner)
      buffer, size = [tokens[edge:]], size - edge
  yield np.concatenate(buffer)[: size // inner * inner].reshape(-1, inner)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
  """A file that takes its name only when it is complete and on disk."""
  partial = path + ".partial"
  with open(partial, "wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def _hash_data(path: str) -> tuple[str, list[str]]:
  """sha256 of a whole file and of each of its blocks."""
  whole, blocks = hashlib.sha256(), []
  with open(path, "rb") as file:
    while block := file.read(_HASHED):
      whole.update(block)
      blocks.append(hashlib.sha256(block).hexdigest())
  return whole.hexdigest(), blocks


def write(
  directory: str,
  split: str,
  documents: Iterable[str],
  tokenizer: Tokenizer,
  *,
  length: int,
  origin: Origin,
  wrap: bool | None = None,
  progress: Callable[[int], object] | None = None,
) -> Packed:
  """Tokenises and packs one split, unless that has been done already.

  The tokens of `encode_documents` are cut into rows of `length` tokens, or
  with `wrap` into `length - 2` between BOS and EOS. The tokens of the last,
  incomplete row are dropped; the manifest has their number.

  Args:
    directory: an existing directory for the two files.
    split: name of the split, and of the files.
    documents: texts.
    tokenizer: encodes them.
    length: tokens in a row, L.
    origin: where documents and tokenizer come from.
    wrap: by default, whether it is a word tokenizer with BOS and EOS.
    progress: called with 1 after every document read.

  Returns:
    The rows, loaded.

  Raises:
    ValueError: the split exists with other settings or damaged, the text is
      too short for one row, or length or wrap is invalid.
  """
  wrap = _check_wrap(wrap, length, tokenizer, origin.tokenizer)
  settings = {
    "split": split,
    "length": length,
    "wrap": wrap,
    "vocab_size": tokenizer.vocab_size,
    "fingerprint": tokenizer.fingerprint,
    "corpus": origin.corpus,
    "source": origin.source,
  }
  data_path, manifest_path = _paths(directory, split)
  if is_finished(directory, split):
    packed = load(directory, split)
    _check_settings(manifest_path, packed.manifest, settings)
    return packed
  counter = _Counter(progress)
  texts = counter.count_documents(documents)
  tokens = counter.count_tokens(encode_documents(texts, tokenizer))
  inner = length - 2 * wrap
  rows = 0
  with _replacing(data_path) as file:
    for rows_NL in _cut_rows(tokens, inner):
      rows += len(rows_NL)
      if wrap:
        markers: list = [(0, 0), (tokenizer.bos_id, tokenizer.eos_id)]
        rows_NL = np.pad(rows_NL, [(0, 0), (1, 1)], constant_values=markers)
      file.write(rows_NL.astype("<i4").tobytes())
    if not rows:
      raise ValueError(
        f"length is {length} but split {split!r} of corpus {origin.corpus!r} "
        f"has only {counter.tokens} tokens; lower it or use more text."
      )
  data_sha256, chunk_sha256 = _hash_data(data_path)
  manifest = settings | {
    "tokenizer": origin.tokenizer,
    "rows": rows,
    "documents": counter.documents,
    "tokens": counter.tokens,
    "dropped": counter.tokens - rows * inner,
    "text_sha256": counter.text_sha256.hexdigest(),
    "data_sha256": data_sha256,
    "chunk_sha256": chunk_sha256,
  }
  manifest["manifest_sha256"] = _hash_manifest(manifest)
  with _replacing(manifest_path) as file:
    file.write(json.dumps(manifest, indent=1).encode())
  return load(directory, split)
