"""Writes docs/study.md from its template and the results.

python -m studies.small.report
"""

import argparse
import pathlib

from studies.small import tables

TEMPLATE = pathlib.Path(__file__).parent / "report.md"
OUT = pathlib.Path("docs/study.md")


def main() -> None:
  """Fills the template."""
  OUT.write_text(tables.fill(TEMPLATE.read_text()))


if __name__ == "__main__":
  argparse.ArgumentParser(description=__doc__).parse_args()  # --help, no more
  main()
