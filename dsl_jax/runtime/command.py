"""The command line: a mode, a config file, a workdir, typed overrides."""

import os
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors


class Mode(NamedTuple):
  """What --mode=NAME runs: a module's function of the module's own name.

  Attributes:
    module: of dsl_jax.modes.
    description: one line of --help.
    needs: its arguments, flags that must be given.
  """

  module: str
  description: str
  needs: tuple[str, ...] = ("config", "workdir")


# Flags that abbreviate a config key, and the modes that read the key.
_ABBREVIATIONS = {
  "text": ("eval.text", ("eval", "correct", "reproduce")),
  "table": ("eval.table", ("reproduce",)),
  "trace": ("sample.trace", ("sample",)),
  "topology": ("mesh.topology", ("plan",)),
}
_FLAGS = ["config", "workdir", "mode", *_ABBREVIATIONS]
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _split(args):
  """Returns {name: value} of --name=value and --name value, "" for none."""
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
    raise errors.UserError(
      f"--config is {config!r}, which is not a file; see configs/."
    )
  try:
    return config_dict.ConfigDict(runpy.run_path(path)["get_config"](arg))
  except errors.UserError:
    raise
  except Exception as error:  # the user's own file may do anything
    reason = repr(error)[:300]
    raise errors.UserError(f"{path} fails with {reason}; fix it.") from error


def _key(name, value, mode):
  """Returns the config key that a flag sets."""
  if match := re.fullmatch(r"(?:no)?config\.(.+)", name):
    return match[1]
  if name not in _ABBREVIATIONS:
    raise errors.UserError(
      f"unknown flag --{name}" + errors.nearest(name, _FLAGS)
    )
  if not value:
    raise errors.UserError(f"--{name} has no value; write --{name}=VALUE.")
  key, modes = _ABBREVIATIONS[name]
  if mode not in modes:
    raise errors.UserError(
      f"--{name} is {value!r}; it needs --mode={' or --mode='.join(modes)}."
    )
  return key


def _convert(key, text, kind):
  """Converts the text of an override to the type of its key."""
  try:
    if kind is bool:
      return _BOOLEANS[text.lower() or "true"]
    return kind(text)
  except (KeyError, ValueError) as error:
    raise errors.UserError(
      f"{key} is {text!r}; give a value of type {kind.__name__}."
    ) from error


def parse(
  argv: Sequence[str], modes: Mapping[str, Mode]
) -> tuple[config_lib.Config | None, str, str]:
  """Parses --config=FILE[:variant] --workdir=DIR --mode=M --config.key=value.

  --text=X abbreviates --config.eval.text=X, and so on. A boolean key is also
  set by --config.key alone, and reset by --noconfig.key.

  Args:
    argv: program name and arguments.
    modes: what --mode may be; the first is the default.

  Returns:
    The validated config, or None where the mode needs none and none is given;
    the workdir; the mode.

  Raises:
    errors.UserError: anything wrong with the above.
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
  config = _load(path)
  defaults = config_lib.flatten(config)
  for name, value in flags.items():
    key = _key(name, value, mode)
    if key not in defaults:
      hint = errors.nearest(key, defaults)
      raise errors.UserError(f"unknown config key {key!r}{hint}")
    text = "false" if name.startswith("noconfig.") else value
    typed = _convert(key, text, type(defaults[key]))
    config.update_from_flattened_dict({key: typed})
  return config_lib.from_config_dict(config), workdir, mode
