"""The config.json of a workdir or a folder of weights, and what it permits."""

import contextlib
import dataclasses
import os
import pathlib
import uuid
from typing import IO, NamedTuple

import jax

from dsl_jax.data import tokenizers
from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

# What may differ between the stored config and one that continues the run.
_FREE_SECTIONS = ("eval.", "sample.", "mesh.", "train.")
_FREE_KEYS = ("net.remat", "net.unroll", "net.attention", "name")
# The hash of the packed rows is compared instead of these.
_ROWS = ("data.corpus", "data.tokenizer", "data.dir", "data.fingerprint")
_MODEL = ("net.", "data.", "clean_snr")  # what else defines a trained model
_GIVEN = ("eval.", "sample.", "mesh.")  # sections of the present command
RUN = "dsl_run"  # the key of a run's config in the config.json of weights
_SAME_FOLDER = "."  # in a tokenizer's spec: where the weights are
_SHIPPED = pathlib.Path(__file__).parents[1] / "pretrained"
_REMOVED = (("net", "vocab"), ("train", "compilation_cache"))  # ignored keys


class Stored(NamedTuple):
  """What config.json says of a run or of exported weights."""

  config: config_lib.Config
  data_hash: str = ""  # of the training rows, "" if unknown
  is_exported: bool = False
  step: int = 0  # of exported weights, 0 if unknown


def shipped() -> dict[str, pathlib.Path]:
  """Returns the folders of the models in this package by name."""
  return {x.parent.name: x.parent for x in _SHIPPED.glob("*/config.json")}


def find(where: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of a workdir, of weights, or of a shipped model."""
  path = storage.to_path(where)
  if (path / "config.json").exists():
    return path
  names = shipped()
  if str(where) in names:
    return names[str(where)]
  raise errors.UserError(
    f"{where} holds no checkpoint and no weights: {path}/config.json cannot "
    "be read; train there first with --mode=train, or give a folder that "
    "dsl_jax.convert wrote, or the name of a shipped model, one of: "
    f"{', '.join(sorted(names)) or 'none yet'}."
  )


def stored(where: str | os.PathLike) -> Stored:
  """Reads the config.json of a model, see `find`."""
  path = find(where) / "config.json"
  fix = "choose the --workdir of a run, or make one with --mode=train."
  with errors.reading(str(path), fix):
    content = storage.read_json(path, fix)
    if "config" not in content and RUN not in content:
      raise errors.UserError(
        f"{path} lacks {RUN!r}, which has the tokenizer and clean_snr; write "
        f"a folder that has it: python -m dsl_jax.convert export {where} --out "
        "FOLDER (a raw MDLM may need --tokenizer and --clean_snr)."
      )
    is_exported = RUN in content
    content = content.get(RUN, content)
    config, data_hash = content["config"], content["data_hash"]
    step = content.get("step", 0)
    if type(data_hash) is not str or type(step) is not int:
      raise ValueError("data_hash is no text, or step no integer")
    for section, key in _REMOVED:
      config[section].pop(key, None)
    name, colon, file = config["data"]["tokenizer"].partition(":")
    if file == _SAME_FOLDER:
      config["data"]["tokenizer"] = f"{name}{colon}{path.parent}"
    try:
      cfg = config_lib.from_config_dict(config)
    except errors.UserError as error:
      raise errors.UserError(f"{path}: {error}") from error
    return Stored(cfg, data_hash, is_exported, step)


def describe(run: Stored, tokenizer: tokenizers.Tokenizer | None) -> dict:
  """Returns what `stored` reads back from the config.json of weights."""
  config = dataclasses.asdict(run.config)
  if tokenizer:
    name, fingerprint = tokenizer.name, tokenizer.fingerprint
    spec = f"{name}:{_SAME_FOLDER}" if tokenizer.files else name
    config["data"] |= {"tokenizer": spec, "fingerprint": fingerprint}
  return {RUN: {"config": config, "data_hash": run.data_hash, "step": run.step}}


def merge_overrides(
  where: str, own: config_lib.Config, cfg: config_lib.Config, given: set[str]
) -> config_lib.Config:
  """Returns a model's own config with what a command sets, the keys `given`.

  The rest of `cfg` is of a config file or its own.
  """
  old = config_lib.flatten(dataclasses.asdict(own))
  new = config_lib.flatten(dataclasses.asdict(cfg))
  for key, value in new.items():
    fixed = key.startswith(_MODEL) and key not in _FREE_KEYS + _ROWS
    # A config file of the run's own name may lack what it was trained with.
    if fixed and (key in given or cfg.name != own.name) and value != old[key]:
      raise errors.UserError(
        f"{key} is {value!r} and the model in {where} has {old[key]!r}; leave "
        "it out, and --config if that file sets it."
      )
    if key in given or key.startswith(_GIVEN):
      old[key] = value
  config = config_lib.to_config_dict(own)
  config.update_from_flattened_dict(old)
  return config_lib.from_config_dict(config)


def compare(workdir: str, cfg: config_lib.Config, data_hash: str) -> None:
  """Rejects a workdir of another run, which training would not continue."""
  if not (storage.to_path(workdir) / "config.json").exists():
    return
  run = stored(workdir)
  if run.is_exported:
    raise errors.UserError(
      f"--workdir {workdir} holds exported weights; choose a new one, and "
      f"--config.init_from={workdir} to start from them."
    )
  old = config_lib.flatten(dataclasses.asdict(run.config))
  new = config_lib.flatten(dataclasses.asdict(cfg))
  old["data hash"], new["data hash"] = run.data_hash, data_hash
  fixed = ["train.batch_size"]
  if cfg.optim.schedule == "cosine":  # its shape depends on the length
    fixed.append("train.steps")
  for key, value in new.items():
    free = key.startswith(_FREE_SECTIONS) or key in _FREE_KEYS + _ROWS
    if old[key] != value and (key in fixed or not free):
      raise errors.UserError(
        f"--workdir {workdir} belongs to another run: {key} is {old[key]!r} "
        f"there and {value!r} here; choose a new one."
      )


def check_writable(workdir: str) -> None:
  """Makes a workdir; raises a UserError if files cannot be written there."""
  try:
    probe = storage.make_folder(workdir) / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    probe.unlink(missing_ok=True)
  except OSError as error:
    raise errors.UserError(
      f"--workdir is {workdir}, which cannot be written "
      f"({storage.reason(error)}); choose another."
    ) from error


def claim(
  workdir: str, cfg: config_lib.Config, data_hash: str
) -> IO | contextlib.nullcontext:
  """Writes config.json, unless the workdir belongs to another run.

  Returns what to close at the end of the run; until then others are refused.
  """
  root = storage.to_path(workdir)
  compare(workdir, cfg, data_hash)
  if (root / "checkpoints").exists() and not (root / "config.json").exists():
    raise errors.UserError(
      f"{workdir} has checkpoints and no config.json; choose a new --workdir."
    )
  check_writable(workdir)
  if jax.process_index() != 0:
    return contextlib.nullcontext()
  try:
    lock = storage.lock(root, wait=False)
  except BlockingIOError as error:
    raise errors.UserError(
      f"--workdir {root} is in use by another run; wait until it ends, stop it "
      "or choose another."
    ) from error
  content = {"config": dataclasses.asdict(cfg), "data_hash": data_hash}
  storage.write_json(root / "config.json", content)
  return lock
