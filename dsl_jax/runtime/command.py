"""The command line: flags, a config file, typed overrides."""

import os
import re
import runpy
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors

# Flags that are short for a config key, and the modes that read it.
_SHORT = {
  "text": ("eval.text", ("eval", "correct", "reproduce")),
  "table": ("eval.table", ("reproduce",)),
  "trace": ("sample.trace", ("sample",)),
  "topology": ("mesh.topology", ("plan",)),
}


def parse(
  argv: Sequence[str],
  modes: Sequence[str],
  without_workdir: Sequence[str] = (),
) -> tuple[config_lib.Config, str, str]:
  """Reads --config=FILE[:variant] --workdir=DIR --mode=M --config.key=value.

  --text=X is short for --config.eval.text=X, and so on.

  Args:
    argv: program name and arguments.
    modes: what --mode may be; the first is its default.
    without_workdir: those that need no --workdir.

  Returns:
    The validated config, the workdir and the mode.

  Raises:
    errors.UserError: anything wrong with the above.
  """
  values = flags.FlagValues()
  names = {"config": "", "workdir": "", "mode": modes[0]}
  for name, default in names.items():
    flags.DEFINE_string(name, default, "", values)
  try:
    overrides = values(argv, known_only=True)
    if values.mode not in modes:
      raise errors.UserError(
        f"--mode is {values.mode!r}" + errors.nearest(values.mode, modes)
      )
    for name in ("config", "workdir"):
      needed = name == "config" or values.mode not in without_workdir
      if needed and not values[name].value:
        raise errors.UserError(f"--{name} is missing; write --{name}=PATH.")
    config = _load(values.config)
    overrides = [_spelled_out(arg, values.mode) for arg in overrides]
    names = [*names, *_SHORT]
    _check_names(overrides[1:], config_lib.flatten(config), names)
    fields = flags.FlagValues()
    config_flags.DEFINE_config_dict(
      "config", config, "", fields, sys_argv=overrides
    )
    extra = fields(overrides)[1:]
  except flags.Error as error:
    raise errors.UserError(str(error)) from error
  if extra:
    raise errors.UserError(f"{extra[0]!r} is no flag; write --name=value.")
  cfg = config_lib.from_config_dict(fields.config)
  return cfg, values.workdir, values.mode


def _spelled_out(arg, mode):
  """The override that a short flag stands for."""
  name, _, value = arg.lstrip("-").partition("=")
  if not arg.startswith("-") or name not in _SHORT:
    return arg
  key, modes = _SHORT[name]
  if not value:
    raise errors.UserError(f"--{name} has no value; write --{name}=VALUE.")
  if mode not in modes:
    raise errors.UserError(
      f"--{name} is {value!r}; it needs --mode={' or --mode='.join(modes)}."
    )
  return f"--config.{key}={value}"


def _load(config):
  """Runs get_config of FILE[:variant]."""
  path, _, arg = config.partition(":")
  if not os.path.isfile(path):
    raise errors.UserError(
      f"--config is {config!r}, which is no file; see configs/."
    )
  try:
    return runpy.run_path(path)["get_config"](arg)
  except errors.UserError:
    raise
  except Exception as error:  # the user's own file may do anything
    told = repr(error)[:300]
    raise errors.UserError(f"{path} fails with {told}; mend it.") from error


def _check_names(args, keys, names):
  """Refuses unknown flags and config keys with the nearest known name."""
  for arg in args:
    key = re.match(r"--?(?:no)?config\.([^=]+)", arg)
    if key and key[1] not in keys:
      hint = errors.nearest(key[1], keys)
      raise errors.UserError(f"unknown config key {key[1]!r}{hint}")
    if not key and arg.startswith("-"):
      flag = arg.lstrip("-").partition("=")[0]
      if flag in names:  # one that takes its value after =
        raise errors.UserError(f"--{flag} has no value; write --{flag}=VALUE.")
      hint = errors.nearest(flag, names)
      raise errors.UserError(f"unknown flag --{flag}{hint}")
