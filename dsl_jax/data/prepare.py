"""Packs a corpus into token rows: python -m dsl_jax.data.prepare --help."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import tqdm
from absl import app, flags, logging

from dsl_jax.data import corpora, packing, tokenizers


@contextlib.contextmanager
def _sole_writer(directory: str) -> Iterator[None]:
  """Makes a directory and waits until no other process writes in it."""
  try:
    os.makedirs(directory, exist_ok=True)
    lock = open(os.path.join(directory, ".lock"), "w")  # noqa: SIM115
  except OSError as error:
    raise ValueError(
      f"out is {directory!r}, which cannot be written ({error.strerror}); "
      "choose another directory."
    ) from error
  with lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def prepare(
  *,
  corpus: str,
  tokenizer: str,
  length: int,
  out: str,
  splits: Sequence[str] | None = None,
  wrap: bool | None = None,
  held_out: int = 100_000,
  progress: bool = True,
) -> dict[str, packing.Packed]:
  """Packs the splits of a corpus; those packed already are only checked.

  After an interruption, call it again: finished splits are kept, an unfinished
  one is made from the start. Of several processes with one directory one
  writes and the others wait; nothing is written when all splits are finished.

  Args:
    corpus: spec of `corpora.load`.
    tokenizer: spec of `tokenizers.load`.
    length: tokens in a row, L.
    out: directory of the packed files.
    splits: names; by default all that the corpus has.
    wrap: rows of BOS, L - 2 tokens, EOS; by default for word tokenizers.
    held_out: documents in OpenWebText's validation split.
    progress: whether to show a progress bar.

  Returns:
    The rows by split.

  Raises:
    ValueError: invalid input, missing or damaged data, or `out` cannot be
      written or has rows of other settings.
    ImportError: an optional package is missing.
  """
  encoder = tokenizers.load(tokenizer)
  cache = os.path.join(out, "corpus")
  texts = corpora.load(corpus, cache=cache, held_out=held_out)
  names = list(texts.splits) if splits is None else list(splits)
  for name in names or [""]:
    if name not in texts.splits:
      raise ValueError(
        f"splits has {name!r} but corpus {corpus!r} has "
        f"{', '.join(texts.splits)}; choose from these."
      )
  origin = packing.Origin(texts.name, texts.source, tokenizer)
  packed = {}
  finished = all(packing.is_finished(out, name) for name in names)
  with contextlib.nullcontext() if finished else _sole_writer(out):
    for name in names:
      documents = texts.splits[name]
      quiet = not progress or packing.is_finished(out, name)
      with tqdm.tqdm(
        desc=name, total=len(documents), unit=" documents", disable=quiet
      ) as bar:
        packed[name] = packing.write(
          out,
          name,
          documents,
          encoder,
          length=length,
          origin=origin,
          wrap=wrap,
          progress=bar.update,
        )
  return packed


def _define_flags() -> None:
  """Defines the flags of the command, not those of who imports `prepare`."""
  flags.DEFINE_string("corpus", None, f"one of {', '.join(corpora.SPECS)}")
  specs = ", ".join(tokenizers.SPECS)
  flags.DEFINE_string("tokenizer", None, f"one of {specs}")
  flags.DEFINE_integer("length", None, "tokens in a row")
  flags.DEFINE_string("out", None, "directory of the packed files")
  flags.DEFINE_list("splits", None, "splits to pack, by default all")
  flags.DEFINE_bool("wrap", None, "BOS and EOS at the ends of every row")
  flags.DEFINE_integer(
    "held_out", 100_000, "documents in OpenWebText's validation split"
  )
  flags.mark_flags_as_required(["corpus", "tokenizer", "length", "out"])


def _fail(error: object) -> NoReturn:
  """Prints one sentence and exits."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags; returns the other arguments."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(error)


def _main(argv: Sequence[str]) -> None:
  """Calls `prepare` and prints what it made."""
  if len(argv) > 1:
    _fail(f"unknown argument {argv[1]!r}; flags are --name=value.")
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS
  try:
    packed = prepare(
      corpus=values.corpus,
      tokenizer=values.tokenizer,
      length=values.length,
      out=values.out,
      splits=values.splits,
      wrap=values.wrap,
      held_out=values.held_out,
    )
  except (ValueError, ImportError, OSError) as error:
    _fail(error)
  for name, rows in packed.items():
    manifest = rows.manifest
    print(
      f"{name}: {manifest['rows']} rows of {manifest['length']} tokens from "
      f"{manifest['documents']} documents ({manifest['dropped']} tokens left "
      f"over), in {values.out}"
    )


if __name__ == "__main__":
  _define_flags()
  app.run(_main, flags_parser=_parse)
