"""The tables of docs/study.md say what the committed results of the study say."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BUDGETS = ("0.1", "0.2", "0.4")


class Average(NamedTuple):
    """The average of a method under a budget, over the 13 tasks."""

    score: float
    interval: str
    samples: int
    bytes: float


def averages(half: str) -> dict[tuple[str, str], Average]:
    """Return the averages over the 13 tasks, by method and budget."""
    with (DOCS / "study" / f"ruler_1k-1024-{half}.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "avg-13"]
    return {(row["method"], row["budget"]): _average(row) for row in rows}


def _average(row: dict[str, str]) -> Average:
    interval = "–"
    if row["delta"]:
        delta, low, high = (f"{100 * float(row[name]):+.1f}" for name in ("delta", "delta_low", "delta_high"))
        interval = f"{delta} [{low}, {high}]"
    return Average(float(row["score"]), interval, int(row["n"]), float(row["kv_share"]))


def percent(average: Average) -> str:
    """Return a score as the page writes it; ° marks an average over fewer tasks."""
    return f"{100 * average.score:.1f}" + "°" * (average.samples < 52)


def by_budget(half: str) -> list[list[str]]:
    """Return the cells of the table of methods with a budget."""
    mean = averages(half)
    methods = sorted({m for m, b in mean if b in BUDGETS}, key=lambda m: -mean[m, "0.4"].score)
    known = averages("aware") if half == "agnostic" else {}
    return [
        [m, *(percent(mean[m, b]) for b in BUDGETS), mean[m, "0.4"].interval]
        + ([percent(known[m, "0.4"])] if known else [])
        for m in methods
    ]


def without_budget(half: str) -> list[list[str]]:
    """Return the cells of the table of methods without a budget."""
    mean = {m: average for (m, b), average in averages(half).items() if b == "full"}
    known = {m: a for (m, b), a in averages("aware").items() if b == "full"} if half == "agnostic" else {}
    return [
        [m, percent(mean[m]), f"{100 * mean[m].bytes:.0f} %", mean[m].interval] + ([percent(known[m])] if known else [])
        for m in sorted(mean, key=lambda m: -mean[m].score)
    ]


def tables(page: str, half: str) -> list[list[list[str]]]:
    """Return the cells of the two tables of a half, without their headings."""
    titles = {"aware": "## The question is known", "agnostic": "## The question comes afterwards"}
    section = page.split(titles[half])[1].split("\n## ")[0]
    return [list(_cells(block)) for block in section.split("\n\n") if block.startswith("| ")]


def _cells(block: str) -> Iterable[list[str]]:
    for line in block.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_the_intervals_in_sentences_are_those_of_the_results():
    words = (DOCS / "study.md").read_text(encoding="utf-8")
    told = re.findall(r"[+-][\d.]+\s+\[[+-][\d.]+,\s+[+-][\d.]+\]", words)
    known = {average.interval for half in ("aware", "agnostic") for average in averages(half).values()}
    assert len(told) > 60 and {" ".join(interval.split()) for interval in told} <= known


@pytest.mark.parametrize("half", ["aware", "agnostic"])
def test_tables_are_those_of_the_results(half):
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    budgeted, others = tables(page, half)
    assert sorted(budgeted) == sorted(by_budget(half))  # equal scores may stand in any order
    assert sorted(others) == sorted(without_budget(half))
    for table, column in ((budgeted, 3), (others, 1)):
        scores = [float(row[column].strip("°")) for row in table]
        assert scores == sorted(scores, reverse=True), "the best method stands first"
