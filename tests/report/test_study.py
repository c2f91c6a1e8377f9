"""The tables and sentences of docs/study.md say what the committed results of the study say."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from kvbench.report.bytes_axis import on_front

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


def points(half: str, method: str, budget: str) -> float:
    """Return the average score of a method under a budget, × 100, as the page rounds it."""
    return round(100 * averages(half)[method, budget].score, 1)


def sentences(page: str) -> str:
    """Return the words of a page with single spaces."""
    return " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_what_study_says_of_the_front_of_bytes():
    for half, alone in (("aware", True), ("agnostic", False)):
        mean = {name: average for name, average in averages(half).items() if average.samples == 52}  # all tasks
        on = on_front([a.bytes for a in mean.values()], [a.score for a in mean.values()])
        assert ({name[0] for name, is_on in zip(mean, on, strict=True) if is_on} == {"kvzip"}) is alone
    assert "In this half it is alone on the front of bytes." in sentences("study.md")


def test_what_study_says_of_pyramids():
    above = {
        (half, base, budget)
        for half in ("aware", "agnostic")
        for base in ("snapkv", "ada_snapkv")
        for budget in BUDGETS
        if points(half, base.replace("snapkv", "pyramidkv"), budget) > points(half, base, budget)
    }
    assert above and {half for half, _, _ in above} == {"agnostic"}
    assert "With the question known, PyramidKV is never above SnapKV" in sentences("study.md")


def test_what_study_says_of_single_tokens():
    ranked = ("h2o", "h2o_decode", "h2o_streaming", "cam", "cam_decode", "csp", "elastic_cache", "elastic_cache_decode")
    ranked += ("prefixkv", "prefixkv_decode", "prefixkv_offline")
    assert max(points("aware", method, "0.4") for method in ranked) == 19.0
    for budget in ("0.2", "0.4"):
        assert points("aware", "streaming_llm", budget) > max(points("aware", method, budget) for method in ranked)
    assert points("aware", "tova", "0.4") == 23.3 and points("aware", "kvzip", "0.4") > points(
        "aware", "fullkv", "full"
    )
    words = sentences("study.md")
    assert (
        "keep at most 19 points of 51 at 40 %" in words and "TOVA does it and keeps 23 points, KVzip does it" in words
    )
    for method in ("h2o_streaming", "h2o_decode"):
        assert f"(`{method}`, {points('aware', method, '0.4')})" in words


def test_study_names_the_pooling_that_is_not_the_papers():
    with (DOCS / "study" / "ruler_1k-1024-aware.csv").open() as file:
        pooled = {size for row in csv.DictReader(file) for size in re.findall(r"kernel_size=\d+", row["dials"])}
    assert len(pooled) == 1 and f"`{pooled.pop()}`, not the papers' 7" in sentences("study.md")


def test_the_page_about_windowkv_quotes_the_study():
    full, window, snap = (
        [f"{points('aware', method, budget)}" for budget in budgets]
        for method, budgets in (("fullkv", ["full"]), ("windowkv", BUDGETS), ("snapkv", BUDGETS))
    )
    told = (
        f"the full cache scores {full[0]} points, WindowKV {window[0]}, {window[1]} and {window[2]} at 10, 20 and 40 "
        f"%, SnapKV {snap[0]}, {snap[1]} and {snap[2]} (both at 10 % without `niah_multiquery`)."
    )
    assert told in sentences("methods/windowkv.md")
