"""Forms of a suite's table: on terminals of any width, in files, in other formats, and against the budget."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kvbench import store
from kvbench.report.__main__ import main
from kvbench.report.figures.curve import curve
from kvbench.report.figures.points import points_of
from kvbench.report.present import present
from kvbench.report.suite import suite_table
from kvbench.report.suite_groups import suite_groups
from kvbench.report.suite_text import buckets, categories, tables, terminal, transposed, wide
from tests.helpers.fake_runs import SUITE, FakeRun, make_part, make_run, make_suite, numbers, out_of_memory, store_run

PNG = b"\x89PNG\r\n\x1a\n"


def table(runs: list[FakeRun]) -> dict[str, Any]:
    (group,) = suite_groups(numbers(runs))
    return suite_table(group)


def study(budgets: list[str], methods: list[str]) -> list[FakeRun]:
    runs = make_suite("fullkv", "full", 0.5)
    for method in methods:
        for step, budget in enumerate(budgets):
            runs += make_suite(method, budget, 0.3 + 0.02 * step)
    return runs


# ---- text ----------------------------------------------------------------------------------------


def test_a_row_holds_datasets_averages_and_what_was_kept() -> None:
    runs = study(["0.2"], ["snapkv"])
    out_of_memory(runs[4], 0)
    full, snapkv = wide(table(runs))
    assert list(full) == [
        "method",
        "budget",
        *SUITE,
        "avg-4",
        "Δ full [95%]",
        "n",
        "oom",
        "kept/head",
        "KV MiB",
        "TTFT s",
        "TPOT ms",
    ]
    assert (full["qasper"], full["avg-4"], full["Δ full [95%]"]) == ("50.00", "50.00", "–")
    assert (snapkv["qasper"], snapkv["hotpotqa"]) == ("30.00*", "30.00")
    assert snapkv["Δ full [95%]"].startswith("-20.00 [no spread]")
    assert (snapkv["n"], snapkv["oom"], snapkv["kept/head"], snapkv["KV MiB"]) == ("28", "1", "200 (20%)", "0.20 (20%)")


def test_missing_datasets_show_as_dashes_and_counts() -> None:
    runs = [*make_suite("fullkv", "full", 0.5), *make_suite("snapkv", "0.2", 0.4)[:3]]
    content = table(runs)
    assert (wide(content)[1]["gov_report"], wide(content)[1]["avg-4"]) == ("–", "40.00 (3/4)")
    ((_, row),) = categories(content)
    assert list(row.values()) == ["snapkv", "0.2", "40.00", "40.00", "–", "40.00 (2/3)"]
    ((row,),) = categories(table([runs[0], *runs[2:4]]))
    assert row["macro"] == "50.00 (of 3 sets)"  # each category is there, but not each of their four datasets


def test_an_average_that_says_no_more_is_not_shown() -> None:
    assert [name for name in wide(table(make_suite("fullkv", "full", 0.5)))[0] if name.startswith("avg")] == ["avg-4"]
    more = make_part("fullkv", "full", "lcc", 0.9, means={"avg-9": 9}, order=9)
    (row,) = wide(table([*make_suite("fullkv", "full", 0.5), more]))
    assert (row["avg-4"], row["avg-9"]) == ("50.00", "58.00 (5/9)")


def test_transposed_tables_have_category_means_below_their_datasets() -> None:
    lines = transposed(table(study(["128", "256"], ["ada_pyramidkv"]))).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cell[0] for cell in cells] == [
        "dataset", "", "-----------------", "budget", "qasper", "multifieldqa_en", "= single-doc QA", "hotpotqa",
        "= multi-doc QA", "gov_report", "= summarisation", "= macro", "= avg-4", "Δ full", "95% from", "95% to", "n",
        "kept/head", "kept", "KV MiB", "KV", "TTFT s", "TPOT ms",
    ]  # fmt: skip
    assert cells[0][1:] == ["fullkv", "ada_", "ada_"] and cells[1][1:] == ["", "pyramidkv", "pyramidkv"]
    assert cells[3][1:] == ["full", "128", "256"] and cells[6][1:] == ["50.00", "30.00", "32.00"]
    assert cells[13][1:] == ["–", "-20.00", "-18.00"]


@pytest.mark.parametrize("methods", [1, 3, 9])
@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_table_fits_into_the_terminal(methods: int, width: int) -> None:
    content = table(study(["64", "128"], [f"method_{index}" for index in range(methods)]))
    text = terminal(content, width)
    assert max(map(len, text.splitlines())) <= width
    for name in ["qasper", "multifieldqa_", "hotpotqa", "gov_report", "single-", "avg-4", "macro"]:
        assert name in text  # long headers may be broken into lines
    for row in content["rows"]:
        assert row["budget"] in text and row["method"].split("_")[-1] in text


def test_the_form_follows_the_width() -> None:
    content = table(study(["64", "128"], ["snapkv", "ada_snapkv"]))
    assert terminal(content, 200).startswith("| method")
    assert terminal(content, 90).startswith("| dataset")
    assert terminal(content, 62).startswith("| method") and terminal(content, 62).count("| method") > 3


def test_buckets_are_listed_by_dataset_and_averaged_over_those_that_have_any() -> None:
    runs = [
        make_part("fullkv", "full", name, [0.2, 0.4, 0.9], buckets=["0-4k", "0-4k", last], suite="longbench-e")
        for name, last in (("qasper", "8k+"), ("hotpotqa", "4-8k"))
    ]
    rows = buckets(table(runs))
    assert [list(row.values())[2:] for row in rows] == [
        ["qasper", "30.00", "–", "90.00"], ["hotpotqa", "30.00", "90.00", "–"], ["mean", "30.00", "90.00", "90.00"],
    ]  # fmt: skip
    assert "4-8k" in terminal(table(runs), 120)
    many = []
    for index in range(20):
        for name in ("qasper", "hotpotqa"):
            many.append(make_part(f"m{index}", "128", name, [0.2], buckets=["8k+"], suite="longbench-e"))
    (_, _, listed) = tables(table(many))
    assert len(listed) == 60 and terminal(table(many), 120).count("| mean") == 20
    assert buckets(table(make_suite("fullkv", "full", 0.5))) == []


# ---- command line --------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for run in [*study(["64", "128"], ["snapkv"]), make_run("fullkv", "full", 1.0)]:
        store_run(tmp_path / "runs", run)
    return tmp_path / "runs"


def test_a_suite_is_one_folder_with_tables_scores_and_a_curve(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(stored), "--benchmark", "longbench", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("## ") == 1 and "longbench-original, question-aware" in printed and "needle" not in printed
    (folder,) = (tmp_path / "out").glob("[!.]*")
    assert folder.name.startswith("longbench-smollm2_135m-")
    names = {path.name for path in folder.iterdir() if path.suffix != ".pdf"}
    assert names == {
        "budgets.png", "bytes.png", "costs.png", "scores.csv", "table.html", "table.json", "table.md", "table.tex",
    }  # fmt: skip
    content = json.loads((folder / "table.json").read_text())
    assert len(content["rows"]) == 3 and content["setting"]["suite"] == "longbench"
    text = (folder / "table.md").read_text()
    assert text.count("| snapkv") == 6 and "| qasper | multifieldqa_en | hotpotqa |" in text
    lines = list(csv.DictReader(io.StringIO((folder / "scores.csv").read_text())))
    assert len(lines) == 12 + 3 * 6 and [line["dataset"] for line in lines[:4]] == list(SUITE)
    assert {line["score"] for line in lines[:4]} == {"0.5"} and lines[0]["category"] == "single-doc QA"


def test_all_benchmarks_are_reported_and_each_legend_stands_once(stored: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(stored)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("## ") == 2 and printed.count("Times are those of the batch") == 1
    assert printed.count("100 × the mean score") == 1
    assert main([str(stored), "--benchmark", "longbench-qasper"]) == 0
    assert "| qasper |" in capsys.readouterr().out
    assert main([str(stored), "--benchmark", "long"]) == 2


def test_a_name_without_its_length_means_all_lengths(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for suite in ("ruler-4096", "ruler-8192"):
        store_run(tmp_path, make_part("fullkv", "full", "vt", 0.5, suite=suite))
    assert main([str(tmp_path), "--benchmark", "ruler"]) == 0
    assert capsys.readouterr().out.count("## ruler-") == 2
    assert main([str(tmp_path), "--benchmark", "ruler-4096"]) == 0
    assert capsys.readouterr().out.count("## ruler-") == 1


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_other_formats_leave_standard_output_to_themselves(
    form: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(stored), "--format", form, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("Tables and figures: ") == 2 and "Tables" not in captured.out
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(captured.out)))
        assert {line["benchmark"] for line in lines} == {"needle", "longbench"} and len(lines) == 14 + 18
    elif form == "json":
        assert [len(content["rows"]) for content in json.loads(captured.out)] == [1, 3]
    else:
        assert captured.out.count(r"\begin{tabular}") == captured.out.count(r"\bottomrule") == 4


def test_a_later_run_of_a_suite_is_shown_with_its_row_and_the_full_cache(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = store.load_runs(stored)
    new = [run for run in runs if run.path.name.startswith("snapkv-b64") and run.manifest["part"]["name"] == "qasper"]
    present(new, tmp_path / "out", store=stored)
    printed = capsys.readouterr().out
    assert "needle" not in printed and "hotpotqa" in printed and "30.00" in printed and "50.00" in printed
    assert "32.00" not in printed, "the row of another budget"
    (folder,) = (tmp_path / "out").glob("[!.]*")
    assert len(json.loads((folder / "table.json").read_text())["rows"]) == 3


def test_runs_that_a_column_cannot_hold_get_a_folder_of_their_own(stored: Path, tmp_path: Path) -> None:
    store_run(stored, make_part("ada", "64", "qasper", 0.9, data="d2"))
    present(store.load_runs(stored), tmp_path / "out")
    rows = [
        [row["method"] for row in json.loads((folder / "table.json").read_text())["rows"]]
        for folder in (tmp_path / "out").glob("longbench-*")
    ]
    assert sorted(rows) == [["ada"], ["fullkv", "snapkv", "snapkv"]]


# ---- curve ---------------------------------------------------------------------------------------


def draw(runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch, path: Path) -> Any:
    seen = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda figure, path, stamp: seen.append(figure) or path)
    curve(points_of(runs, table(runs)), "longbench", "details", path / "x.png")
    return seen[0].axes


def test_a_curve_per_method_and_the_full_cache_dashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = study(["256", "64", "0.1", "0.2"], ["ada", "snapkv"])
    runs += [run for run in make_suite("tova", "64", 0.9) if run.manifest["part"]["name"] != "qasper"]
    runs += make_suite("kivi", "full", 0.45)
    share, tokens = draw(runs, monkeypatch, tmp_path)
    lines = {line.get_label(): line for line in tokens.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"ada", "snapkv", "fullkv", "kivi"}, "tova lacks a dataset"
    assert lines["ada"].get_ydata().tolist() == [32.0, 30.0]
    assert lines["ada"].get_xdata() == pytest.approx([64, 256], rel=0.03), "side by side with snapkv"
    assert lines["fullkv"].get_linestyle() == "--" and set(lines["fullkv"].get_ydata()) == {50.0}
    assert lines["kivi"].get_linestyle() == ":"
    assert [label.get_text() for label in tokens.get_xticklabels()] == ["64", "256"]
    assert [label.get_text() for label in share.get_xticklabels()] == ["10", "20"]
    assert (share.get_ylabel(), tokens.get_xlabel()) == ("avg-4", "Tokens per KV head")
    assert "1 row is not shown, as datasets are missing there" in "".join(text.get_text() for text in share.texts)
    colours = {line.get_label(): line.get_color() for line in share.lines}
    assert colours["ada"] == lines["ada"].get_color() != colours["snapkv"]


def test_a_curve_needs_two_budgets_and_is_drawn_again_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for runs in (make_suite("fullkv", "full", 0.5), study(["64"], ["ada", "snapkv"]), study(["64", "0.2"], ["ada"])):
        assert curve(points_of(runs, table(runs)), "longbench", "", path) == [] and not path.exists()
    runs = study(["64", "128"], ["snapkv"])
    assert curve(points_of(runs, table(runs)), "longbench", "", path) == [path] and path.read_bytes().startswith(PNG)
    first = path.stat().st_mtime_ns
    curve(points_of(runs, table(runs)), "longbench", "", path)
    assert path.stat().st_mtime_ns == first
    runs[4].samples[0]["scores"]["qa_f1"] = 0.9
    curve(points_of(runs, table(runs)), "longbench", "", path)
    assert path.stat().st_mtime_ns > first
