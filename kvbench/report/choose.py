"""The two methods that a report compares, as the command line names them, and their runs by benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser
from kvbench.common.suggest import did_you_mean
from kvbench.report.runs import check_comparable, names
from kvbench.store import RunNumbers, load_numbers

Pair = tuple[RunNumbers, RunNumbers]
SIDES = """\
A and B are run folders, folders with the runs of one method under one budget, or METHOD or METHOD:BUDGET among the runs
below --runs, e.g. snapkv:0.2, fullkv. Of several runs of one name, name the folder."""


def add_sides(parser: Parser) -> None:
    """Add the arguments that name two methods."""
    parser.add_argument("a", metavar="A", help="the method that is judged, e.g. snapkv:0.2")
    parser.add_argument("b", metavar="B", help="the method it is compared with, e.g. fullkv")
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs"), help="where methods are looked for; default: outputs"
    )
    parser.add_argument("--benchmark", help="only this benchmark or suite, e.g. needle, longbench")
    parser.add_argument("--metric", help="the score to compare; default: the benchmark's headline score")


def pairs(a: str, b: str, root: Path, benchmark: str | None) -> list[Pair]:
    """Return the runs of A and B on each benchmark that both have, sorted by benchmark.

    Raises ValueError, in one line, when a side names no run or several, when there is no common benchmark, and when two
    runs cannot be compared.
    """
    runs = [] if Path(a).is_dir() and Path(b).is_dir() else load_numbers(root)
    ours, theirs = (_side(text, runs, root, benchmark) for text in (a, b))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError(
            f"{a} has runs on {', '.join(sorted(ours))}, {b} on {', '.join(sorted(theirs))}: none in common"
        )
    result = [(ours[key], theirs[key]) for key in common]
    for pair in result:
        check_comparable(pair)
    return result


def _side(text: str, runs: Sequence[RunNumbers], root: Path, benchmark: str | None) -> dict[str, RunNumbers]:
    """Return the runs of one side by benchmark."""
    if Path(text).is_dir():
        chosen = load_numbers(text)
    else:
        method, _, budget = text.partition(":")
        chosen = [run for run in runs if run.manifest["label"]["method"] == method]
        if not chosen:
            known = sorted({run.manifest["label"]["method"] for run in runs})
            raise ValueError(f"{text}: neither a folder nor a method below {root}.{did_you_mean(method, known)}")
        budgets = sorted({run.manifest["label"]["budget"] for run in chosen})
        if budget:
            chosen = [run for run in chosen if run.manifest["label"]["budget"] == budget]
            if not chosen:
                raise ValueError(f"{text}: no such budget; {method} was run with {', '.join(budgets)}")
        elif len(budgets) > 1:
            raise ValueError(f"{text}: several budgets ({', '.join(budgets)}); write {method}:{budgets[0]}")
    chosen = [run for run in chosen if benchmark is None or _is_of(run, benchmark)]
    if not chosen:
        raise ValueError(f"{text}: no runs{f' of benchmark {benchmark}' if benchmark else ''} there")
    result: dict[str, RunNumbers] = {}
    for run in chosen:
        key = run.manifest["label"]["benchmark"]
        if key in result:
            both = names([result[key], run])
            raise ValueError(f"{text}: several runs on {key} ({' / '.join(both)}); name a folder, e.g. {run.path}")
        result[key] = run
    return result


def _is_of(run: RunNumbers, benchmark: str) -> bool:
    place = run.manifest["part"]
    return benchmark in (run.manifest["label"]["benchmark"], place["suite"] if place else None)
