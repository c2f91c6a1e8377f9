"""`kvbench report RUNS`: print the tables of stored runs; write tables and figures to a folder.

Other reports have a word of their own: `kvbench report diff`, `kvbench report power`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.report.figures.palette import PALETTES
from kvbench.report.formats import FORMATS
from kvbench.report.present import FIGURES, present
from kvbench.store import Manifest, RunNumbers, load_numbers

_REPORTS = {  # word: module with main(argv), help
    "diff": ("kvbench.report.diff", "where two methods disagree, sample by sample"),
    "power": ("kvbench.report.power", "how many samples would separate two methods"),
    "parity": ("kvbench.report.parity.__main__", "published numbers next to ours, and what is not run yet"),
}
_ABOUT = """\
Tables of stored runs: method x budget x dataset, averages by category, differences to the full cache with 95%
intervals, measured budget, bytes and times. Runs of different protocols, devices or model weights get tables of their
own. With --out, the same as Markdown, LaTeX, HTML, CSV and JSON, with figures."""
_EXAMPLES = """\
examples:
  kvbench report outputs/runs                                 all tables, on the console
  kvbench report outputs/runs --benchmark longbench --out reports
  kvbench report outputs/runs --by bytes                      eviction and quantisation on one axis
  kvbench report outputs/runs --format latex > table.tex      needs booktabs and xcolor

other reports (kvbench report WORD --help):
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Report on all runs below a folder. Returns the exit code, see `kvbench.common.command`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _REPORTS:
        status: int = import_module(_REPORTS[words[0]][0]).main(words[1:])
        return status
    others = "\n".join(f"  {word:<8}{about}" for word, (_, about) in _REPORTS.items())
    parser = Parser(
        prog="kvbench report",
        description=_ABOUT,
        epilog=_EXAMPLES + others,
    )
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("--benchmark", help="only runs of this benchmark or suite, e.g. needle, longbench")
    parser.add_argument("--metric", help="the score to show; default: the benchmark's headline score")
    parser.add_argument("--by", choices=("method", "bytes"), default="method", help="order of rows; default: method")
    parser.add_argument("--out", type=Path, help="folder for tables and figures; default: only print")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed; default: table")
    parser.add_argument("--palette", choices=PALETTES, default="safe", help="colours of heatmaps; default: safe")
    help_of_figures = "of large tables: the methods that score highest, all (slow), or no figures; default: best"
    parser.add_argument("--figures", choices=FIGURES, default="best", help=help_of_figures)
    arguments = parser.parse_args(words)
    runs = select(arguments.runs, arguments.benchmark)
    options = {"form": arguments.format, "by": arguments.by, "palette": arguments.palette, "figures": arguments.figures}
    source = [str(arguments.runs.resolve()), arguments.benchmark]
    present(runs, arguments.out, arguments.metric, source=source, **options)
    return 0


def select(root: Path, benchmark: str | None) -> list[RunNumbers]:
    """Return the runs of a benchmark, a suite, or all suites whose names begin with it ("ruler": "ruler-4096").

    Raises ValueError when there are none.
    """
    if benchmark is None:
        runs = load_numbers(root)
    else:
        runs = load_numbers(root, wanted=lambda manifest: _match(manifest, benchmark) is not None)
        best = min((_match(run.manifest, benchmark) or 0 for run in runs), default=0)
        runs = [run for run in runs if _match(run.manifest, benchmark) == best]
    if not runs:
        what = f" of benchmark {benchmark}" if benchmark else ""
        raise ValueError(f"{root}: no runs{what} there; name another folder, or compute some: kvbench --help")
    return runs


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
