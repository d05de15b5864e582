"""MkDocs hook: tables of config keys and flags from the code, and MathML.

A page asks for text of `GENERATORS` with a line `<!-- generate: config -->`.
Formulas in $...$ become MathML, which browsers draw without a script.
"""

import dataclasses
import html
import inspect
import os
import re
import subprocess
import sys

from dsl_jax import main, samplers
from dsl_jax.modes import named_samplers
from dsl_jax.runtime import command
from dsl_jax.runtime import config as config_lib

_REQUEST = re.compile(r"^<!-- generate: (\w+) ?(.*?) -->$", re.MULTILINE)
_PRODUCT = re.compile(r"<(\w+, [^<>]*)>")  # <z, e(v)> in a docstring, not HTML
_FORMULA = re.compile(
  r'(?s)<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>'
)


def _table(titles, rows) -> str:
  lines = [titles, ["---"] * len(titles), *rows]
  cells = [[str(x).replace("|", "\\|") for x in line] for line in lines]
  return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def comments(cls: type) -> dict[str, str]:
  """Returns the comment on the line of every field, after those above it."""
  found, above = {}, []
  for line in inspect.getsource(cls).splitlines():
    code, _, comment = line.partition("#")
    if comment and not code.strip():
      above.append(comment.strip())
      continue
    if field := re.match(r"  (\w+): ", code):
      text = " ".join([*above, comment.strip()]).strip()
      found[field[1]] = html.escape(text, quote=False)
    above = []
  return found


def _fields(cls: type, prefix: str = "") -> str:
  """Returns the table of a dataclass: name, comment, default, values."""
  rows, texts = [], comments(cls)
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):  # a section has its own table
      continue
    required = field.default is dataclasses.MISSING
    default = "required" if required else f"`{field.default!r}`"
    kind = getattr(field.type, "__name__", "").replace("Any", "")
    values = field.metadata.get("fix", "").removeprefix("use ") or kind
    rows.append([f"`{prefix}{field.name}`", texts[field.name], default, values])
  return _table(["name", "what", "default", "values"], rows)


def config() -> str:
  """Returns a heading and a table for every section of the config."""
  lines = ["## The run", _fields(config_lib.Config)]
  for field in dataclasses.fields(config_lib.Config):
    if dataclasses.is_dataclass(field.type):
      about = inspect.getdoc(field.type).partition("\n")[0]
      table = _fields(field.type, f"{field.name}.")
      lines += [f"## `{field.name}`", about, table]
  return "\n\n".join(lines)


def modes() -> str:
  rows = [
    [f"`{name}`", " ".join(f"`--{x}`" for x in mode.required), mode.description]
    for name, mode in main.MODES.items()
  ]
  return _table(["`--mode`", "required flags", "what"], rows)


def flags() -> str:
  flags = command._ABBREVIATIONS.items()
  rows = [[f"`--{x}`", f"`{key}`", ", ".join(m)] for x, (key, m) in flags]
  return _table(["flag", "config key", "modes"], rows)


def usage(module: str) -> str:
  """Returns what `python -m MODULE --help` prints, as a block of code."""
  environment = os.environ | {"COLUMNS": "80", "JAX_PLATFORMS": "cpu"}
  run = [sys.executable, "-m", module, "--help"]
  result = subprocess.run(run, env=environment, capture_output=True, text=True)
  text = result.stdout.replace(os.getcwd() + "/", "").strip()
  return f"```text\n{text}\n```"


GENERATORS = {
  "config": config,
  "flags": flags,
  "modes": modes,
  "names": lambda: ", ".join(f"`{name}`" for name in named_samplers.names()),
  "options": lambda: _fields(samplers.Options),
  "usage": usage,
}


def on_page_markdown(markdown: str, **_) -> str:
  """Fills in what a page asks for."""
  return _REQUEST.sub(lambda x: GENERATORS[x[1]](*x[2].split()), markdown)


def _mathml(match: re.Match) -> str:
  from latex2mathml import converter  # of the extra `docs`

  display = "block" if match[1] == "[" else "inline"
  return converter.convert(html.unescape(match[2]).strip(), display=display)


def on_page_content(content: str, **_) -> str:
  """Turns formulas into MathML, and keeps what only looks like HTML."""
  return _FORMULA.sub(_mathml, _PRODUCT.sub(r"&lt;\1&gt;", content))
