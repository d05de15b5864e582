"""The files of a workdir; WORKDIR/config.json says whose workdir it is."""

import dataclasses
import uuid

import jax

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage

# What may differ between the stored config and one that continues the run.
_FREE_SECTIONS = ("eval.", "sample.", "mesh.", "train.")
_FREE_KEYS = ("net.remat", "net.unroll", "net.attention", "name")
# The hash of the packed rows is compared instead of these.
_ROWS = ("data.corpus", "data.tokenizer", "data.dir")
_REMOVED = (("net", "vocab"), ("train", "compilation_cache"))  # ignored keys


def stored(workdir: str) -> tuple[config_lib.Config, str]:
  """Returns the config of the run in a workdir, and the hash of its rows."""
  path = storage.to_path(workdir) / "config.json"
  fix = "choose the --workdir of a run, or make one with --mode=train."
  with errors.reading(str(path), fix):
    content = storage.read_json(path, fix)
    config, data_hash = content["config"], content["data_hash"]
    for section, key in _REMOVED:
      config[section].pop(key, None)
    return config_lib.from_config_dict(config), data_hash


def compare(
  workdir: str, cfg: config_lib.Config, data_hash: str | None = None
) -> None:
  """Rejects a workdir whose stored config or rows are those of another run."""
  if not (storage.to_path(workdir) / "config.json").exists():
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


def check_writable(workdir: str) -> None:
  """Makes a workdir; raises a UserError if files cannot be written there."""
  try:
    probe = storage.make_folder(workdir) / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    probe.unlink(missing_ok=True)
  except OSError as error:
    raise errors.UserError(
      f"--workdir is {workdir}, which cannot be written "
      f"({error.strerror or error}); choose another."
    ) from error


def claim(workdir: str, cfg: config_lib.Config, data_hash: str) -> None:
  """Writes config.json, unless the workdir belongs to another run."""
  root = storage.to_path(workdir)
  compare(workdir, cfg, data_hash)
  if (root / "checkpoints").exists() and not (root / "config.json").exists():
    raise errors.UserError(
      f"{workdir} has checkpoints and no config.json; choose a new --workdir."
    )
  check_writable(workdir)
  if jax.process_index() == 0:
    content = {"config": dataclasses.asdict(cfg), "data_hash": data_hash}
    storage.write_json(root / "config.json", content)
