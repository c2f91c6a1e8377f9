"""`python -m kvbench.report RUNS`: print the tables of stored runs; write tables and figures to a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.report.figures.palette import PALETTES
from kvbench.report.formats import FORMATS
from kvbench.report.present import present
from kvbench.store import Manifest, StoredRun, load_runs


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Report on all runs below a folder. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(prog="kvbench report", description="Tables and figures of runs.")
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("--benchmark", help="only runs of this benchmark or suite, e.g. needle, longbench")
    parser.add_argument("--metric", help="the score to show; default: the benchmark's headline score")
    parser.add_argument("--out", type=Path, help="folder for tables and figures; default: only print")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed; default: table")
    parser.add_argument("--palette", choices=PALETTES, default="safe", help="colours of heatmaps; default: safe")
    arguments = parser.parse_args(argv)
    report(arguments.runs, arguments.benchmark, arguments.metric, arguments.out, arguments.format, arguments.palette)
    return 0


def report(
    root: Path,
    benchmark: str | None,
    metric: str | None,
    out: Path | None,
    form: str = "table",
    palette: str = "safe",
) -> None:
    """Show all runs below `root`. Raises ValueError when there are none."""
    runs = select(root, benchmark)
    if not runs:
        what = f" of benchmark {benchmark}" if benchmark else ""
        raise ValueError(f"{root}: no runs{what} there; run `python -m kvbench` first or name another folder")
    present(runs, out, metric, form=form, palette=palette)


def select(root: Path, benchmark: str | None) -> list[StoredRun]:
    """Return the runs of a benchmark, a suite, or all suites whose names begin with it ("ruler": "ruler-4096")."""
    if benchmark is None:
        return load_runs(root, bulky=False)
    runs = load_runs(root, wanted=lambda manifest: _match(manifest, benchmark) is not None, bulky=False)
    best = min((_match(run.manifest, benchmark) or 0 for run in runs), default=0)
    return [run for run in runs if _match(run.manifest, benchmark) == best]


def _match(manifest: Manifest, benchmark: str) -> int | None:
    """Return how a run fits a name: 0 by its benchmark, 1 by its suite, 2 by the beginning of its suite, else None."""
    place = manifest["part"]
    if manifest["label"]["benchmark"] == benchmark:
        return 0
    if place is None or not f"{place['suite']}-".startswith(f"{benchmark}-"):
        return None
    return 1 if place["suite"] == benchmark else 2


if __name__ == "__main__":
    sys.exit(main())
