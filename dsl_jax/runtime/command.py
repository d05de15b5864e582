"""The command line: a mode, a config file, a workdir, typed overrides.

Unlike `ml_collections.config_flags`, in any order and with one-line errors.
"""

import runpy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage


class Mode(NamedTuple):
  """What --mode=NAME calls: a module's function of the module's own name."""

  module: str  # of dsl_jax.modes
  description: str  # one line of --help
  needs: tuple[str, ...] = ("config", "workdir")  # required flags, arguments


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
  path, arg = config, ""
  if not storage.to_path(path).is_file():  # the last colon is before a variant
    path, _, arg = config.rpartition(":")
  if not path or not storage.to_path(path).is_file():
    raise errors.UserError(f"--config is {config!r}, not a file; see configs/.")
  try:
    content = runpy.run_path(str(storage.local(path)))
    return config_dict.ConfigDict(content["get_config"](arg))
  except errors.UserError:
    raise
  except Exception as error:  # the user's own file may do anything
    reason = repr(error)[:300]
    raise errors.UserError(f"{path} fails with {reason}; fix it.") from error


def _value(text, kind):
  """Converts the text of a flag; an integer may be written 1e6."""
  if kind is bool:
    return _BOOLEANS[text.lower()]
  if kind is int and "e" in text.lower() and float(text).is_integer():
    return int(float(text))
  return kind(text)


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
    if kind is str and text == "None" and key != "sample.prompt":
      text = ""  # not given
    return key, _value(text, kind)
  except (KeyError, ValueError) as error:
    raise errors.UserError(
      f"{key} is {text!r}; give a value of type {kind.__name__}."
    ) from error


def parse(
  argv: Sequence[str], modes: Mapping[str, Mode]
) -> tuple[config_lib.Config | None, str, str]:
  """Parses --config=FILE[:variant] --workdir=DIR --mode=M --config.key=value.

  --text=X abbreviates --config.eval.text=X, and so on; the first mode is the
  default. Returns the config (None if the mode needs none and none is given),
  the workdir and the mode.
  """
  flags = _split(argv[1:])
  mode = flags.pop("mode", next(iter(modes)))
  if mode not in modes:
    raise errors.UserError(f"--mode is {mode!r}" + errors.nearest(mode, modes))
  for name in modes[mode].needs:
    if not flags.get(name):
      raise errors.UserError(f"--{name} is missing; write --{name}=PATH.")
  path, workdir = flags.pop("config", ""), flags.pop("workdir", "")
  if not path and not flags:
    return None, workdir, mode
  config = config_lib.to_config_dict(config_lib.from_config_dict(_load(path)))
  defaults = config_lib.flatten(config.to_dict())
  config.update_from_flattened_dict(
    dict(_override(name, text, mode, defaults) for name, text in flags.items())
  )
  return config_lib.from_config_dict(config), workdir, mode
