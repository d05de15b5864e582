"""Text through TFDS, on array_record files and so without TensorFlow.

Importing this module imports tensorflow_datasets and registers the builder of
local text files; `corpora.load` does so when a corpus needs it.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from dsl_jax.data import shards

_FORMAT = "array_record"
_LIMIT = 1 << 30  # a record of protobuf holds less than 2 GiB


class Records:
  """The text of every record of a TFDS split."""

  def __init__(self, source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __iter__(self) -> Iterator[str]:
    for i in range(len(self._source)):
      yield self._source[i]["text"].decode()


class LocalText(tfds.core.GeneratorBasedBuilder):
  """Local text files: of each 90 % is train, then 5 % and 5 %."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, paths: tuple[str, ...] = (), **kwargs):
    self._paths = paths
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    return tfds.core.DatasetInfo(
      builder=self, features=text, disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    names = ("train", "validation", "test")
    return {x: self._generate_examples(i) for i, x in enumerate(names)}

  def _generate_examples(self, part: int):
    for number, path in enumerate(self._paths):
      yield number, {"text": cut(_read(path))[part].strip()}


def build(pattern: str, cache: str) -> tuple[str, dict[str, Records]]:
  """Writes the files a glob matches as array_record, once, and opens them.

  Args:
    pattern: glob of UTF-8 text files, also .gz, .xz or .zst.
    cache: directory to write in; the files' hash names a folder there.

  Returns:
    the sha256 of the files, and the splits.
  """
  paths = shards.matching("text", pattern)
  digest = hashlib.sha256()
  for path in paths:
    with open(path, "rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
  source = digest.hexdigest()
  tfds.disable_progress_bar()
  builder = LocalText(
    paths=tuple(paths),
    data_dir=os.path.join(cache, source[:16]),
    file_format=_FORMAT,
  )
  builder.download_and_prepare()
  return source, {x: _records(builder, x) for x in builder.info.splits}


def lm1b(directory: str) -> tuple[str, dict[str, Records]]:
  """Opens LM1B as TFDS has prepared it; its test split is validation.

  Args:
    directory: TFDS's data_dir, or "" for its default.

  Raises:
    ValueError: it is not there, or in another format than array_record.
  """
  directory = directory or os.environ.get(
    "TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets")
  )
  pattern = os.path.join(os.path.expanduser(directory), "lm1b", "*")
  versions = sorted(glob.glob(os.path.join(pattern, "dataset_info.json")))
  mend = (
    "prepare it once with: tfds build lm1b --file_format=array_record "
    f"--data_dir={directory}."
  )
  if not versions:
    raise ValueError(f"corpus is 'lm1b' but {pattern} has no data set; {mend}")
  try:
    builder = tfds.builder_from_directory(os.path.dirname(versions[-1]))
  except Exception as error:  # whatever a damaged description makes TFDS raise
    raise ValueError(
      f"corpus is 'lm1b' and {versions[-1]} cannot be read; {mend}"
    ) from error
  if builder.info.file_format.value != _FORMAT:
    raise ValueError(
      f"corpus is 'lm1b' and {directory} has it as "
      f"{builder.info.file_format.value}; {mend}"
    )
  splits = {
    "train": _records(builder, "train"),
    "validation": _records(builder, "test"),
  }
  return builder.info.full_name, splits


def cut(text: str) -> tuple[str, str, str]:
  """Cuts a text 90/5/5, at white space where some is near."""
  edges = []
  for share in (0.9, 0.95):
    at = int(share * len(text))
    found = re.compile(r"\s").search(text, at, at + 1000)
    edges.append(found.start() if found else at)
  return text[: edges[0]], text[edges[0] : edges[1]], text[edges[1] :]


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Records:
  return Records(builder.as_data_source(split=split))


def _read(path: str) -> str:
  """A file's text."""
  if os.path.getsize(path) > _LIMIT:
    raise ValueError(
      f"{path} has {os.path.getsize(path)} bytes, more than {_LIMIT}; cut it "
      "into several files."
    )
  try:
    with shards.open_text(path) as file:
      return file.read()
  except (OSError, EOFError, ValueError) as error:
    raise ValueError(
      f"{path} cannot be read as UTF-8 text ({error}); convert it or narrow "
      "the glob."
    ) from error
