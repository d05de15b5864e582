"""The claim of a run on its workdir: WORKDIR/config.json."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib

import jax

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

# What may differ between a workdir and a config that continues it.
_FREE_SECTIONS = ("eval.", "sample.", "mesh.")
_FREE_KEYS = {
  "name",
  "data.corpus",  # the hash of the packed rows stands for these
  "data.tokenizer",
  "data.dir",
  "net.remat",
  "net.unroll",
  "net.attention",
  "net.vocab",
  "train.microbatches",
  "train.steps_per_call",
  "train.steps",
  "train.log_every",
  "train.eval_every",
  "train.eval_batches",
  "train.checkpoint_every",
  "train.keep",
  "train.max_minutes",
  "train.profile_at",
  "train.profile_steps",
  "train.compilation_cache",
}


def claim(workdir: str, cfg: config_lib.Config, data_hash: str) -> None:
  """Makes the workdir this run's, or refuses one that is another's.

  Args:
    workdir: created if absent.
    cfg: the config; what does not change the run may differ from the stored.
    data_hash: of the packed training rows.

  Raises:
    errors.UserError: unwritable, or the workdir of another run; then nothing
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
      run = {"config": dataclasses.asdict(cfg), "data_hash": data_hash}
      write(workdir, "config.json", json.dumps(run, indent=2))
  except OSError as error:
    raise errors.UserError(
      f"--workdir is {workdir}, which cannot be written ({error.strerror}); "
      "choose another."
    ) from error


def make_folder(key: str, path: str) -> None:
  """Makes a folder of the user's own choice.

  Raises:
    errors.UserError: it cannot be written; names the config's key.
  """
  with contextlib.suppress(OSError):  # told below
    os.makedirs(path, exist_ok=True)
  if not (os.path.isdir(path) and os.access(path, os.W_OK)):
    raise errors.UserError(
      f"{key} is {path!r}, which cannot be written; choose another folder."
    )


def write_json(workdir: str, name: str, tree: dict) -> None:
  """Writes a tree of dicts, lists and numbers; null for a missing number."""
  write(workdir, name, json.dumps(_finite(tree), indent=2, allow_nan=False))


def write(workdir: str, name: str, text: str) -> None:
  """Writes a file of a workdir, whole or not at all."""
  target = pathlib.Path(workdir) / name
  fresh = target.with_name(target.name + ".tmp")
  fresh.write_text(text, encoding="utf-8")
  os.replace(fresh, target)


def compare(
  workdir: str, cfg: config_lib.Config, data_hash: str | None = None
) -> None:
  """Refuses a workdir whose stored config is of another run.

  Args:
    workdir: may be new or empty.
    cfg: the config.
    data_hash: of the packed training rows; None leaves it out.

  Raises:
    errors.UserError: names the first key that differs and both values.
  """
  if not (pathlib.Path(workdir) / "config.json").exists():
    return
  old, old_hash = stored(workdir)
  free = _FREE_KEYS
  if cfg.optim.schedule == "cosine":  # its shape depends on the length
    free = free - {"train.steps"}
  old_flat = config_lib.flatten(dataclasses.asdict(old))
  new_flat = config_lib.flatten(dataclasses.asdict(cfg))
  if data_hash:
    old_flat["data hash"], new_flat["data hash"] = old_hash, data_hash
  for key, value in new_flat.items():
    if key in free or key.startswith(_FREE_SECTIONS):
      continue
    if old_flat[key] != value:
      raise errors.UserError(
        f"--workdir {workdir} belongs to another run: {key} is "
        f"{old_flat[key]!r} there and {value!r} here; choose a new one."
      )


def stored(workdir: str) -> tuple[config_lib.Config, str]:
  """Returns the config and the data hash of the run in a workdir.

  Raises:
    errors.UserError: there is none, or it is damaged.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    run = json.loads(path.read_text())
    return config_lib.from_config_dict(run["config"]), run["data_hash"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f"{path} is not the config of a run ({error}); choose another --workdir."
    ) from error


def _finite(tree):
  """The tree with None where a number is NaN or infinite: JSON has neither."""
  if isinstance(tree, dict):
    return {key: _finite(value) for key, value in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [_finite(value) for value in tree]
  missing = isinstance(tree, float) and not math.isfinite(tree)
  return None if missing else tree
