"""`kvbench report parity RUNS`: compare stored runs with published tables, and list what is not run yet."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.common.suggest import did_you_mean
from kvbench.report.formats import csv_text
from kvbench.report.parity.compare import Outcome, compare
from kvbench.report.parity.ours import read_variants
from kvbench.report.parity.references import load_references
from kvbench.report.parity.show import parity_lines, parity_text

_EPILOG = """\
examples:
  kvbench report parity outputs/runs                             what is there, and what to run
  kvbench report parity outputs/runs --table snapkv --columns    every dataset of one published table
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the parity report. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench report parity",
        description="Published scores next to our own.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("--table", help="only this published table: the name of a file in conf/reference_scores")
    parser.add_argument("--columns", action="store_true", help="show every dataset of a row")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")
    parser.add_argument("--references", type=Path, help="folder with published tables; default: those of kvbench")
    arguments = parser.parse_args(argv)
    outcomes = parity(arguments.runs, arguments.table, arguments.references)
    if arguments.format == "table":
        print(parity_text(outcomes, arguments.columns))
    elif arguments.format == "csv":
        print(csv_text(parity_lines(outcomes)), end="")
    else:
        print(json.dumps(parity_lines(outcomes), indent=2, ensure_ascii=False))
    return 0


def parity(root: Path, table: str | None = None, references: Path | None = None) -> list[Outcome]:
    """Return the outcome of every published row for the runs at or below `root`.

    Raises:
        ValueError: no such folder, no such table, or a damaged file of published scores.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; name one with runs, or an empty one for the list of what to run")
    entries = load_references(references)
    names = dict.fromkeys(entry.table for entry in entries)
    if table is not None and table not in names:
        raise ValueError(f"--table {table}: no such published table.{did_you_mean(table, names)}")
    entries = [entry for entry in entries if table in (None, entry.table)]
    variants = read_variants(root, [(entry.group, entry.method) for entry in entries])
    return [compare(entry, variants) for entry in entries]


if __name__ == "__main__":
    sys.exit(main())
