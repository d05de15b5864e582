"""MkDocs hook: tables of config keys and flags from the code, and MathML.

A page asks for generated text with a line such as `<!-- generate: config -->`;
`GENERATORS` lists the words. Formulas in $...$ and $$...$$ become MathML, which
browsers draw without a script or a connection.
"""

import ast
import dataclasses
import html
import inspect
import io
import os
import re
import subprocess
import sys
import tokenize

from dsl_jax import main
from dsl_jax.modes import named_samplers
from dsl_jax.nets import config as net_config
from dsl_jax.runtime import command
from dsl_jax.runtime import config as config_lib

_REQUEST = re.compile(r"^<!-- generate: (.+?) -->$", re.MULTILINE)
_FORMULA = re.compile(
  r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>',
  re.DOTALL,
)


def comments(cls: type) -> dict[str, str]:
  """Returns the comment on, or directly above, the line of every field."""
  source = inspect.getsource(cls)
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  texts = {x.start[0]: x.string for x in tokens if x.type == tokenize.COMMENT}
  lines, found = source.splitlines(), {}
  for node in ast.parse(source).body[0].body:
    if not isinstance(node, ast.AnnAssign):
      continue
    numbers = [n for n in range(node.lineno, node.end_lineno + 1) if n in texts]
    above = node.lineno - 1
    while lines[above - 1].lstrip().startswith("#"):
      numbers.insert(0, above)
      above -= 1
    text = " ".join(texts[n].lstrip("# ") for n in numbers)
    found[node.target.id] = text
  return found


def _row(*cells) -> str:
  escaped = [str(cell).replace("|", "\\|") for cell in cells]
  return f"| {' | '.join(escaped)} |"


def _section(cls: type, prefix: str) -> list[str]:
  """Returns the table of one section of the config."""
  rows = ["| key | default | values | what |", "|---|---|---|---|"]
  words = getattr(net_config, "_WORDS", {}) if prefix == "net." else {}
  for field in dataclasses.fields(cls):
    kind = field.type if isinstance(field.type, str) else field.type.__name__
    if field.name == "_" or field.default_factory is not dataclasses.MISSING:
      continue
    if dataclasses.is_dataclass(field.type):  # config.net, a section
      continue
    required = field.default is dataclasses.MISSING
    default = "required" if required else f"`{field.default!r}`"
    values = field.metadata.get("fix", "").removeprefix("use ")
    values = values or " or ".join(words.get(field.name, ())) or kind
    text = comments(cls).get(field.name, "")
    rows.append(_row(f"`{prefix}{field.name}`", default, values, text))
  return rows


def config() -> str:
  """Returns a heading and a table for every section of the config."""
  lines = ["## The run", "", *_section(config_lib.Config, "")]
  for field in dataclasses.fields(config_lib.Config):
    if dataclasses.is_dataclass(field.type):
      about = inspect.getdoc(field.type).partition("\n")[0]
      lines += ["", f"## `{field.name}`", "", about, ""]
      lines += _section(field.type, f"{field.name}.")
  return "\n".join(lines)


def modes() -> str:
  """Returns a table of the modes."""
  rows = ["| `--mode` | required flags | what |", "|---|---|---|"]
  for name, mode in main.MODES.items():
    needs = " ".join(f"`--{flag}`" for flag in mode.needs)
    rows.append(_row(f"`{name}`", needs, mode.description))
  return "\n".join(rows)


def flags() -> str:
  """Returns a table of the flags that abbreviate a config key."""
  rows = ["| flag | config key | modes |", "|---|---|---|"]
  for name, (key, names) in command._ABBREVIATIONS.items():
    rows.append(_row(f"`--{name}`", f"`{key}`", ", ".join(names)))
  return "\n".join(rows)


def samplers() -> str:
  """Returns the names of all samplers."""
  return ", ".join(f"`{name}`" for name in named_samplers.names())


def usage(module: str) -> str:
  """Returns what `python -m MODULE --help` prints, as a block of code."""
  run = [sys.executable, "-m", module, "--help"]
  environment = os.environ | {"COLUMNS": "80", "JAX_PLATFORMS": "cpu"}
  result = subprocess.run(run, capture_output=True, text=True, env=environment)
  text = result.stdout.replace(os.getcwd() + "/", "").strip()
  assert text, f"{module} --help prints nothing: {result.stderr}"
  return f"```text\n{text}\n```"


GENERATORS = {f.__name__: f for f in (config, modes, flags, samplers, usage)}


def _generate(match: re.Match) -> str:
  name, *arguments = match[1].split()
  return GENERATORS[name](*arguments)


def on_page_markdown(markdown: str, **_) -> str:
  """Fills in what a page asks for."""
  return _REQUEST.sub(_generate, markdown)


def _mathml(match: re.Match) -> str:
  from latex2mathml import converter

  display = "block" if match[1] == "[" else "inline"
  return converter.convert(html.unescape(match[2]).strip(), display=display)


def on_page_content(content: str, **_) -> str:
  """Turns formulas into MathML."""
  return _FORMULA.sub(_mathml, content)
