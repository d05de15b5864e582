"""The house: floors import downwards, files stay small."""

import ast
import pathlib
import re

import pytest

HOUSE = pathlib.Path(__file__).parent.parent
ROOT = HOUSE / "dsl_jax"
FLOORS = {
  "core": 1,
  "nets": 2,
  "objective": 3,
  "likelihood": 3,
  "probes": 3,
  "samplers": 3,
  "runtime": 4,
  "data": 4,
  "convert": 4,
  "quality": 4,
  "modes": 5,
  "main": 6,
  "__main__": 6,
}
FILES = sorted(ROOT.rglob("*.py"))
SMALL = ("dsl_jax", "tests", "benchmarks", "configs", "launch")


def room(path: pathlib.Path) -> str:
  """The room a file is in."""
  return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> list[str]:
  """Names of modules a file imports, wherever in the file."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


def test_files_are_small():
  files = [path for name in SMALL for path in (HOUSE / name).rglob("*.py")]
  lines = {str(x): len(x.read_text().splitlines()) for x in files}
  long = {name: count for name, count in lines.items() if count > 500}
  assert not long, f"over 500 lines, split by subject: {long}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_imports_downwards(path):
  if path == ROOT / "__init__.py":
    return
  here = room(path)
  for name in imports(path):
    top, *rest = name.split(".")
    if top == "flax":
      assert here == "nets", f"{path} imports {name}"
    if top in ("ml_collections", "absl", "orbax", "tensorflow_datasets"):
      assert FLOORS[here] >= 4, f"{path} imports {name}"
    if top == "dsl_jax" and rest[0] in FLOORS:
      assert FLOORS[rest[0]] <= FLOORS[here], f"{path} imports {name} above it"


def test_every_room_has_a_floor():
  assert {room(p) for p in FILES} <= set(FLOORS) | {"__init__"}


def test_the_house_keeps_its_size():
  code = sum(len(path.read_text().splitlines()) for path in FILES)
  tests = (HOUSE / "tests").rglob("*.py")
  assert code <= 12_550 and len(FILES) <= 88
  assert sum(len(path.read_text().splitlines()) for path in tests) < code


def test_packages_have_no_cycle():
  edges = {}
  for path in FILES:
    module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    names = {n for n in imports(path) if n.startswith("dsl_jax.")}
    edges[module] = names | {n.rpartition(".")[0] for n in names}

  def visit(module, above):
    assert module not in above, f"cycle {' -> '.join([*above, module])}"
    for name in edges.get(module, ()):
      if name != module:
        visit(name, [*above, module])

  for module in edges:
    if not module.endswith("__init__"):
      visit(module, [])


def test_the_requirements_are_those_of_the_package():
  setup = (HOUSE / "setup.py").read_text()
  block = re.search(r"install_requires=\[(.*?)\]\,\n  extras", setup, re.DOTALL)
  lines = (HOUSE / "requirements.txt").read_text().splitlines()
  needed = re.findall(r'"([\w\[\]-]+)', block[1])
  assert sorted(needed) == sorted(x for x in lines if x and x[0] != "#")
