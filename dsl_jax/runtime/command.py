"""The command line: a mode, a config file, a workdir, typed overrides.

Unlike `ml_collections.config_flags`, in any order and with one-line errors.
"""

import dataclasses
import inspect
import pathlib
import runpy
import typing
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import config_dict

from dsl_jax.runtime import config as config_lib
from dsl_jax.runtime import errors, storage
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


def _find_configs():
  """The files of --config=NAME by name, of the wheel or else the checkout."""
  folder = pathlib.Path(__file__).parent.parent / "configs"
  folder = folder if folder.is_dir() else folder.parent.parent / "configs"
  return {path.stem: str(path) for path in sorted(folder.glob("*.py"))}


def _describe_keys(section, prefix=""):
  """Yields a line for every key: name, default or type, and its comment."""
  kinds = typing.get_type_hints(section)
  lines = inspect.getsource(section).splitlines()
  for field in dataclasses.fields(section):
    name, kind = prefix + field.name, kinds[field.name]
    if dataclasses.is_dataclass(kind):
      yield from _describe_keys(kind, name + ".")
      continue
    (line,) = (x for x in lines if x.startswith(f"  {field.name}: "))
    required = field.default is dataclasses.MISSING
    value = kind.__name__ if required else field.default
    yield f"  {f'{name}={value}':<33} {line.partition('  # ')[2]}"


def help_text(intro: str, modes: Mapping[str, Mode]) -> str:
  """Returns what --help prints: modes, flags that abbreviate keys, keys."""
  lines = [intro, "modes:"]
  lines += [f"  {name:<12}{mode.description}" for name, mode in modes.items()]
  configs = ", ".join(_find_configs())
  lines += ["\nflags:", f"  --config=NAME[:VARIANT] of {configs}, or FILE"]
  lines += ["  --workdir=DIR of the run", "  --mode=MODE, which may come first"]
  for name, (key, of) in _ABBREVIATIONS.items():
    lines.append(f"  --{name}=X is --config.{key}=X of {', '.join(of)}")
  lines += ["\nkeys, as --config.KEY=VALUE, with their defaults:"]
  return "\n".join([*lines, *_describe_keys(config_lib.Config)])


def _split(args, modes):
  """Returns {name: value} of --name=value and --name value, "" without one.

  The first argument may be a mode.
  """
  args, flags = list(args), {}
  if args and args[0] in modes:
    flags["mode"] = args.pop(0)
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
  """Calls get_config of FILE[:variant] or of a config of the package."""
  path, arg, known = config, "", _find_configs()
  if not storage.to_path(path).is_file():  # the last colon is before a variant
    path, _, arg = config.rpartition(":") if ":" in config else (config, "", "")
    path = path if path and storage.to_path(path).is_file() else known.get(path)
  if not path:
    hint = errors.nearest(config, known)
    raise errors.UserError(f"--config is {config!r}, not a file{hint}")
  try:
    content = runpy.run_path(str(storage.local(path)))
    return config_dict.ConfigDict(content["get_config"](arg))
  except errors.UserError:
    raise
  except Exception as error:  # the user's own file may do anything
    reason = repr(error)[:300]
    raise errors.UserError(f"{path} fails with {reason}; fix it.") from error


def _suggest(name, defaults):
  """A hint for an unknown flag, which may be a key without "config."."""
  for key in defaults:
    if f".{key}".endswith(f".{name}"):
      return f"; did you mean '--config.{key}'?"
  known = ["config", "workdir", "mode", *_ABBREVIATIONS]
  known += [f"config.{key}" for key in defaults]
  return errors.nearest(f"--{name}", [f"--{flag}" for flag in known])


def _stored(workdir, path):
  """Returns the config of a model, None if there is --config instead."""
  try:
    cfg = workdir_lib.stored(workdir).config
  except errors.UserError:
    if path:  # the mode says so once more, after its other checks
      return None
    raise
  # The mesh is of a machine and not of a model.
  return dataclasses.replace(cfg, mesh=config_lib.Mesh())


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
      hint = _suggest(name, defaults)
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
) -> tuple[config_lib.Config, str, str]:
  """Parses --config=NAME[:variant] --workdir=DIR --mode=M --config.key=value.

  The first mode is the default. Returns the config, the workdir and the mode.
  The config of a mode that does not require --config is that of the model, see
  `workdir.merge_overrides`.
  """
  flags = _split(argv[1:], modes)
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
  cfg = config_lib.from_config_dict(_load(path)) if path or not own else own
  config = config_lib.to_config_dict(cfg)
  defaults = config_lib.flatten(config.to_dict())
  given = dict(_override(name, x, mode, defaults) for name, x in flags.items())
  config.update_from_flattened_dict(given)
  cfg = config_lib.from_config_dict(config)
  if own:
    cfg = workdir_lib.merge_overrides(workdir, own, cfg, set(given))
  return cfg, workdir, mode
