"""Fixed-length token rows on disk: `SPLIT.bin` and `SPLIT.json`.

The data file is little-endian int32 [N, L]. The manifest, which is written
last, tells what the rows were made from and has the sha256 of the data, of
every 16 MiB block of them, and of itself.
"""

import collections
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsl_jax.data import tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

_HASHED = 1 << 24  # bytes of a block, hashed together
_SAMPLES = 4  # blocks checked by `load`: files up to 64 MiB are checked whole
_TOKENS = 1 << 20  # tokens gathered before rows are written
_DOCUMENTS = 256  # documents encoded together
_TEXTS = "split fingerprint corpus source tokenizer data_sha256 manifest_sha256"
_COUNTS = "length vocab_size rows documents tokens dropped"
_NEW_COUNTS = "unknown characters bytes"  # earlier versions have none
_FACTS = {"wrap": bool, "pad": bool, "chunk_sha256": list}  # and their types
_FACTS |= dict.fromkeys(_TEXTS.split(), str)
# What earlier versions did not write; padded rows have the eos_id of `scored`.
_NEW_FACTS = {"detokenizer": "none", "pad": False, "eos_id": None}


class Packed(NamedTuple):
  """The rows of one split."""

  tokens_NL: np.ndarray  # int32, a memory map
  manifest: Mapping[str, Any]

  @property
  def eos_id(self) -> int | None:
    """EOS of padded rows, otherwise None; see `scored`."""
    return self.manifest.get("eos_id")

  def count_scored(self) -> np.ndarray:
    """Returns how many tokens of every row count, [N]."""
    return scored(self.tokens_NL, self.eos_id).sum(axis=1)


class Origin(NamedTuple):
  """What rows are made from, for the manifest."""

  corpus: str  # `corpora.Corpus.name`
  source: str  # `corpora.Corpus.source`
  tokenizer: str  # spec of `tokenizers.load`
  detokenizer: str = "none"  # name of `detokenizers.make`


def encode_documents(
  documents: Iterable[str], tokenizer: tokenizers.Tokenizer, pad: bool = False
) -> Iterator[np.ndarray]:
  """Yields int32 [n] per document: the stream of tokens that rows are cut from.

  Words: EOS follows every document, or a space if there is no EOS. Characters:
  the text is normalised to the alphabet, with one space between documents. With
  `pad` nothing is put between documents.
  """
  if isinstance(tokenizer, tokenizers.CharTokenizer):
    last = ""
    for text in documents:
      text = tokenizer.normalize(text)
      if last and not pad:
        text = text.removeprefix(" ")
        text = text if last == " " else " " + text
      last = text[-1:] or last
      yield tokenizer.encode(text)
    return
  end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  if not end:  # many models put a space themselves
    twice = tokenizer.decode(np.tile(tokenizer.encode("a"), 2))
    end = tokenizer.encode_inside(" ").tolist() if twice == "aa" else []
  documents = iter(documents)
  while batch := list(itertools.islice(documents, _DOCUMENTS)):
    for ids in tokenizer.encode_many(batch):
      yield ids if pad else np.append(ids, end).astype(np.int32)


def count_documents(
  documents: Iterable[str],
  tokenizer: tokenizers.Tokenizer,
  counts: collections.Counter,
  pad: bool = False,
) -> Iterator[np.ndarray]:
  """Yields what `encode_documents` does, and counts.

  Adds documents, tokens, unknown tokens, and the characters and bytes of the
  source; to a character tokenizer the source is the normalised text.
  """

  def source():
    for text in documents:
      size = len(text.encode("utf-8", "surrogatepass"))
      counts.update(characters=len(text), bytes=size)
      yield text

  unknown = getattr(tokenizer, "unk_id", None)
  for ids in encode_documents(source(), tokenizer, pad):
    counts.update(documents=1, tokens=ids.size, unknown=0)
    if unknown is not None:
      counts.update(unknown=int((ids == unknown).sum()))
    yield ids
  if isinstance(tokenizer, tokenizers.CharTokenizer):
    counts["characters"] = counts["bytes"] = counts["tokens"]


def add_markers(
  rows_NL: np.ndarray, tokenizer: tokenizers.Tokenizer
) -> np.ndarray:
  """Puts BOS before and EOS after every row, as `wrap` does."""
  markers: list = [(0, 0), (tokenizer.bos_id, tokenizer.eos_id)]
  return np.pad(rows_NL, [(0, 0), (1, 1)], constant_values=markers)


def scored(tokens_BL: Any, eos_id: int | None) -> Any:
  """Returns where tokens count, bool [B, L]: before the padding of a row.

  Padding is the run of equal tokens at the end of a row, without its first one
  if that is EOS. Rows without `eos_id` have none. Takes and returns arrays of
  NumPy or JAX.
  """
  if eos_id is None:
    return np.ones(tokens_BL.shape, bool)
  place_1L = np.arange(1, tokens_BL.shape[1] + 1, dtype=np.int32)[None]
  last_B1 = tokens_BL[:, -1:]
  place_BL = (tokens_BL != last_B1).astype(np.int32) * place_1L
  size_B1 = place_BL.max(axis=1, keepdims=True, initial=1)
  return size_B1 + (last_B1 == eos_id).astype(np.int32) >= place_1L


def _hash_manifest(manifest: dict) -> str:
  """sha256 of everything in a manifest except this hash itself."""
  facts = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
  return storage.digest(facts)


def _hash(data: memoryview, block: int) -> str:
  """sha256 of a block of a data file."""
  first = block * _HASHED
  return hashlib.sha256(data[first : first + _HASHED]).hexdigest()


def is_finished(directory: str, split: str) -> bool:
  """Returns whether a split has its manifest; `load` checks the data."""
  return (storage.to_path(directory) / f"{split}.json").exists()


def _check_facts(manifest: dict) -> None:
  """Raises ValueError unless facts have their types and counts agree."""
  pad = manifest["pad"]
  kinds = _FACTS | {"eos_id": int if pad else type(None)}
  for name, kind in kinds.items():
    if type(manifest.get(name)) is not kind:
      raise ValueError(f"{name} is not of type {kind.__name__}")
  for name in f"{_COUNTS} {_NEW_COUNTS}".split():
    count = manifest.get(name, 0 if name in _NEW_COUNTS else None)
    if type(count) is not int or count < 0:
      raise ValueError(f"{name} is not a count")
  N, kept = manifest["rows"], manifest["tokens"] - manifest["dropped"]
  most = N * (manifest["length"] - 2 * (manifest["wrap"] or pad))
  if not (N if pad else most) <= kept <= most:
    raise ValueError("tokens is not the sum of those in rows and dropped ones")


def _check_rows(data: np.ndarray, manifest: dict) -> None:
  """Raises ValueError unless data, bytes, are the rows of the manifest."""
  _check_facts(_NEW_FACTS | manifest)
  hashes, N, L = (manifest[x] for x in ("chunk_sha256", "rows", "length"))
  intact = manifest["manifest_sha256"] == _hash_manifest(manifest)
  intact = intact and data.size == 4 * N * L > 0
  if not intact or len(hashes) != -(-data.size // _HASHED):
    raise ValueError("damaged, or of other rows")
  for i in {*np.linspace(0, len(hashes) - 1, _SAMPLES, dtype=int).tolist()}:
    ids = data[i * _HASHED : (i + 1) * _HASHED].view("<u4")
    if _hash(data.data, i) != hashes[i]:
      raise ValueError("damaged, or of other rows")
    if ids.max() >= manifest["vocab_size"]:  # a negative one is large here
      raise ValueError("an id outside the vocabulary")


def load(directory: str, split: str) -> Packed:
  """Opens the rows of a split and checks that they are what was written.

  Checks every byte of files up to 64 MiB, and four blocks of larger ones.
  """
  stem = os.path.join(directory, split)
  if not is_finished(directory, split):
    raise ValueError(
      f"{directory} has no prepared split {split!r}; make it with "
      f"python -m dsl_jax.data.prepare --out={directory}."
    )
  fix = "delete both and prepare them again."
  with errors.reading(f"{stem}.json or {stem}.bin", fix):
    manifest = storage.read_json(f"{stem}.json", fix)
    data = np.memmap(storage.local(f"{stem}.bin"), np.uint8, "r")
    _check_rows(data, manifest)
  rows_NL = data.view("<i4").reshape(-1, manifest["length"])
  return Packed(rows_NL, _NEW_FACTS | manifest)


def _check_markers(data, tokenizer):
  """Rejects rows that cannot have their markers."""
  key, markers = "pad" if data.pad else "wrap", data.length - data.inner
  if markers and None in (tokenizer.bos_id, tokenizer.eos_id):
    raise ValueError(
      f"{key} is True but tokenizer {tokenizer.name!r} has no BOS and EOS; "
      "set it False."
    )
  if data.inner < 1:
    raise ValueError(f"length is {data.length}; {key}=True needs at least 3.")


def _cut_rows(arrays: Iterable[np.ndarray], inner: int) -> Iterator[np.ndarray]:
  """Yields whole rows of `inner` tokens."""
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


def make_rows(
  arrays: Iterable, tokenizer: tokenizers.Tokenizer, data: config_lib.Data
) -> Iterator[np.ndarray]:
  """Yields rows [N, L] of what `encode_documents` yields.

  With `data.pad` a document is a row: BOS, as many tokens as fit, EOS, padding.
  """
  if not data.pad:
    for rows_NL in _cut_rows(arrays, data.inner):
      yield add_markers(rows_NL, tokenizer) if data.wrap else rows_NL
    return
  ends: list = [tokenizer.bos_id, tokenizer.eos_id]
  pad_id = getattr(tokenizer, "pad_id", None)
  padding = ends[1] if pad_id is None else pad_id
  for ids in filter(len, arrays):
    row_1L = np.full((1, data.length), padding, np.int32)
    last = min(len(ids), data.inner) + 1
    row_1L[0, 1:last] = ids[: data.inner]
    row_1L[0, [0, last]] = ends
    yield row_1L


def make_layout(
  length: int, *, wrap: bool = False, pad: bool = False
) -> config_lib.Data:
  """Returns the keys of `config.Data` that rows depend on, checked."""
  return config_lib.Data(length=length, wrap=wrap, pad=pad)


def unknown_share(counts: Mapping[str, int]) -> float:
  """Returns the share of unknown tokens; 0 of rows of earlier versions."""
  return counts.get("unknown", 0) / max(counts["tokens"], 1)


def write(
  directory: str,
  split: str,
  documents: Iterable[str],
  tokenizer: tokenizers.Tokenizer,
  *,
  origin: Origin,
  max_unknown: float = 0.05,
  **layout: Any,
) -> Packed:
  """Tokenises and packs one split, unless that has been done already.

  The layout has the arguments of `make_layout`. The last, incomplete row is
  dropped. A split that exists with other settings or damaged is a ValueError,
  and so is a share of unknown tokens above `max_unknown`.
  """
  data = make_layout(**layout)
  _check_markers(data, tokenizer)
  settings: dict = {
    "split": split,
    "length": data.length,
    "wrap": data.wrap,
    "pad": data.pad,
    "vocab_size": tokenizer.vocab_size,
    "fingerprint": tokenizer.fingerprint,
    "corpus": origin.corpus,
    "source": origin.source,
    "detokenizer": origin.detokenizer,
    "eos_id": tokenizer.eos_id if data.pad else None,
  }
  stem = os.path.join(directory, split)
  if is_finished(directory, split):
    packed = load(directory, split)
    for name, value in settings.items():
      found = packed.manifest[name]
      if found != value:
        raise ValueError(
          f"{stem}.json was prepared with {name}={found!r:.80} "
          f"instead of {value!r}; choose another output directory or delete it."
        )
    return packed
  digest, kept, markers = hashlib.sha256(), 0, data.length - data.inner
  counts = collections.Counter(rows=0, documents=0, tokens=0, unknown=0)

  def hashed():
    for text in documents:
      digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
      yield text

  arrays = count_documents(hashed(), tokenizer, counts, data.pad)
  with storage.replacing(f"{stem}.bin") as file:
    for rows_NL in make_rows(arrays, tokenizer, data):
      counts["rows"] += len(rows_NL)
      kept += Packed(rows_NL, settings).count_scored().sum()
      file.write(rows_NL.astype("<i4").tobytes())
    if not counts["rows"]:
      raise ValueError(
        f"length is {data.length} but split {split!r} of corpus "
        f"{origin.corpus!r} has only {counts['tokens']} tokens; lower it or "
        "use more text."
      )
    if counts["unknown"] > max_unknown * counts["tokens"]:
      raise ValueError(
        f"{unknown_share(counts):.1%} of the tokens of split {split!r} are "
        f"unknown to {origin.tokenizer!r}; use a tokenizer for this text, or "
        f"set max_unknown above {max_unknown:g}."
      )
  content = np.memmap(storage.local(f"{stem}.bin"), np.uint8, "r").data
  blocks = range(-(-len(content) // _HASHED))
  manifest = settings | {
    "tokenizer": origin.tokenizer,
    **counts,
    "dropped": counts["tokens"] - int(kept) + counts["rows"] * markers,
    "text_sha256": digest.hexdigest(),
    "data_sha256": hashlib.sha256(content).hexdigest(),
    "chunk_sha256": [_hash(content, block) for block in blocks],
  }
  manifest["manifest_sha256"] = _hash_manifest(manifest)
  storage.write_json(f"{stem}.json", manifest)
  return load(directory, split)
