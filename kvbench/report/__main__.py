"""`python -m kvbench.report RUNS`: print the tables of stored runs; write tables and heatmaps to a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.report.present import present
from kvbench.store import load_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Report on all runs below a folder. Returns the exit status: 1, after one line, for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m kvbench.report", description="Tables and heatmaps of runs.")
    parser.add_argument("runs", type=Path, help="the folder that holds the runs, e.g. outputs/runs")
    parser.add_argument("--benchmark", help="only runs of this benchmark")
    parser.add_argument("--metric", help="the score to show; default: the benchmark's headline score")
    parser.add_argument("--out", type=Path, help="folder for table.md, table.json and heatmaps; default: only print")
    arguments = parser.parse_args(argv)
    try:
        report(arguments.runs, arguments.benchmark, arguments.metric, arguments.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def report(root: Path, benchmark: str | None, metric: str | None, out: Path | None) -> None:
    """Show all runs below `root`. Raises ValueError when there are none."""
    runs = load_runs(root, benchmark)
    if not runs:
        what = f" of benchmark {benchmark}" if benchmark else ""
        raise ValueError(f"{root}: no runs{what} there; run `python -m kvbench` first or name another folder")
    present(runs, out, metric)


if __name__ == "__main__":
    sys.exit(main())
