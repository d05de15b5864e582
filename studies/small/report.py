"""Writes docs/study.md from its template and the results.

python -m studies.small.report
"""

import pathlib

from studies.small import tables

TEMPLATE = pathlib.Path(__file__).parent / "report.md"
OUT = pathlib.Path("docs/study.md")


def main() -> None:
  """Fills the template."""
  OUT.write_text(tables.fill(TEMPLATE.read_text()))


if __name__ == "__main__":
  main()
