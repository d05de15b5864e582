"""Runs notebooks and keeps their outputs: python notebooks/execute.py [FILE].

By default all of them. A minute or two each on two cores.
"""

import os
import pathlib
import sys

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent


def execute(path: pathlib.Path) -> None:
  """Runs a notebook in its folder and replaces it."""
  notebook = nbformat.read(path, as_version=4)
  where = {"metadata": {"path": str(FOLDER)}}
  client = nbclient.NotebookClient(
    notebook, timeout=1800, record_timing=False, resources=where
  )
  client.execute()
  notebook.metadata["language_info"] = {"name": "python"}
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
  nbformat.write(notebook, path)
  print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  os.environ["TQDM_DISABLE"] = "1"  # no progress bars
  for file in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
    execute(pathlib.Path(file))
