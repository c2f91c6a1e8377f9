"""`kvbench report diff` and `kvbench report power`."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from kvbench.report.__main__ import main
from kvbench.report.choose import Pair, pairs
from kvbench.report.holm import p_values
from kvbench.report.power import power
from tests.helpers.fake_runs import make_part, make_run, make_suite, numbers, out_of_memory, store_run


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    scores = [1.0, 1.0, 0.5, 0.0, 1.0, 0.25, 1.0, 1.0]
    full = make_part("fullkv", "full", "qasper", scores)
    run = make_part("snapkv", "0.2", "qasper", [1.0, 0.0, 0.75, 0.0, 0.75, 0.25, 1.0, 1.0])
    run.samples[1]["prediction"] = "it says\n\x1b[31mnothing about it"
    out_of_memory(run, 6)
    out_of_memory(full, 7)
    for each in (full, run, make_part("snapkv", "0.4", "qasper", 1.0), make_part("fullkv", "full", "hotpotqa", 1.0)):
        store_run(tmp_path, each)
    return tmp_path


def test_disagreements_come_worst_first_with_both_answers(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "snapkv:0.2", "fullkv", "--runs", str(stored)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("## longbench-qasper: snapkv, 20% budget (A) against fullkv (B)")
    assert "3 of 6 common samples differ in qa_f1: 2 worse, 1 better; mean -0.17 [" in out
    assert "without an answer or a score: 1 of A alone, 1 of B alone" in out
    heads = [line for line in out.splitlines() if line.startswith("qasper-")]
    assert heads == [
        "qasper-0006 (A –, B 1.00)", "qasper-0001 -1.00 (A 0.00, B 1.00)", "qasper-0004 -0.25 (A 0.75, B 1.00)",
        "qasper-0002 +0.25 (A 0.75, B 0.50)", "qasper-0007 (A 1.00, B –)",
    ]  # fmt: skip
    assert "\x1b" not in out and "  A        it says" in out and "nothing about it" in out
    assert "  A        – (oom: no answer)" in out and "  expected 7" in out


@pytest.mark.parametrize("form", ["csv", "json"])
def test_disagreements_in_other_formats(form: str, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "snapkv:0.2", "fullkv", "--runs", str(stored), "--format", form, "--limit", "2"]) == 0
    out = capsys.readouterr().out
    lines = json.loads(out) if form == "json" else list(csv.DictReader(io.StringIO(out)))
    assert [line["sample"] for line in lines] == ["qasper-0006", "qasper-0001"]
    assert [float(lines[1][key]) for key in ("score_a", "score_b", "difference")] == [0.0, 1.0, -1.0]


def test_folders_name_runs_as_well(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [run] = stored.rglob("snapkv-b0.2-*")
    [full] = (stored / "longbench-qasper").rglob("fullkv-*")
    assert main(["diff", str(run), str(full), "--limit", "1"]) == 0
    assert "… and 4 more; --limit 0 shows all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["snapkv", "fullkv"], "snapkv: several budgets (0.2, 0.4); write snapkv:0.2"),
        (["snapkv:0.3", "fullkv"], "snapkv:0.3: no such budget; snapkv was run with 0.2, 0.4"),
        (["snapvk:0.2", "fullkv"], "Did you mean 'snapkv'?"),
        (["snapkv:0.2", "fullkv", "--benchmark", "needle"], "snapkv:0.2: no runs of benchmark needle there"),
        (["snapkv:0.2", "fullkv", "--metric", "bleu"], "--metric bleu: these runs hold qa_f1"),
    ],
)
@pytest.mark.parametrize("word", ["diff", "power"])
def test_a_mistake_is_one_line_that_says_what_to_write(
    word: str, arguments: list[str], message: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, *arguments, "--runs", str(stored)]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("change", [{"model": "bbbb"}, {"device": "cuda"}, {"question": "agnostic"}])
def test_runs_of_other_settings_are_not_compared(
    change: dict[str, str], stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store_run(stored, make_part("ada", "0.2", "qasper", 0.5, **change))
    assert main(["diff", "ada:0.2", "fullkv", "--runs", str(stored), "--benchmark", "longbench-qasper"]) == 2
    err = capsys.readouterr().err
    assert "cannot share a table, they differ in" in err and "compare runs of one protocol" in err
    assert err.count("\n") == 1


def test_two_runs_of_one_name_are_told_apart(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_part("snapkv", "0.2", "qasper", 0.5)
    run.manifest["identity"]["method"]["window"] = 8
    store_run(stored, run)
    assert main(["diff", "snapkv:0.2", "fullkv", "--runs", str(stored)]) == 2
    assert "several runs on longbench-qasper" in capsys.readouterr().err


# ---- power -----------------------------------------------------------------------------------------


def numbers_pair(number: int) -> Pair:
    """Return two methods with `number` samples of a benchmark."""
    values = np.random.default_rng(number).random((2, number)).tolist()
    first, second = numbers([make_part(name, "0.2", "qasper", own) for name, own in zip("ab", values, strict=True)])
    return first, second


def test_the_number_of_samples_gives_the_power_that_was_asked_for() -> None:
    random = np.random.default_rng(4)
    base = random.random(2000)
    runs = [
        make_part("snapkv", "0.2", "qasper", (base + 0.05 + random.normal(0, 0.2, 2000)).tolist()),
        make_part("ada", "0.2", "qasper", base.tolist()),
    ]
    first, second = numbers(runs)
    result = power((first, second), difference=0.05)
    assert result["needed"] is not None and result["needed"] == pytest.approx(
        (2.802 * 0.2 / 0.05) ** 2 + 1.92, rel=0.05
    )
    trials = 0.05 + random.normal(0, 0.2, (4000, result["needed"]))
    assert (p_values(trials) < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert result["detectable"] == pytest.approx(2.802 * 0.2 / math.sqrt(2000), rel=0.05)
    few = power(numbers_pair(8), difference=None)
    assert few["detectable"] is not None
    assert power(numbers_pair(8), difference=few["detectable"] + 1e-6)["needed"] == 8, "few samples show less than many"
    more = power((first, second), difference=0.05, power=0.95)
    assert more["needed"] is not None and more["needed"] > 1.5 * result["needed"]


def test_questions_on_one_context_count_together() -> None:
    random = np.random.default_rng(4)
    shared = np.repeat(random.normal(0, 0.2, 50), 4)
    runs = [
        make_part("snapkv", "0.2", "qasper", (0.5 + shared).tolist()),
        make_part("ada", "0.2", "qasper", [0.5] * 200),
    ]
    alone = power(tuple(numbers(runs)), difference=0.05)  # type: ignore[arg-type]
    for run in runs:
        for at, sample in enumerate(run.samples):
            sample["context"] = f"context {at // 4}"
    together = power(tuple(numbers(runs)), difference=0.05)  # type: ignore[arg-type]
    assert (alone["contexts"], together["contexts"], together["n"]) == (200, 50, 200)
    assert together["needed"] is not None and alone["needed"] is not None
    assert together["needed"] == pytest.approx(4 * alone["needed"], rel=0.06)


def test_power_is_a_table_with_a_row_per_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in [*make_suite("fullkv", "full", 0.5), *make_suite("snapkv", "0.2", 0.5)]:
        if run.manifest["label"]["method"] == "snapkv":
            for at, sample in enumerate(run.samples):
                sample["scores"]["qa_f1"] = 0.25 * (at % 3)
        store_run(tmp_path, run)
    assert main(["power", "snapkv:0.2", "fullkv", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("longbench-") == 4 and "needed: samples for the observed difference" in out
    for bad in (["--power", "1.2"], ["--alpha", "0"], ["--difference", "3"], ["--difference", "nan"]):
        assert main(["power", "snapkv:0.2", "fullkv", "--runs", str(tmp_path), *bad]) == 2
        assert capsys.readouterr().err.startswith(f"kvbench: {bad[0]} ")


def test_without_a_spread_or_a_difference_there_is_no_number(tmp_path: Path) -> None:
    for method, budget in (("fullkv", "full"), ("snapkv", "0.2")):
        store_run(tmp_path, make_run(method, budget, 1.0))
    [pair] = pairs("snapkv:0.2", "fullkv", tmp_path, None)
    result = power(pair)
    assert (result["needed"], result["detectable"], result["n"]) == (None, None, 9)
