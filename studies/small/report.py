"""Writes docs/study.md and docs/study_samples.md from templates and results.

python -m studies.small.report [--results=FOLDER] [--out=docs]
"""

import pathlib

from studies.small import tables

HERE = pathlib.Path(__file__).parent
PAGES = {"report.md": "study.md", "samples.md": "study_samples.md"}


def write(out: pathlib.Path) -> None:
  """Fills the templates."""
  for template, page in PAGES.items():
    text = tables.fill((HERE / template).read_text())
    (out / page).write_text(text)


if __name__ == "__main__":
  tables.main(write, __doc__)
