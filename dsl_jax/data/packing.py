"""Fixed-length token rows on disk: `SPLIT.bin` beside `SPLIT.json`.

The data file is plain little-endian int32 [N, L]. The manifest beside it says
what the rows were made from and carries the sha256 of the data, of every
16 MiB chunk of the data, and of the manifest itself. The data file is renamed
into place before its manifest: a split with a manifest is finished, one
without is made from the start.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from dsl_jax.data import streams
from dsl_jax.data.tokenizers import Tokenizer

_CHUNK = 1 << 24  # bytes hashed together
_SAMPLES = 4  # chunks checked by `load`: files up to 64 MiB are checked whole
_TOKENS = 1 << 20  # tokens gathered before rows are written


@dataclasses.dataclass(frozen=True)
class Packed:
  """The rows of one split.

  Attributes:
    tokens_NL: memory map, int32.
    manifest: split, length, rows, vocab_size, wrap, corpus, source, tokenizer
      (its spec), fingerprint, documents, tokens, dropped, text_sha256,
      data_sha256, chunk_sha256, manifest_sha256.
  """

  tokens_NL: np.ndarray
  manifest: dict


def write(
  directory: str,
  split: str,
  documents: Iterable[str],
  tokenizer: Tokenizer,
  *,
  length: int,
  corpus: str,
  source: str,
  spec: str,
  wrap: bool | None = None,
  progress: Callable[[int], object] = lambda documents: None,
) -> Packed:
  """Tokenises and packs one split, unless that has been done already.

  The stream of tokens (`streams.TokenStream`) is cut into rows of `length`
  tokens, or with `wrap` into `length - 2` between BOS and EOS. The tokens of
  the last, incomplete row are dropped; the manifest says how many.

  Args:
    directory: an existing directory for the two files.
    split: name of the split, and of the files.
    documents: texts.
    tokenizer: makes the tokens.
    length: tokens in a row, L.
    corpus: the kind of corpus.
    source: what the documents were read from.
    spec: what `tokenizers.load` made the tokenizer of.
    wrap: by default, whether the tokenizer makes words and has BOS and EOS.
    progress: called with 1 after every document read.

  Returns:
    The rows, loaded.

  Raises:
    ValueError: a manifest of other settings is there, its data are damaged,
      the text is too short for one row, or length or wrap cannot be met.
  """
  marked = tokenizer.bos_id is not None and tokenizer.eos_id is not None
  wrap = streams.is_words(tokenizer) and marked if wrap is None else wrap
  if wrap and not marked:
    raise ValueError(
      f"wrap is True but tokenizer {spec!r} has no BOS and EOS; set it False."
    )
  if length < 1 + 2 * wrap:
    raise ValueError(
      f"length is {length}; a row with wrap={wrap} needs at least "
      f"{1 + 2 * wrap} tokens."
    )
  settings = {
    "split": split,
    "length": length,
    "wrap": wrap,
    "vocab_size": tokenizer.vocab_size,
    "fingerprint": tokenizer.fingerprint,
    "corpus": corpus,
    "source": source,
  }
  data_path, manifest_path = _paths(directory, split)
  if is_finished(directory, split):
    packed = load(directory, split)
    _check_same(manifest_path, packed.manifest, settings)
    return packed
  stream = streams.TokenStream(documents, tokenizer, progress)
  inner = length - 2 * wrap
  with _replacing(data_path) as file:
    rows = 0
    for block_NL in _blocks(stream, inner):
      rows += len(block_NL)
      if wrap:
        edge_N1 = np.ones((len(block_NL), 1), np.int32)
        block_NL = np.concatenate(
          [tokenizer.bos_id * edge_N1, block_NL, tokenizer.eos_id * edge_N1], 1
        )
      file.write(block_NL.astype("<i4").tobytes())
    if not rows:
      raise ValueError(
        f"length is {length} but split {split!r} of corpus {corpus!r} has only "
        f"{stream.tokens} tokens; lower it or bring more text."
      )
  whole, chunks = _hash_data(data_path)
  manifest = settings | {
    "tokenizer": spec,
    "rows": rows,
    "documents": stream.documents,
    "tokens": stream.tokens,
    "dropped": stream.tokens - rows * inner,
    "text_sha256": stream.digest.hexdigest(),
    "data_sha256": whole,
    "chunk_sha256": chunks,
  }
  manifest["manifest_sha256"] = _hash_manifest(manifest)
  with _replacing(manifest_path) as file:
    file.write(json.dumps(manifest, indent=1).encode())
  return load(directory, split)


def is_finished(directory: str, split: str) -> bool:
  """Returns whether a split has its manifest; `load` checks the data."""
  return os.path.exists(_paths(directory, split)[1])


def load(directory: str, split: str, *, verify: bool = False) -> Packed:
  """Opens the rows of a split and checks that they are what was written.

  Checked are the manifest, the size and the data's hashes: of a file up to
  64 MiB every byte, of a larger one four chunks of 16 MiB from first to last.

  Args:
    directory: where `write` put them.
    split: name of the split.
    verify: read and check every byte of a large file too.

  Raises:
    ValueError: the split is missing, damaged, cut short or foreign.
  """
  data_path, manifest_path = _paths(directory, split)
  manifest = _read_manifest(manifest_path, directory, split)
  shape = manifest["rows"], manifest["length"]
  mend = f"delete {data_path} and {manifest_path} and prepare them again."
  size = os.path.getsize(data_path) if os.path.isfile(data_path) else 0
  if size != 4 * shape[0] * shape[1]:
    raise ValueError(
      f"{data_path} has {size} bytes instead of {4 * shape[0] * shape[1]}; "
      f"{mend}"
    )
  expected = manifest["chunk_sha256"]
  wanted = range(len(expected))
  if not verify and len(expected) > _SAMPLES:
    wanted = np.linspace(0, len(expected) - 1, _SAMPLES).astype(int).tolist()
  with open(data_path, "rb") as file:
    for i in wanted:
      file.seek(i * _CHUNK)
      if hashlib.sha256(file.read(_CHUNK)).hexdigest() != expected[i]:
        raise ValueError(
          f"{data_path} is not the data its manifest was written for; {mend}"
        )
  return Packed(np.memmap(data_path, "<i4", "r", shape=shape), manifest)


def _blocks(ids: Iterable[np.ndarray], inner: int) -> Iterator[np.ndarray]:
  """Whole rows of `inner` tokens, many at a time; an incomplete one is left."""
  held, size = [np.zeros(0, np.int32)], 0
  for piece in ids:
    held.append(piece)
    size += piece.size
    if size >= max(_TOKENS, inner):
      run = np.concatenate(held)
      edge = size // inner * inner
      yield run[:edge].reshape(-1, inner)
      held, size = [run[edge:]], size - edge
  run = np.concatenate(held)
  yield run[: size // inner * inner].reshape(-1, inner)


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
  """A file that takes its name only when it is complete and on disk."""
  partial = path + ".partial"
  with open(partial, "wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def _paths(directory: str, split: str) -> tuple[str, str]:
  """The data file and the manifest of a split."""
  stem = os.path.join(directory, split)
  return stem + ".bin", stem + ".json"


def _hash_data(path: str) -> tuple[str, list[str]]:
  """sha256 of a whole file and of each of its chunks."""
  whole, chunks = hashlib.sha256(), []
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      whole.update(chunk)
      chunks.append(hashlib.sha256(chunk).hexdigest())
  return whole.hexdigest(), chunks


def _hash_manifest(manifest: dict) -> str:
  """sha256 of everything in a manifest but this hash itself."""
  content = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(path: str, directory: str, split: str) -> dict:
  """A manifest that has not been touched since it was written."""
  if not os.path.isfile(path):
    raise ValueError(
      f"{directory} has no prepared split {split!r}; make it with "
      f"python -m dsl_jax.data.prepare --out={directory}."
    )
  try:
    with open(path, encoding="utf-8") as file:
      manifest = json.load(file)
    whole = manifest["manifest_sha256"] == _hash_manifest(manifest)
  except (ValueError, KeyError, AttributeError, TypeError):
    whole = False
  if not whole:
    raise ValueError(
      f"{path} is damaged or no manifest of packed rows; delete it and prepare "
      "the split again."
    )
  return manifest


def _check_same(path: str, found: dict, wanted: dict) -> None:
  """Refuses to take rows of other settings for the ones asked for."""
  for name, value in wanted.items():
    if found[name] != value:
      raise ValueError(
        f"{path} was prepared with {name}={found[name]!r} and not {value!r}; "
        "choose another output directory or delete it."
      )
