"""The command line: a mode, a config file, a workdir, typed overrides.

Unlike `ml_collections.config_flags`, in any order and with one-line errors.
"""

import dataclasses
import os
import runpy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors
from dsl_jax.runtime import workdir as workdir_lib


class Mode(NamedTuple):
  """What --mode=NAME calls: a module's function of the module's own name."""

  module: str  # of dsl_jax.modes
  description: str  # one line of --help
  arguments: tuple[str, ...] = ("config", "workdir")
  required: tuple[str, ...] = ("workdir",)  # flags, which trained models need


# Flags that abbreviate a config key, and the modes that read the key.
_ABBREVIATIONS = {
  "text": ("eval.text", ("eval", "correct", "reproduce")),
  "table": ("eval.table", ("reproduce",)),
  "trace": ("sample.trace", ("sample",)),
  "topology": ("mesh.topology", ("plan",)),
}
_BOOLEANS = {"": True, "true": True, "1": True, "false": False, "0": False}


def _split(args):
  """Returns {name: value} of --name=value and --name value, "" without one."""
  args, flags = list(args), {}
  while args:
    arg = args.pop(0)
    if not arg.startswith("-"):
      raise errors.UserError(f"{arg!r} is not a flag; write --name=value.")
    name, equals, value = arg.lstrip("-").partition("=")
    if not equals and args and not args[0].startswith("--"):
      value = args.pop(0)
    flags[name] = value
  return flags


def _load(config):
  """Calls get_config of FILE[:variant]."""
  path, _, arg = config.partition(":")
  if not os.path.isfile(path):
    raise errors.UserError(f"--config is {config!r}, not a file; see configs/.")
  try:
    return config_dict.ConfigDict(runpy.run_path(path)["get_config"](arg))
  except errors.UserError:
    raise
  except Exception as error:  # the user's own file may do anything
    reason = repr(error)[:300]
    raise errors.UserError(f"{path} fails with {reason}; fix it.") from error


def _stored(workdir, path):
  """Returns the config of a model, None if --config stands in for it."""
  try:
    cfg = workdir_lib.stored(workdir).config
  except errors.UserError:
    if path:  # the mode says so once more, after its other checks
      return None
    raise
  # The mesh is of a machine and not of a model.
  return dataclasses.replace(cfg, mesh=config_lib.Mesh())


def _override(name, text, mode, defaults):
  """Returns the config key that a flag sets, and the value in its type."""
  prefix, _, key = name.partition(".")
  if not key or prefix not in ("config", "noconfig"):
    if name not in _ABBREVIATIONS:
      known = ["config", "workdir", "mode", *_ABBREVIATIONS]
      hint = errors.nearest(name, known)
      raise errors.UserError(f"unknown flag --{name}{hint}")
    key, modes = _ABBREVIATIONS[name]
    if not text or mode not in modes:
      raise errors.UserError(
        f"--{name} is {text!r}; write --{name}=VALUE after "
        f"--mode={' or --mode='.join(modes)}."
      )
  if key not in defaults:
    hint = errors.nearest(key, defaults)
    raise errors.UserError(f"unknown config key {key!r}{hint}")
  text, kind = "false" if prefix == "noconfig" else text, type(defaults[key])
  try:
    return key, _BOOLEANS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError) as error:
    raise errors.UserError(
      f"{key} is {text!r}; give a value of type {kind.__name__}."
    ) from error


def parse(
  argv: Sequence[str], modes: Mapping[str, Mode]
) -> tuple[config_lib.Config, str, str]:
  """Parses --config=FILE[:variant] --workdir=DIR --mode=M --config.key=value.

  --text=X abbreviates --config.eval.text=X, and so on; the first mode is the
  default. Returns the config, the workdir and the mode. The config of a mode
  that does not require --config is that of the model, see `workdir.adopt`.
  """
  flags = _split(argv[1:])
  mode = flags.pop("mode", next(iter(modes)))
  if mode not in modes:
    raise errors.UserError(f"--mode is {mode!r}" + errors.nearest(mode, modes))
  required = modes[mode].required
  if not required and not flags.get("workdir"):
    required = ("config",)
  for name in required:
    if not flags.get(name):
      raise errors.UserError(f"--{name} is missing; write --{name}=PATH.")
  path, workdir = flags.pop("config", ""), flags.pop("workdir", "")
  own = None if "config" in required else _stored(workdir, path)
  config = _load(path) if path or not own else config_lib.to_config_dict(own)
  defaults = config_lib.flatten(config.to_dict())
  given = dict(_override(name, x, mode, defaults) for name, x in flags.items())
  config.update_from_flattened_dict(given)
  cfg = config_lib.from_config_dict(config)
  if own:
    cfg = workdir_lib.adopt(workdir, own, cfg, set(given))
  return cfg, workdir, mode
