"""OpenWebText from local shards or from the Hugging Face hub."""

import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
from collections.abc import Iterable, Iterator
from typing import IO

from dsl_jax.data import extras

_END = "<|endoftext|>"  # a line of its own between the documents of a .txt
_KINDS = (".parquet", ".jsonl", ".txt")
_BATCH = 1024


class Range:
  """Documents start..stop of a list of shards, in order.

  Args:
    counts: number of documents of every shard path, in reading order.
    start, stop: document numbers.
  """

  def __init__(self, counts: dict[str, int], start: int, stop: int):
    self._counts = counts
    self._start = start
    self._stop = stop

  def __len__(self) -> int:
    return self._stop - self._start

  def __iter__(self) -> Iterator[str]:
    first = 0
    for path, count in self._counts.items():
      start = max(self._start - first, 0)
      stop = min(self._stop - first, count)
      if start < stop:
        yield from itertools.islice(documents(path), start, stop)
      first += count


class Rows:
  """Rows of a Hugging Face data set that has a text column."""

  def __init__(self, dataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset)

  def __iter__(self) -> Iterator[str]:
    for batch in self._dataset.iter(batch_size=_BATCH):
      yield from _checked(batch["text"])


def local(pattern: str, held_out: int) -> tuple[str, dict[str, Range]]:
  """Opens the shards a glob matches, in the order of their names.

  A shard is .parquet or .jsonl with a `text` field, or .txt (one document, or
  several between lines that say <|endoftext|>); the latter two also with .gz,
  .xz or .zst.

  Args:
    pattern: glob; `**` crosses directories.
    held_out: the number of last documents that become validation.

  Returns:
    what the text came from, and the splits train and validation.

  Raises:
    ValueError: no shard matches, one is damaged, or there are too few
      documents.
  """
  paths = matching("openwebtext", pattern)
  counts = {path: _count(path) for path in paths}
  total = sum(counts.values())
  edge = _edge(total, held_out)
  names = [(os.path.basename(x), os.path.getsize(x)) for x in paths]
  source = hashlib.sha256(json.dumps([names, held_out]).encode()).hexdigest()
  splits = {
    "train": Range(counts, 0, edge),
    "validation": Range(counts, edge, total),
  }
  return source, splits


def hub(held_out: int) -> tuple[str, dict[str, Rows]]:
  """Opens OpenWebText through the `datasets` package; as `local` otherwise."""
  library = extras.require("datasets", "data")
  name = "Skylion007/openwebtext"
  try:
    rows = library.load_dataset(name, split="train")
  except Exception as error:  # offline shows as many unrelated types
    raise ValueError(
      f"corpus is 'openwebtext' but {name} cannot be loaded from the Hugging "
      "Face hub; pass local shards as openwebtext:GLOB."
    ) from error
  total = len(rows)
  edge = _edge(total, held_out)
  splits = {
    "train": Rows(rows.select(range(edge))),
    "validation": Rows(rows.select(range(edge, total))),
  }
  return f"{name} {total} {held_out}", splits


def matching(corpus: str, pattern: str) -> list[str]:
  """Returns the files a glob matches, sorted; ValueError where none does."""
  paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
  paths = [path for path in paths if os.path.isfile(path)]
  if not paths:
    raise ValueError(
      f"corpus is '{corpus}:{pattern}' but no file matches; give a glob such "
      f"as '{corpus}:/data/*.txt'."
    )
  return paths


def open_text(path: str) -> IO[str]:
  """Opens a UTF-8 text file, through .gz, .xz or .zst."""
  ending = os.path.splitext(path)[1]
  if ending == ".gz":
    return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
  if ending == ".xz":
    return lzma.open(path, "rt", encoding="utf-8-sig", newline="")
  if ending == ".zst":
    # pyarrow's reader refuses a file that was cut short; zstandard's does not.
    arrow = extras.require("pyarrow", "data")
    file = arrow.input_stream(path, compression="zstd")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
  return open(path, encoding="utf-8-sig", newline="")


def documents(path: str) -> Iterator[str]:
  """Yields the documents of one shard.

  Raises:
    ValueError: it is of no known kind, is damaged or has no field `text`.
  """
  with _reading(path):
    yield from _checked(_READERS[_kind(path)](path))


def _checked(texts: Iterable[object]) -> Iterator[str]:
  """Passes texts on and refuses what is none, or what no UTF-8 can hold."""
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(f"text {number} is {str(text)[:40]!r}, no string")
    text.encode()
    yield text


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
  """Turns what a reader of some format raises into one sentence."""
  try:
    yield
  except ImportError:
    raise
  except Exception as error:  # every format has its own exceptions
    raise ValueError(
      f"shard {path} cannot be read ({type(error).__name__}: {error}); replace "
      "it with a whole one that has a field 'text'."
    ) from error


def _edge(total: int, held_out: int) -> int:
  """The number of training documents."""
  if not 0 <= held_out < total:
    raise ValueError(
      f"held_out is {held_out} but the shards have {total} documents; hold out "
      "0 or more, and fewer than there are."
    )
  return total - held_out


def _kind(path: str) -> str:
  """.parquet, .jsonl or .txt, below a compression's ending."""
  stem, ending = os.path.splitext(path)
  if ending in (".gz", ".xz", ".zst"):
    ending = os.path.splitext(stem)[1]
  if ending not in _KINDS:
    raise ValueError(f"the ending is none of {', '.join(_KINDS)}")
  return ending


def _count(path: str) -> int:
  """The number of documents: from a parquet's footer, else by reading."""
  if path.endswith(".parquet"):
    parquet = extras.require("pyarrow.parquet", "data")
    with _reading(path):
      return parquet.read_metadata(path).num_rows
  return sum(1 for _ in documents(path))


def _read_parquet(path: str) -> Iterator[str]:
  parquet = extras.require("pyarrow.parquet", "data")
  with parquet.ParquetFile(path) as file:
    for batch in file.iter_batches(_BATCH, columns=["text"]):
      yield from batch.column("text").to_pylist()


def _read_jsonl(path: str) -> Iterator[str]:
  with open_text(path) as file:
    for line in file:
      if line.strip():
        yield json.loads(line)["text"]


def _read_txt(path: str) -> Iterator[str]:
  with open_text(path) as file:
    text = io.StringIO()
    for line in file:
      if line.rstrip() == _END:
        yield text.getvalue()
        text = io.StringIO()
      else:
        text.write(line)
    if text.tell():
      yield text.getvalue()


_READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_txt}
