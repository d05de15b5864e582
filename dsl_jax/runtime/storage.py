"""Files that are written as a whole or not at all, and read back with care."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from absl import logging

from dsl_jax.runtime import errors

Path = str | os.PathLike
_INTACT = "replace it with an intact file."


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A file that takes its name only when it is complete and on disk."""
  partial = f"{os.fspath(path)}.partial"
  with open(partial, "wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
  """Writes a text file in UTF-8."""
  with replacing(path) as file:
    file.write(text.encode())


def write_json(path: Path, tree: dict) -> None:
  """Writes dicts, lists and numbers; null for NaN and infinity."""
  finite = json.loads(json.dumps(tree), parse_constant=lambda _: None)
  write_text(path, json.dumps(finite, indent=2))


def _parse_lines(path, fix) -> list[tuple[bytes, dict]]:
  """Lines of a file that are JSON objects; warns if others are skipped."""
  rows, skipped = [], 0
  with errors.reading(os.fspath(path), fix):
    lines = pathlib.Path(path).read_bytes().splitlines()
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
  if os.path.exists(path):
    kept = [line for line, row in _parse_lines(path, _INTACT) if keep(row)]
  with replacing(path) as file:
    file.write(b"".join(line + b"\n" for line in kept))


def read_json(path: Path, fix: str = _INTACT) -> dict:
  """Reads a JSON object; an error names the file and the fix."""
  with errors.reading(os.fspath(path), fix):
    content = json.loads(pathlib.Path(path).read_bytes())
    if not isinstance(content, dict):
      raise ValueError("it is not a JSON object")
  return content


def read_jsonl(path: Path, fix: str = _INTACT) -> list[dict]:
  """Reads the JSON objects of a file; other lines are skipped with a warning.

  A process that is killed may leave an incomplete line.
  """
  return [row for _, row in _parse_lines(path, fix)]
