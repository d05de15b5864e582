"""The documentation: its code runs, its tables and messages are the code's."""

import ast
import importlib.util
import pathlib
import re
from xml.etree import ElementTree

import pytest

from dsl_jax.runtime import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
  r"(<!-- not run.*?-->\n)?^```python\n(.*?)^```$", re.M | re.S
)


def blocks(page: pathlib.Path) -> list[str]:
  """Blocks of Python without the mark `<!-- not run: why -->`."""
  matches = BLOCK.finditer(page.read_text(encoding="utf-8"))
  return [match[2] for match in matches if not match[1]]


def name(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", filter(blocks, PAGES), ids=name)
def test_code_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  scope: dict = {}
  for block in blocks(page):
    exec(compile(block, name(page), "exec"), scope)


@pytest.fixture(scope="module")
def gen():
  spec = importlib.util.spec_from_file_location("gen", ROOT / "docs/gen.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_config_key_has_a_row_and_a_comment(gen):
  table = gen.config()
  net = config_lib.NetConfig(27, 32, 1, 2, 8)
  config = config_lib.to_config_dict(config_lib.Config("a run", net)).to_dict()
  for key, value in config_lib.flatten(config).items():
    (row,) = re.findall(rf"^\| `{re.escape(key)}` \|.*$", table, re.M)
    assert "required" in row or f"`{value!r}`" in row, row
    assert row.split("|")[2].strip(), f"{key} has no comment"
  assert "of the order of the rows" in table  # a comment on the line
  assert 'all but wide products, "dots"' in table
  assert "&lt;z, e(v)&gt;" in table


def test_pages_ask_for_text_that_exists(gen):
  for page in PAGES:
    for request in re.findall(r"^<!-- generate: (\w+)", page.read_text(), re.M):
      assert request in gen.GENERATORS, f"{page}: {request}"
  assert "--held_out" in gen.usage("dsl_jax.data.prepare")
  assert "| `plan` |" in gen.modes() and "| `--text` |" in gen.flags()
  assert "`masked`" in gen.GENERATORS["names"]()
  assert "| `top_p` |" in gen.GENERATORS["options"]()


def test_formulas_become_mathml(gen):
  pytest.importorskip("latex2mathml")
  page = r'<p>of <span class="arithmatex">\(a &lt; b\)</span>.</p>'
  text = "".join(ElementTree.fromstring(gen.on_page_content(page)).itertext())
  assert text == "of a<b."
  assert (
    gen.on_page_content("<p>by <z, e(v)></p>") == "<p>by &lt;z, e(v)&gt;</p>"
  )


def literals() -> str:
  """All strings of the library, without what is formatted into them."""
  texts = []
  for path in (ROOT / "dsl_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        texts.append(" ".join(node.value.split()))
  return "\n".join(texts)


def test_messages_are_those_of_the_code():
  page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
  messages = re.findall(r"^### `(.*)`$", page, re.M)
  known = literals()
  assert len(messages) > 20
  for message in messages:
    if message.startswith("RESOURCE_EXHAUSTED"):  # JAX's own
      continue
    parts = [part.strip(" '.,;") for part in message.split("...")]
    for part in filter(None, parts):
      assert part in known, f"{message!r}: {part!r}"
