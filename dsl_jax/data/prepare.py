"""Packs a corpus into token rows: python -m dsl_jax.data.prepare --help."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import app, flags, logging

from dsl_jax.data import corpora, packing, tokenizers
from dsl_jax.runtime import errors, storage


def prepare(
  *,
  corpus: str,
  tokenizer: str,
  length: int,
  out: str,
  splits: Sequence[str] | None = None,
  wrap: bool = False,
  held_out: int = 100_000,
) -> dict[str, packing.Packed]:
  """Packs splits of a corpus, by default all; those packed already are checked.

  Of several processes with one directory one writes and the others wait. See
  `corpora.load`, `tokenizers.load` and `packing.write` for the arguments.
  """
  encoder = tokenizers.load(tokenizer)
  is_local, cache = storage.is_local(out), storage.to_path(out) / "corpus"
  is_fixed = cache.parent.exists() and not os.access(cache.parent, os.W_OK)
  if is_fixed or not is_local:
    cache = storage.copies()
  texts = corpora.load(corpus, cache=str(cache), held_out=held_out)
  names = list(texts.splits if splits is None else splits)
  for name in names:
    if name not in texts.splits:
      raise ValueError(
        f"splits has {name!r} but corpus {corpus!r} has "
        f"{', '.join(texts.splits)}; choose from these."
      )
  origin = packing.Origin(texts.name, texts.source, tokenizer)
  packed = {}
  with contextlib.ExitStack() as stack:
    finished = all(packing.is_finished(out, name) for name in names)
    if is_local and not finished:  # waits for other writers; a bucket has none
      stack.enter_context(storage.lock(storage.make_folder(out)))
    for name in names:
      quiet = packing.is_finished(out, name)
      documents = tqdm.tqdm(
        texts.splits[name], name, unit=" documents", disable=quiet
      )
      packed[name] = packing.write(
        out, name, documents, encoder, length=length, origin=origin, wrap=wrap
      )
  return packed


def _main(argv: Sequence[str]) -> None:
  """Calls `prepare` and prints what it made."""
  if len(argv) > 1:
    raise ValueError(f"unknown argument {argv[1]!r}; flags are --name=value.")
  logging.set_verbosity(logging.WARNING)
  errors.escape_output()
  names = ("corpus", "tokenizer", "length", "out", "splits", "wrap", "held_out")
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
  for name, rows in prepare(**values).items():
    manifest = rows.manifest
    print(
      f"{name}: {manifest['rows']} rows of {manifest['length']} tokens from "
      f"{manifest['documents']} documents ({manifest['dropped']} tokens left "
      f"over), in {values['out']}"
    )


if __name__ == "__main__":
  flags.DEFINE_string("corpus", None, ", ".join(corpora.SPECS))
  flags.DEFINE_string("tokenizer", None, ", ".join(tokenizers.SPECS))
  flags.DEFINE_integer("length", None, "tokens in a row")
  flags.DEFINE_string("out", None, "directory of the packed files")
  flags.DEFINE_list("splits", None, "splits to pack, by default all")
  flags.DEFINE_bool("wrap", False, "BOS and EOS at the ends of every row")
  flags.DEFINE_integer("held_out", 100_000, "OpenWebText's held-out documents")
  flags.mark_flags_as_required(["corpus", "tokenizer", "length", "out"])
  try:
    app.run(_main, flags_parser=flags.FLAGS)
  except (flags.Error, ValueError, ImportError, OSError) as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
