"""Writes docs/study.md and docs/study_samples.md from templates and results.

python -m studies.small.report
"""

import argparse
import pathlib

from studies.small import tables

HERE = pathlib.Path(__file__).parent
PAGES = {"report.md": "docs/study.md", "samples.md": "docs/study_samples.md"}


def main() -> None:
  """Fills the templates."""
  for template, page in PAGES.items():
    text = tables.fill((HERE / template).read_text())
    pathlib.Path(page).write_text(text)


if __name__ == "__main__":
  argparse.ArgumentParser(description=__doc__).parse_args()  # --help, no more
  main()
