"""The files of a workdir; WORKDIR/config.json says whose workdir it is."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib

import jax

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

# What may differ between the stored config and one that continues the run.
_FREE_SECTIONS = ("eval.", "sample.", "mesh.", "train.")
_FREE_KEYS = ("net.remat", "net.unroll", "net.attention", "name")
# The hash of the packed rows is compared instead of these.
_ROWS = ("data.corpus", "data.tokenizer", "data.dir")


def stored(workdir: str) -> tuple[config_lib.Config, str]:
  """Returns the config and the data hash of the run in a workdir.

  Raises:
    errors.UserError: config.json is absent or damaged.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    config, data_hash = content["config"], content["data_hash"]
    for section, key in config_lib.REMOVED:
      config[section].pop(key, None)
    return config_lib.from_config_dict(config), data_hash
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{path} is not the config of a run ({error}); choose another --workdir."
    ) from error


def compare(
  workdir: str, cfg: config_lib.Config, data_hash: str | None = None
) -> None:
  """Rejects a workdir whose stored config is that of another run.

  Args:
    workdir: may be new or empty.
    cfg: the config.
    data_hash: of the packed training rows; None is not compared.

  Raises:
    errors.UserError: names the first key that differs and both values.
  """
  if not (pathlib.Path(workdir) / "config.json").exists():
    return
  old_cfg, old_hash = stored(workdir)
  old = config_lib.flatten(dataclasses.asdict(old_cfg))
  new = config_lib.flatten(dataclasses.asdict(cfg))
  if data_hash:
    old["data hash"], new["data hash"] = old_hash, data_hash
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


def write(workdir: str, name: str, text: str) -> None:
  """Writes a file of a workdir, completely or not at all."""
  target = pathlib.Path(workdir) / name
  temporary = target.with_name(target.name + ".tmp")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, target)


def claim(workdir: str, cfg: config_lib.Config, data_hash: str) -> None:
  """Writes config.json, unless the workdir belongs to another run.

  Args:
    workdir: created if absent.
    cfg: the config; may differ from the stored one in the free keys.
    data_hash: of the packed training rows.

  Raises:
    errors.UserError: not writable, or the workdir of another run; then nothing
      is written.
  """
  root = pathlib.Path(workdir)
  compare(workdir, cfg, data_hash)
  if (root / "checkpoints").exists() and not (root / "config.json").exists():
    raise errors.UserError(
      f"{workdir} has checkpoints and no config.json; choose a new --workdir."
    )
  try:
    root.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      stored = {"config": dataclasses.asdict(cfg), "data_hash": data_hash}
      write(workdir, "config.json", json.dumps(stored, indent=2))
  except OSError as error:
    raise errors.UserError(
      f"--workdir is {workdir}, which cannot be written ({error.strerror}); "
      "choose another."
    ) from error


def make_folder(key: str, path: str) -> None:
  """Makes a folder that a config key names.

  Raises:
    errors.UserError: it cannot be written; names the key.
  """
  with contextlib.suppress(OSError):  # reported below
    os.makedirs(path, exist_ok=True)
  if not (os.path.isdir(path) and os.access(path, os.W_OK)):
    raise errors.UserError(
      f"{key} is {path!r}, which cannot be written; choose another folder."
    )


def _finite(tree):
  """Returns the tree with None for NaN and infinities, which JSON lacks."""
  if isinstance(tree, dict):
    return {key: _finite(value) for key, value in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [_finite(value) for value in tree]
  if isinstance(tree, float) and not math.isfinite(tree):
    return None
  return tree


def write_json(workdir: str, name: str, tree: dict) -> None:
  """Writes a tree of dicts, lists and numbers; null for NaN and infinity."""
  text = json.dumps(_finite(tree), indent=2, allow_nan=False)
  write(workdir, name, text)
