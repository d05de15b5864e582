"""Packs a corpus into token rows: python -m dsl_jax.data.prepare --help."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import app, flags, logging

from dsl_jax.data import corpora, detokenizers, packing, tokenizers
from dsl_jax.runtime import errors, storage

_FLAGS = (
  "corpus",
  "tokenizer",
  "length",
  "out",
  "splits",
  "wrap",
  "detokenizer",
  "held_out",
  "max_unknown",
)


def _train(path, spec, texts, clean):
  """Trains a vocabulary, unless there are rows made with it."""
  folder = str(storage.to_path(path).parent)
  has_rows = any(packing.is_finished(folder, split) for split in texts.splits)
  if "train" not in texts.splits:
    raise ValueError(
      f"tokenizer is {spec!r} but no text is for training; give another."
    )
  if not (has_rows and storage.to_path(path).exists()):
    model = tokenizers.train(map(clean, texts.splits["train"]), spec)
    with storage.replacing(path) as file:
      file.write(model)


def prepare(
  *,
  corpus: str,
  tokenizer: str,
  length: int,
  out: str,
  splits: Sequence[str] | None = None,
  wrap: bool = False,
  detokenizer: str = "",
  **limits: Any,
) -> dict[str, packing.Packed]:
  """Packs splits of a corpus, by default all; those packed already are checked.

  A vocabulary that is to be trained is trained on the training documents and
  stored with the rows, whose manifests have its hash. Of several processes with
  one directory one writes and the others wait. See `corpora.load`,
  `tokenizers.load` and `packing.write` for the arguments; limits are held_out
  and max_unknown.
  """
  detokenizer = detokenizers.resolve(detokenizer, corpus)
  clean = detokenizers.make(detokenizer)
  to_train = tokenizers.trained_file(tokenizer, out)
  if not to_train:
    encoder = tokenizers.load(tokenizer)
  is_local, cache = storage.is_local(out), storage.to_path(out) / "corpus"
  is_fixed = cache.parent.exists() and not os.access(cache.parent, os.W_OK)
  if is_fixed or not is_local:
    cache = storage.copies()
  held_out = limits.get("held_out", 100_000)
  texts = corpora.load(corpus, cache=str(cache), held_out=held_out)
  names = list(texts.splits if splits is None else splits)
  for name in names:
    if name not in texts.splits:
      raise ValueError(
        f"splits has {name!r} but corpus {corpus!r} has "
        f"{', '.join(texts.splits)}; choose from these."
      )
  origin = packing.Origin(texts.name, texts.source, tokenizer, detokenizer)
  packed = {}
  with contextlib.ExitStack() as stack:
    finished = all(packing.is_finished(out, name) for name in names)
    if is_local and not finished:  # waits for other writers; a bucket has none
      stack.enter_context(storage.lock(storage.make_folder(out)))
    if to_train:
      _train(to_train, tokenizer, texts, clean)
      encoder = tokenizers.load(tokenizer, out)
    for name in names:
      quiet = packing.is_finished(out, name)
      documents = tqdm.tqdm(
        texts.splits[name], name, unit=" documents", disable=quiet
      )
      packed[name] = packing.write(
        out,
        name,
        map(clean, documents),
        encoder,
        length=length,
        origin=origin,
        wrap=wrap,
        max_unknown=limits.get("max_unknown", 0.05),
      )
  return packed


def _main(argv: Sequence[str]) -> None:
  """Calls `prepare` and prints what it made."""
  if len(argv) > 1:
    raise ValueError(f"unknown argument {argv[1]!r}; flags are --name=value.")
  logging.set_verbosity(logging.WARNING)
  errors.escape_output()
  values: dict[str, Any] = {name: flags.FLAGS[name].value for name in _FLAGS}
  for name, rows in prepare(**values).items():
    counts = rows.manifest
    print(
      f"{name}: {counts['rows']} rows of {counts['length']} tokens from "
      f"{counts['documents']} documents ({counts['dropped']} tokens left "
      f"over, {packing.unknown_share(counts):.2%} unknown), in {values['out']}"
    )
  encoder = tokenizers.load(values["tokenizer"], values["out"])
  (ids,) = packing.encode_documents(["a\nb"], encoder)
  if "\n" not in encoder.decode(ids):
    print(f"line breaks are not kept by {values['tokenizer']}")


if __name__ == "__main__":
  flags.DEFINE_string("corpus", None, ", ".join(corpora.SPECS))
  flags.DEFINE_string("tokenizer", None, ", ".join(tokenizers.SPECS))
  flags.DEFINE_integer("length", None, "tokens in a row")
  flags.DEFINE_string("out", None, "directory of the packed files")
  flags.DEFINE_list("splits", None, "splits to pack, by default all")
  flags.DEFINE_bool("wrap", False, "BOS and EOS at the ends of every row")
  flags.DEFINE_integer("held_out", 100_000, "OpenWebText's held-out documents")
  flags.DEFINE_string("detokenizer", "", "wikitext, ptb, lm1b, lambada or none")
  flags.DEFINE_float("max_unknown", 0.05, "share of unknown tokens, at most")
  flags.mark_flags_as_required(["corpus", "tokenizer", "length", "out"])
  try:
    app.run(_main, flags_parser=flags.FLAGS)
  except (flags.Error, ValueError, ImportError, OSError) as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
