"""Rows of different versions or hardware: their mark, their times, and what the footnotes say."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from kvbench.report.diff import main as diff
from kvbench.report.footnotes import footnotes
from kvbench.report.latex import latex
from kvbench.report.present import present
from kvbench.report.runs import title
from kvbench.report.suite import suite_table
from kvbench.report.suite_text import tables
from kvbench.report.table import cells, table
from kvbench.store import RunNumbers, load_runs
from tests.helpers.fake_runs import FakeRun, make_part, make_run, make_suite, numbers, store_run

A, B = {"name": "GPU A"}, {"name": "GPU B"}
OLD, NEW = {"kvbench": "0.1.0", "code": "1a"}, {"kvbench": "0.1.0", "code": "2b"}


def computed(run: FakeRun, hardware: dict | None, versions: dict = OLD, continued: dict | None = None) -> FakeRun:
    """Return a run computed with these, and continued with others after three samples."""
    run.manifest |= {"versions": versions} | ({"hardware": hardware} if hardware else {})
    if continued:
        same = {"versions": versions, "device": run.manifest["device"], "recorded": 3, "time": ""}
        run.manifest["continued_with"] = [same | ({"hardware": hardware} if hardware else {}) | continued]
    return run


def marked_notes(runs: list[RunNumbers]) -> list[str]:
    return [line for line in footnotes([run.manifest for run in runs]) if line.startswith("†")]


def lines_of(capsys: pytest.CaptureFixture) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_run_that_went_on_with_other_versions_has_a_mark(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    full = computed(make_run("fullkv", "full", 1.0), A)
    mixed = computed(make_run("snapkv", "0.2", 0.5), A, continued={"versions": NEW})
    runs = numbers([full, mixed])
    plain, row = table(runs)
    assert (plain["mixed"], row["mixed"], row["hardware"], row["ttft_s"]) == (False, True, "GPU A", 1.2)
    assert cells(row)["method"] == "snapkv †" and cells(plain)["method"] == "fullkv"
    assert r"snapkv $\dagger$" in latex([cells(row)])
    assert title(mixed) == "snapkv, 20% budget †"
    (note,) = marked_notes(runs)
    assert "snapkv 0.2 (after 3 of 9 samples: code 1a → 2b)" in note and "fullkv" not in note
    assert "Versions: code 1a, kvbench 0.1.0; code 2b, kvbench 0.1.0." in footnotes([mixed.manifest])

    present([full, mixed], tmp_path, figures="none")
    (folder,) = tmp_path.iterdir()
    for name in ("table.md", "table.html", "table.tex"):
        text = (folder / name).read_text()
        assert "code 1a → 2b" in text and ("†" in text or r"\dagger" in text)
    assert [row["mixed"] for row in json.loads((folder / "table.json").read_text())["rows"]] == [False, True]
    assert "snapkv †" in capsys.readouterr().out
    present([full, mixed], None, form="csv")
    told = {(line["method"], line["hardware"], line["mixed"]) for line in lines_of(capsys)}
    assert told == {("fullkv", "GPU A", "False"), ("snapkv", "GPU A", "True")}


def test_a_row_of_two_kinds_of_hardware_has_no_times(capsys: pytest.CaptureFixture) -> None:
    mixed = computed(make_run("snapkv", "0.2", 0.5), A, continued={"hardware": B})
    runs = numbers([computed(make_run("fullkv", "full", 1.0), A), mixed])
    plain, row = table(runs)
    assert {value for key, value in row.items() if key.endswith("_s")} == {None}
    assert plain["ttft_s"] == 1.2 and row["scores"]["recall"] == 0.5 and row["hardware"] == "GPU A; GPU B"
    notes = footnotes([run.manifest for run in runs])
    assert "Hardware: GPU A; GPU B; times of different hardware do not compare." in notes
    (note,) = marked_notes(runs)
    assert "after 3 of 9 samples: hardware GPU A → GPU B" in note and "times are left out" in note
    present(runs, None, form="csv")
    assert {line["ttft_s"] for line in lines_of(capsys) if line["method"] == "snapkv"} == {""}


def test_rows_of_different_hardware_have_a_column(capsys: pytest.CaptureFixture) -> None:
    runs = [computed(make_run("fullkv", "full", 1.0), A), computed(make_run("snapkv", "0.2", 0.5), B)]
    present(runs, None)
    head, _, first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert head.rstrip("| ").endswith("hardware")
    assert first.rstrip("| ").endswith("GPU A") and second.rstrip("| ").endswith("GPU B")
    assert "†" not in first + second, "each row is of one"
    assert [row["ttft_s"] for row in table(numbers(runs))] == [1.2, 1.2]

    present([runs[0], computed(make_run("snapkv", "0.2", 0.5), A)], None)
    assert "hardware" not in capsys.readouterr().out


def test_runs_of_earlier_versions_say_that_their_hardware_is_unknown(capsys: pytest.CaptureFixture) -> None:
    before = [computed(make_run("fullkv", "full", 1.0), None), computed(make_run("snapkv", "0.2", 0.5), None)]
    present(before, None)
    assert "hardware" not in capsys.readouterr().out
    assert not any("ardware" in note for note in footnotes([run.manifest for run in before]))
    with_new = [before[0], computed(make_run("snapkv", "0.2", 0.5), A)]
    present(with_new, None)
    assert "GPU A" in capsys.readouterr().out
    assert any("not recorded for 1 runs" in note for note in footnotes([run.manifest for run in with_new]))


def test_a_row_of_a_suite_is_mixed_by_its_datasets(capsys: pytest.CaptureFixture) -> None:
    datasets = make_suite("snapkv", "0.2", 0.5)
    part = computed(make_part("snapkv", "0.2", "qasper", 0.5), B, NEW)
    mixed = [part, *(computed(run, A) for run in datasets if run.manifest["hash"] != part.manifest["hash"])]
    full = [computed(run, A) for run in make_suite("fullkv", "full", 1.0)]
    assert len(mixed) == len(full) == 4
    runs = numbers([*full, *mixed])
    result = suite_table(runs)
    told = [(row["mixed"], row["hardware"], row["ttft_s"]) for row in result["rows"]]
    assert told == [(False, "GPU A", 1.2), (True, "GPU A; GPU B", None)]
    for rows in tables(result):
        assert {row["method"] for row in rows} <= {"fullkv", "snapkv †"}
    assert tables(result)[0][1]["hardware"] == "GPU A; GPU B"
    (note,) = marked_notes(runs)
    assert "hardware GPU" in note and "code" in note and "longbench-" in note
    present(runs, None, form="csv")
    lines = lines_of(capsys)
    of_run = {line["dataset"]: line["hardware"] for line in lines if line["method"] == "snapkv" and line["dataset"]}
    assert of_run["qasper"] == "GPU B" and of_run["hotpotqa"] == "GPU A"
    averages = [line for line in lines if line["method"] == "snapkv" and not line["dataset"]]
    assert averages and {(line["mixed"], line["ttft_s"]) for line in averages} == {("True", "")}


def test_suites_on_two_kinds_of_device_have_two_tables(capsys: pytest.CaptureFixture) -> None:
    """They have the same identities."""
    runs = [run for device in ("cpu", "cuda:1") for run in make_suite("fullkv", "full", 1.0)]
    for run in runs[4:]:
        run.manifest["device"] = "cuda:1"
    present(runs, None, form="json")
    shown = json.loads(capsys.readouterr().out)
    assert [(group["setting"]["device"], group["rows"][0]["n"]) for group in shown] == [("cpu", 28), ("cuda", 28)]


def test_the_comparison_of_two_methods_shows_the_mark(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    store_run(tmp_path, make_run("fullkv", "full", 1.0))
    mixed = make_run("snapkv", "0.2", 0.5)
    store_run(tmp_path, mixed, samples=4)
    mixed.manifest["versions"] = NEW
    mixed.samples = mixed.samples[4:]
    store_run(tmp_path, mixed)
    assert {len(run.samples) for run in load_runs(tmp_path)} == {9}
    assert diff(["snapkv", "fullkv", "--runs", str(tmp_path)]) == 0
    assert "snapkv, 20% budget † (A) against fullkv (B)" in capsys.readouterr().out
