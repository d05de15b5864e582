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

  A run that was interrupted is called again: whole splits are kept, the one in
  work begins anew. Of several runs on one directory one works, the others wait.

  Args:
    corpus: spec of `corpora.load`.
    tokenizer: spec of `tokenizers.load`.
    length: tokens in a row, L.
    out: directory of the packed files.
    splits: names; by default all the corpus has.
    wrap: rows of BOS, L - 2 tokens, EOS; by default for word tokenizers.
    held_out: documents in OpenWebText's validation split.
    progress: whether to show a bar.

  Returns:
    The rows by split.

  Raises:
    ValueError: bad input, missing or damaged data, `out` cannot be written or
      holds another preparation.
    ImportError: an optional package is missing.
  """
  tokens = tokenizers.load(tokenizer)
  with _sole_writer(out):
    cache = os.path.join(out, "corpus")
    opened = corpora.load(corpus, cache=cache, held_out=held_out)
    names = list(opened.splits) if splits is None else list(splits)
    for name in names or [""]:
      if name not in opened.splits:
        raise ValueError(
          f"splits has {name!r} but corpus {corpus!r} has "
          f"{', '.join(opened.splits)}; choose among these."
        )
    packed = {}
    for name in names:
      documents = opened.splits[name]
      quiet = not progress or packing.is_finished(out, name)
      with tqdm.tqdm(
        desc=name, total=len(documents), unit=" documents", disable=quiet
      ) as bar:
        packed[name] = packing.write(
          out,
          name,
          documents,
          tokens,
          length=length,
          corpus=opened.name,
          source=opened.source,
          spec=tokenizer,
          wrap=wrap,
          progress=bar.update,
        )
    return packed


@contextlib.contextmanager
def _sole_writer(directory: str) -> Iterator[None]:
  """Makes a directory and waits until no other run writes in it."""
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


def _define_flags() -> None:
  """The command's flags; train.py imports this module without them."""
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


def _parse(argv: Sequence[str]) -> list[str]:
  """Reads the flags; returns what is none."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    return _fail(error)


def _fail(error: object) -> NoReturn:
  """Leaves with one sentence."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(2)


def _main(argv: Sequence[str]) -> None:
  """Runs `prepare` and says what it made, or in one sentence why not."""
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
  for name, one in packed.items():
    manifest = one.manifest
    print(
      f"{name}: {manifest['rows']} rows of {manifest['length']} tokens from "
      f"{manifest['documents']} documents ({manifest['dropped']} tokens left "
      f"over), in {values.out}"
    )


if __name__ == "__main__":
  _define_flags()
  app.run(_main, flags_parser=_parse)
