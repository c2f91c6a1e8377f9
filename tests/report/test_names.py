"""One name stands for one method with one set of dials, in tables, figures, CSV files and the viewer."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from kvbench.report.__main__ import main
from kvbench.report.figures.draw import FIGURES
from kvbench.report.figures.needle import _places
from kvbench.report.figures.points import by_method, points_of
from kvbench.report.figures.shown import Shown
from kvbench.report.loggers.entries import Entry
from kvbench.report.loggers.ledger import Ledger
from kvbench.report.loggers.overview import _section
from kvbench.report.runs import name, names, title
from kvbench.report.suite import suite_table
from kvbench.report.suite_groups import suite_groups
from kvbench.report.table import table
from kvbench.report.view.tables import arrange, index_of
from kvbench.store import load_runs
from tests.helpers.fake_runs import FakeRun, make_part, make_run, make_suite, numbers, store_run


def dialled(budget: str, /, **settings: Any) -> FakeRun:
    """Return a run of snapkv with these dials and parts."""
    run = make_run("snapkv", budget, 0.5, hash=f"{len(settings)}{budget:0<63}".replace(".", "0"))
    run.manifest["identity"]["method"] |= settings
    return run


OTHER_BUDGETS = [("128", 8), ("256", 32)]
DEFAULTS_LATER = [("128", 8), ("128", 16), ("128", 32), ("256", 32), ("512", 32)]


@pytest.mark.parametrize("pairs", [OTHER_BUDGETS, DEFAULTS_LATER])
def test_a_name_is_one_set_of_dials_whatever_the_budgets(pairs: list[tuple[str, int]]) -> None:
    runs = [make_run("fullkv", "full", 1.0), *(dialled(budget, window=window) for budget, window in pairs)]
    expected = ["fullkv", *(f"snapkv window={window}" for _, window in pairs)]
    assert names(runs) == expected
    assert [row["method"] for row in table(runs)] == expected
    lines = by_method(points_of(runs).points)
    assert {key: [point.budget for point in line] for key, line in lines.items()} == {
        f"snapkv window={window}": [budget for budget, own in pairs if own == window] for _, window in pairs
    }
    [shown] = arrange(numbers(runs))
    assert [row["method"] for row in index_of(shown, {})["rows"]] == expected
    assert title(runs[1], runs) == "snapkv window=8, 128 tokens" and name(runs[1]) == "snapkv"


def test_the_rows_of_a_suite_have_one_name_for_one_set_of_dials() -> None:
    runs = make_suite("fullkv", "full", 1.0)
    for budget, window in OTHER_BUDGETS:
        for run in make_suite("snapkv", budget, 0.5):
            run.manifest["identity"]["method"]["window"] = window
            runs.append(run)
    [group] = suite_groups(numbers(runs))
    content = suite_table(group)
    assert [row["method"] for row in content["rows"]] == ["fullkv", "snapkv window=8", "snapkv window=32"]
    assert list(by_method(points_of(runs, content).points)) == ["snapkv window=8", "snapkv window=32"]


def test_runs_of_one_method_and_its_defaults_have_plain_names() -> None:
    runs = [dialled(budget, window=8) for budget in ("128", "256")] + [make_run("tova", "128", 0.5)]
    assert names(runs) == ["snapkv", "snapkv", "tova"]


def test_parts_seeds_and_long_values_tell_runs_apart_too() -> None:
    plain, other = {"_target_": "Uniform"}, {"_target_": "Adaptive"}
    assert names([dialled("128", heads=plain), dialled("256", heads=other)]) == [
        "snapkv heads._target_=Uniform", "snapkv heads._target_=Adaptive",
    ]  # fmt: skip
    both = [dialled("128", window=8, score={"window": 8}), dialled("256", window=16, score={"window": 16})]
    assert names(both) == ["snapkv window=8", "snapkv window=16"], "a part that follows a dial says no more"
    seeded = [dialled("128"), dialled("256")]
    seeded[1].manifest["identity"]["seed"] = 1
    assert names(seeded) == ["snapkv seed=0", "snapkv seed=1"]
    long = names([dialled("128", words="x" * 80 + "a"), dialled("256", words="x" * 80 + "b")])
    assert len(set(long)) == 2 and all(len(text) <= len("snapkv ") + 60 for text in long)
    assert names([dialled("128", a=1), dialled("256", a=1, b=2)]) == ["snapkv", "snapkv b=2"]


def test_what_is_alike_in_all_settings_has_the_hash_under_the_same_budget_only() -> None:
    twins = [make_run("snapkv", budget, 0.5, hash=letter * 64) for budget, letter in (("128", "a"), ("128", "b"))]
    assert names([*twins, make_run("snapkv", "256", 0.5)]) == ["snapkv aaaaaaaa", "snapkv bbbbbbbb", "snapkv"]


def test_scores_csv_has_the_dials_and_the_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for budget, window in OTHER_BUDGETS:
        store_run(tmp_path, dialled(budget, window=window, kernel=7, heads={"_target_": "Uniform"}))
        for dataset in ("qasper", "hotpotqa"):
            part = make_part("snapkv", budget, dataset, 0.5)
            part.manifest["identity"]["method"] |= {"window": window, "kernel": 7}
            store_run(tmp_path, part)
    assert main([str(tmp_path), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(line["benchmark"], line["method"], line["budget"], line["dials"]) for line in lines} == {
        (benchmark, f"snapkv window={window}", budget, f"window={window} kernel=7")
        for benchmark in ("needle", "longbench") for budget, window in OTHER_BUDGETS
    }  # fmt: skip
    hashes = {run.manifest["hash"] for run in load_runs(tmp_path)}
    averages = {line["metric"] for line in lines if not line["run"]}
    assert {line["run"] for line in lines} - {""} == hashes and "avg-4" in averages and "qa_f1" not in averages


def test_heatmaps_and_panels_have_the_names_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for budget, window in DEFAULTS_LATER:
        store_run(tmp_path / "runs", dialled(budget, window=window))
    runs = load_runs(tmp_path / "runs", bulky=False)
    titles: list[str] = []
    monkeypatch.setattr("kvbench.report.figures.needle.headline", lambda axes, text, *rest: titles.append(text))
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda picture, path, stamp: path)
    shown = Shown(runs, None, "needle", "", tmp_path / "out")
    FIGURES["heatmaps"](shown)
    assert len(titles) == 10 and {text.partition(",")[0] for text in titles} == {
        "snapkv window=8", "snapkv window=16", "snapkv window=32",
    }  # fmt: skip
    places = dict(zip(zip(shown.names, [run.manifest["label"]["budget"] for run in runs], strict=True),
                      _places(runs, shown.names), strict=True))  # fmt: skip
    rows = {key: row for (key, _), (row, _) in places.items()}
    assert len(set(rows.values())) == 3 and all(rows[key] == row for (key, _), (row, _) in places.items())


@pytest.mark.parametrize(("windows", "plain"), [((8, 8), True), ((8, 32), False)])
def test_a_logger_calls_entries_by_method_and_budget_only_if_nothing_else_differs(
    windows: tuple[int, int], plain: bool
) -> None:
    runs = [dialled(budget, window=window) for budget, window in zip(("128", "256"), windows, strict=True)]
    manifests: Any = {Path(str(at)): run.manifest for at, run in enumerate(runs)}
    inside = [(Entry(str(place), "cpu", (place,), manifest), Ledger()) for place, manifest in manifests.items()]
    assert _section(inside, manifests, is_named=True).is_plain == plain
