"""The notebooks run at small sizes; outputs of full sizes are committed."""

import pathlib

import jax
import matplotlib
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
  cells = nbformat.read(path, as_version=4).cells
  return [cell for cell in cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where they run, and share the rows that they prepare."""
  return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, folder, monkeypatch):
  monkeypatch.chdir(folder)
  matplotlib.use("agg")
  scope: dict = {}
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    for cell in code_cells(path):  # a kernel would take seconds to start
      exec(compile(cell.source, path.name, "exec"), scope)
      scope |= cell.metadata.get("small", {})  # after the cell of sizes
  assert scope["SOURCE"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed(path):
  for number, cell in enumerate(code_cells(path), 1):
    assert cell.execution_count == number, "run `make notebooks`"
    kinds = {x.get("name", x.output_type) for x in cell.outputs}
    assert not {"stderr", "error"} & kinds
  assert "image/png" in path.read_text() and path.stat().st_size < 300_000
