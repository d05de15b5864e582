"""Files that are written as a whole or not at all, and read back with care.

Every path may be local or in a bucket of Google Cloud Storage.
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import logging as python_logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

from absl import logging
from etils import epath

from dsl_jax.runtime import errors

Path = str | os.PathLike
_ESCAPE = "backslashreplace"  # names of files may hold bytes outside UTF-8
_INTACT = "replace it with an intact file."
_SCHEME = re.compile(r"(?i)[a-z][a-z0-9+.-]*:/|(gs|s3):")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/|$)")
_BLOCK = 1 << 26  # bytes of a request to a bucket


def is_supported(path: Path) -> bool:
  """Returns whether a path is local or gs://BUCKET/NAME."""
  path = os.fspath(path)
  return not _SCHEME.match(path) or bool(_BUCKET.match(path))


@functools.cache
def _set_up_buckets():
  """Makes epath read buckets by gcsfs, without noise and stale listings."""
  os.environ.setdefault("EPATH_USE_TF", "false")
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  errors.require("gcsfs", "gcs")
  config = errors.require("fsspec.config", "gcs").conf
  # Orbax writes by another library: listings that are kept would lack files.
  config.setdefault("gs", {})["use_listings_cache"] = False
  python_logging.getLogger("gcsfs").setLevel(python_logging.CRITICAL)


def to_path(path: Path) -> pathlib.Path:
  """Returns the path that a user gave, with ~ expanded."""
  path = os.fspath(path)
  if not is_supported(path):
    raise errors.UserError(
      f"{path!r} is not supported; give a local path or gs://BUCKET/NAME."
    )
  if not path.startswith("gs://"):
    return pathlib.Path(os.path.expanduser(path))
  _set_up_buckets()
  return epath.Path(path)


def is_local(path: Path) -> bool:
  """Returns whether a path is not in a bucket."""
  return isinstance(to_path(path), pathlib.Path)


def make_folder(path: Path) -> pathlib.Path:
  """Makes a folder and those above it; buckets need no folders."""
  path = to_path(path)
  if isinstance(path, pathlib.Path):
    path.mkdir(parents=True, exist_ok=True)
  return path


def _copy(source, target):
  with source.open("rb") as reader, target.open("wb") as writer:
    shutil.copyfileobj(reader, writer, _BLOCK)


def copies() -> pathlib.Path:
  """Returns the folder of this host for copies of what is in buckets."""
  return to_path(os.environ.get("DSL_CACHE") or "~/.cache/dsl_jax/buckets")


def lock(folder: Path, *, wait: bool = True) -> IO | contextlib.nullcontext:
  """Makes a folder and locks it until the result is closed; no lock in buckets.

  Waits for another process that holds the lock, or raises BlockingIOError.
  """
  folder = make_folder(folder)
  if not isinstance(folder, pathlib.Path):
    return contextlib.nullcontext()
  file = open(folder / ".lock", "w")  # noqa: SIM115
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    file.close()
    raise
  except OSError as error:  # of network file systems without locks
    reason = f"{folder} cannot be locked ({error.strerror})"
    logging.warning("%s; do not use it from two processes now.", reason)
  return file


def local(path: Path) -> pathlib.Path:
  """Returns a local path itself, or a copy of a file or folder of a bucket.

  A host copies once, however many processes it has; what has changed is copied
  again. Folders within a folder are left out.
  """
  path = to_path(path)
  if isinstance(path, pathlib.Path):
    return path
  files, is_folder = [path], path.is_dir()
  if is_folder:
    files = sorted(file for file in path.iterdir() if not file.is_dir())
  states = [file.stat() for file in files]
  facts = [f"{x} {s.length} {s.mtime}" for x, s in zip(files, states)]
  digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
  folder = copies() / digest[:16]
  with lock(folder):
    for file in files:
      if not (folder / file.name).exists():
        with staged(folder / file.name) as partial:
          _copy(file, partial)
  return folder if is_folder else folder / path.name


def find_files(pattern: str) -> list[str]:
  """Returns the files of a glob, sorted, those of a bucket as local copies.

  Brackets are literal where such files exist, as in `a [1]/*.txt`, otherwise a
  character class.
  """
  path = to_path(pattern)
  for text in (str(path).replace("[", "[[]"), str(path)):
    if isinstance(path, pathlib.Path):
      matches = map(pathlib.Path, glob.glob(text, recursive=True))
    elif "**" in text:
      raise errors.UserError(f"{pattern!r} has **; in a bucket use only *.")
    else:
      bucket, _, rest = text.removeprefix("gs://").partition("/")
      matches = epath.Path(f"gs://{bucket}").glob(rest)
    if files := sorted(match for match in matches if match.is_file()):
      return [str(local(file)) for file in files]
  return []


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies what is in a folder, to or within a bucket."""
  for entry in source.iterdir():
    copy = copy_folder if entry.is_dir() else _copy
    copy(entry, target / entry.name)


def move_folder(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a folder; makes the folder above its new place."""
  make_folder(target.parent)
  if isinstance(source, pathlib.Path):
    os.replace(source, target)
  else:
    copy_folder(source, target)
    source.rmtree()


def reason(error: Exception) -> str:
  """Returns why a path cannot be written, as a system or a bucket says it."""
  text = getattr(error, "strerror", None)
  if not text and isinstance(error, FileNotFoundError):
    return "no such bucket"
  return text or repr(error)[:300]


@contextlib.contextmanager
def staged(path: Path) -> Iterator[pathlib.Path]:
  """A local file to write, which becomes `path` when it is complete."""
  path = to_path(path)
  make_folder(path.parent)
  if isinstance(path, pathlib.Path):
    partial = path.with_name(f"{path.name}.partial")
    try:
      yield partial
      os.replace(partial, path)
    except OSError as error:  # a full disk has no name
      error.filename = error.filename or str(path)
      raise
    finally:
      partial.unlink(missing_ok=True)
    return
  with tempfile.TemporaryDirectory(dir=make_folder(copies())) as folder:
    partial = pathlib.Path(folder) / path.name
    yield partial
    try:
      _copy(partial, path)
    except Exception as error:  # gcsfs has its own
      raise errors.UserError(
        f"{path} cannot be written ({reason(error)}); check its name and your "
        "rights there."
      ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A file that takes its name only when it is complete and on disk."""
  with staged(path) as partial, open(partial, "wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())


def append(path: Path, text: str) -> None:
  """Adds text to a file; one in a bucket is written again."""
  path = to_path(path)
  if isinstance(path, pathlib.Path):
    with path.open("a", encoding="utf-8", errors=_ESCAPE) as file:
      file.write(text)
  else:
    before = path.read_bytes() if path.exists() else b""
    with replacing(path) as file:
      file.write(before + text.encode(errors=_ESCAPE))


def digest(tree: Any) -> str:
  """Returns the sha256 of a JSON tree, as 64 hex digits."""
  content = json.dumps(tree, sort_keys=True, default=str)
  return hashlib.sha256(content.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
  """Writes a text file in UTF-8."""
  with replacing(path) as file:
    file.write(text.encode(errors=_ESCAPE))


def write_json(path: Path, tree: dict) -> None:
  """Writes dicts, lists and numbers; null for NaN and infinity."""
  finite = json.loads(json.dumps(tree), parse_constant=lambda _: None)
  write_text(path, json.dumps(finite, indent=2))


def _parse_lines(path, fix) -> list[tuple[bytes, dict]]:
  """Lines of a file that are JSON objects; warns if others are skipped."""
  rows, skipped = [], 0
  with errors.reading(os.fspath(path), fix):
    lines = to_path(path).read_bytes().splitlines()
  for line in filter(bytes.strip, lines):
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if isinstance(row, dict):
      rows.append((line, row))
    else:
      skipped += 1
  if skipped:
    logging.warning("%s: skipped %d lines that are not JSON", path, skipped)
  return rows


def filter_jsonl(path: Path, keep: Callable[[dict], bool]) -> None:
  """Removes the lines of a file whose objects `keep` rejects, and others.

  The lines that remain are the same bytes; there need not be a file.
  """
  kept = []
  if to_path(path).exists():
    kept = [line for line, row in _parse_lines(path, _INTACT) if keep(row)]
  with replacing(path) as file:
    file.write(b"".join(line + b"\n" for line in kept))


def read_json(path: Path, fix: str = _INTACT) -> dict:
  """Reads a JSON object; an error names the file and the fix."""
  with errors.reading(os.fspath(path), fix):
    content = json.loads(to_path(path).read_bytes())
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
  return content


def read_jsonl(path: Path, fix: str = _INTACT) -> list[dict]:
  """Reads the JSON objects of a file; other lines are skipped with a warning.

  A process that is killed may leave an incomplete line.
  """
  return [row for _, row in _parse_lines(path, fix)]
