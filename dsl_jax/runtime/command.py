"""The command line: flags, a config file, typed overrides."""

import os
import re
import runpy
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_flags

from dsl_jax.runtime import errors, schema

_SHORT = {"text": "eval.text", "table": "eval.table"}  # flags that are keys


def parse(
  argv: Sequence[str],
  modes: Sequence[str],
  special: Mapping[str, str] | None = None,
) -> tuple[schema.Config, str, str]:
  """Reads --config=FILE[:variant] --workdir=DIR --mode=M --config.key=value.

  --text=X and --table=X are short for --config.eval.text=X and so on.

  Args:
    argv: program name and arguments.
    modes: what --mode may be; the first is its default.
    special: {mode: the flag it takes instead of --workdir}.

  Returns:
    The validated config, workdir (or what stands for it) and mode.

  Raises:
    errors.UserError: anything wrong with the above.
  """
  argv = [_spelled_out(arg) for arg in argv]
  values, special = flags.FlagValues(), special or {}
  names = {"config": "", "workdir": "", "mode": modes[0]}
  for name, default in (names | dict.fromkeys(special.values(), "")).items():
    flags.DEFINE_string(name, default, "", values)
  try:
    overrides = values(argv, known_only=True)
    target = special.get(values.mode, "workdir")
    for name in ("config", target):
      if not values[name].value:
        kind = "CHIP:SHAPE" if name == "topology" else "PATH"
        raise errors.UserError(f"--{name} is missing; write --{name}={kind}.")
    if values.mode not in modes:
      raise errors.UserError(
        f"--mode is {values.mode!r}" + errors.nearest(values.mode, modes)
      )
    config = _load(values.config)
    names = [*values, *_SHORT]
    _check_names(overrides[1:], schema.flatten(config), names)
    fields = flags.FlagValues()
    config_flags.DEFINE_config_dict(
      "config", config, "", fields, sys_argv=overrides
    )
    extra = fields(overrides)[1:]
  except flags.Error as error:
    raise errors.UserError(str(error)) from error
  if extra:
    raise errors.UserError(f"{extra[0]!r} is no flag; write --name=value.")
  cfg = schema.from_config_dict(fields.config)
  return cfg, values[target].value, values.mode


def _spelled_out(arg):
  """The override that a short flag stands for."""
  name, equals, value = arg.lstrip("-").partition("=")
  if equals and arg.startswith("-") and name in _SHORT:
    return f"--config.{_SHORT[name]}={value}"
  return arg


def take(argv: Sequence[str], name: str) -> tuple[list[str], str]:
  """Takes --name=VALUE off a command line.

  Args:
    argv: program name and arguments.
    name: of a flag that one mode alone has.

  Returns:
    The other arguments, and the last value or "".

  Raises:
    errors.UserError: the flag without a value.
  """
  rest, value = [], ""
  for arg in argv:
    flag, _, given = arg.partition("=")
    if flag not in (f"--{name}", f"-{name}"):
      rest.append(arg)
    elif given:
      value = given
    else:
      raise errors.UserError(f"--{name} has no value; write --{name}=FILE.")
  return rest, value


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
    raise errors.UserError(f"{path} fails with {error!r}; mend it.") from error


def _check_names(args, keys, names):
  """Refuses unknown flags and config keys with the nearest known name."""
  for arg in args:
    key = re.match(r"--?(?:no)?config\.([^=]+)", arg)
    if key and key[1] not in keys:
      hint = errors.nearest(key[1], keys)
      raise errors.UserError(f"unknown config key {key[1]!r}{hint}")
    if not key and arg.startswith("-"):
      flag = arg.lstrip("-").partition("=")[0]
      hint = errors.nearest(flag, names)
      raise errors.UserError(f"unknown flag --{flag}{hint}")
