"""The rows a config speaks of, checked against its network and devices."""

import re

from dsl_jax.data import corpora, packing, prepare, tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

_EMBEDDED = ("kjv",)  # comes with a package and packs in seconds


def directory(data: config_lib.Data) -> str:
  """Returns where the packed rows are: data.dir, or one name per setting."""
  if data.dir:
    return data.dir
  name = f"{data.corpus}_{data.tokenizer}_{data.length}"
  name += "_wrapped" if data.wrap else ""
  return "data_cache/" + re.sub(r"[^\w.-]+", "-", name)


def open_split(cfg: config_lib.Config, split: str) -> packing.Packed:
  """Opens the packed rows of a split; packs an embedded corpus at once.

  Args:
    cfg: its data section says which rows, its network how large a vocabulary.
    split: train, validation or test.

  Returns:
    The rows.

  Raises:
    errors.UserError: not prepared, or of another length or vocabulary.
    ValueError: damaged.
  """
  data, out = cfg.data, directory(cfg.data)
  if data.corpus in _EMBEDDED:
    prepare.prepare(
      corpus=data.corpus,
      tokenizer=data.tokenizer,
      length=data.length,
      out=out,
      wrap=data.wrap,
    )
  elif not packing.is_finished(out, split):
    corpora.check(data.corpus)
    raise errors.UserError(
      f"{out} has no prepared {split} rows; run python -m dsl_jax.data.prepare "
      f"--corpus={data.corpus} --tokenizer={data.tokenizer} "
      f"--length={data.length} --wrap={data.wrap} --out={out}."
    )
  packed = packing.load(out, split)
  made = packed.manifest
  kind = [
    spec.partition(":")[0] for spec in (data.tokenizer, made["tokenizer"])
  ]
  for key, value, found in (
    ("data.tokenizer", *kind),
    ("data.length", data.length, made["length"]),
    ("data.wrap", data.wrap, made["wrap"]),
    ("net.vocab_size", cfg.net.vocab_size, made["vocab_size"]),
  ):
    if value != found:
      raise errors.UserError(
        f"{key} is {value}; the rows in {out} were made with {found}, so set "
        "it to that or prepare others."
      )
  return packed


def check_vocabulary(
  cfg: config_lib.Config, tokenizer: tokenizers.Tokenizer
) -> None:
  """Refuses a tokenizer that does not speak the network's ids."""
  if tokenizer.vocab_size != cfg.net.vocab_size:
    raise errors.UserError(
      f"net.vocab_size is {cfg.net.vocab_size}; tokenizer "
      f"{cfg.data.tokenizer!r} has {tokenizer.vocab_size} ids, so set it to "
      "that."
    )


def check_batch(
  name: str, size: int, packed: packing.Packed, parts: int = 1
) -> None:
  """Refuses a batch that the data or the devices cannot give.

  Args:
    name: key of the size in the config.
    size: rows of the batch.
    packed: rows it is taken from.
    parts: equal parts it must have, devices times the passes of each.

  Raises:
    errors.UserError: too large, or not to be divided equally.
  """
  rows = len(packed.tokens_NL)
  if size > rows:
    raise errors.UserError(
      f"{name} is {size}; there are only {rows} "
      f"{packed.manifest['split']} rows, so use at most that."
    )
  if size % parts:
    raise errors.UserError(
      f"{name} is {size}; use a multiple of {parts}, the number of devices "
      "times microbatches."
    )
