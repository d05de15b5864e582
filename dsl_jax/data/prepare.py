"""Packs a corpus into token rows: python -m dsl_jax.data.prepare --help."""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import app, flags, logging

from dsl_jax.data import corpora, detokenizers, packing, tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

_FLAGS: tuple[str, ...] = ("corpus", "tokenizer", "length", "out", "splits")
_FLAGS += ("wrap", "pad", "detokenizer", "held_out", "max_unknown")


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
  out: str,
  splits: Sequence[str] | None = None,
  detokenizer: str = "",
  held_out: int = 100_000,
  max_unknown: float = 0.05,
  **layout: Any,
) -> dict[str, packing.Packed]:
  """Packs splits of a corpus, by default all; those packed already are checked.

  A vocabulary that is to be trained is trained on the training documents and
  stored with the rows, whose manifests have its hash. Of several processes with
  one directory one writes and the others wait. See `corpora.load`,
  `tokenizers.load`, `packing.write` and `make_layout` there for the arguments.
  """
  packing.make_layout(**layout)  # raises if it is wrong
  detokenizer = detokenizers.resolve(detokenizer, corpus)
  clean = detokenizers.make(detokenizer)
  to_train = tokenizers.trained_file(tokenizer, out)
  if not to_train:
    encoder = tokenizers.load(tokenizer)
  cache = storage.to_path(out) / "corpus"
  is_fixed = cache.parent.exists() and not os.access(cache.parent, os.W_OK)
  if is_fixed or not storage.is_local(out):
    cache = storage.copies()
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
    if not all(packing.is_finished(out, name) for name in names):
      stack.enter_context(storage.lock(out))  # waits for other writers
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
        origin=origin,
        max_unknown=max_unknown,
        **layout,
      )
  return packed


def _rows_folder(data):
  """The folder of the packed rows and of a vocabulary trained with them."""
  name = f"{data.corpus}_{data.tokenizer}_{data.length}"
  name += "_wrapped" * data.wrap + "_padded" * data.pad
  return data.dir or "data_cache/" + re.sub(r"[^\w.-]+", "-", name)


def open_rows(cfg: config_lib.Config, split: str) -> packing.Packed:
  """Opens the packed rows of a split; packs the King James Bible first."""
  data, folder = cfg.data, _rows_folder(cfg.data)
  keys = ("corpus", "tokenizer", "length", "wrap", "pad", "detokenizer")
  settings = {key: getattr(data, key) for key in keys} | {"out": folder}
  if data.corpus:
    corpora.check(data.corpus)
  if data.corpus == "kjv":  # comes with a package and is packed in seconds
    prepare(**settings)
  elif not packing.is_finished(folder, split):
    if not data.corpus:
      raise errors.UserError(
        "the weights do not say their corpus; set data.dir to the folder of "
        "prepared rows, or score a text of yours by --text=FILE."
      )
    if any(packing.is_finished(folder, x) for x in ("train", "validation")):
      raise errors.UserError(
        f"eval.split is {split!r} but {folder} has no such rows; choose the "
        "other one, or add it with python -m dsl_jax.data.prepare --splits."
      )
    flags = shlex.join(f"--{key}={value}" for key, value in settings.items())
    raise errors.UserError(
      f"{folder} has no prepared {split} rows; run python -m "
      f"dsl_jax.data.prepare {flags}."
    )
  packed = packing.load(folder, split)
  names = ["fingerprint" if data.fingerprint else "tokenizer"]
  names += ["length", "wrap", "pad", "detokenizer"]
  expected = {f"data.{name}": getattr(data, name) for name in names}
  expected |= {
    "data.detokenizer": detokenizers.resolve(data.detokenizer, data.corpus),
    "net.vocab_size": cfg.net.vocab_size,
  }
  for key, value in expected.items():
    made_with = packed.manifest[key.partition(".")[2]]
    # The place of a tokenizer does not matter.
    if str(value).partition(":")[0] != str(made_with).partition(":")[0]:
      raise errors.UserError(
        f"{key} is {value}; the rows in {folder} were made with {made_with}, "
        "so set it to that or prepare others."
      )
  return packed


def load_tokenizer(cfg: config_lib.Config) -> tokenizers.Tokenizer:
  """Loads the tokenizer of the run, whose ids must be the network's."""
  data = cfg.data
  if not data.tokenizer:
    raise errors.UserError(
      "the weights do not say their tokenizer; write them again by python -m "
      "dsl_jax.convert export with --tokenizer, or set data.tokenizer."
    )
  tokenizer = tokenizers.load(data.tokenizer, _rows_folder(data))
  if tokenizer.vocab_size != cfg.net.vocab_size:
    raise errors.UserError(
      f"net.vocab_size is {cfg.net.vocab_size}; set it to the "
      f"{tokenizer.vocab_size} ids of tokenizer {data.tokenizer!r}."
    )
  if data.fingerprint not in ("", tokenizer.fingerprint):
    raise errors.UserError(
      f"the tokenizer {data.tokenizer!r} has another vocabulary (sha256 "
      f"{tokenizer.fingerprint[:12]}) than the model (data.fingerprint is "
      f"{data.fingerprint[:12]}); give its own as --config.data.tokenizer."
    )
  return tokenizer


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
      f"{counts['documents']} documents ({counts['dropped']} tokens in no "
      f"row, {packing.unknown_share(counts):.2%} unknown), in {values['out']}"
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
  flags.DEFINE_bool("pad", False, "a document a row, BOS and EOS, padded")
  flags.DEFINE_integer("held_out", 100_000, "OpenWebText's held-out documents")
  flags.DEFINE_string("detokenizer", "", "wikitext, ptb, lm1b, lambada or none")
  flags.DEFINE_float("max_unknown", 0.05, "share of unknown tokens, at most")
  flags.mark_flags_as_required(["corpus", "tokenizer", "length", "out"])
  try:
    app.run(_main, flags_parser=flags.FLAGS)
  except (flags.Error, ValueError, ImportError, OSError) as error:
    reason = errors.describe(error, "--out")
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(2)
