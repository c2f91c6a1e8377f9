"""Tables of the report, on synthetic runs whose numbers are known."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from kvbench.report.difference import paired_difference as paired
from kvbench.report.figures.needle import heatmaps
from kvbench.report.formats import csv_text, markdown
from kvbench.report.latex import latex
from kvbench.report.runs import check_comparable, groups, title
from kvbench.report.scores import score_lines
from kvbench.report.table import cells
from kvbench.report.table import table as table_of
from tests.helpers.fake_runs import FakeRun, make_run, numbers, out_of_memory


def table(runs: list[FakeRun], metric: str | None = None) -> Any:
    return table_of(numbers(runs), metric)


def paired_difference(run: FakeRun, baseline: FakeRun, metric: str) -> Any:
    return paired(*numbers([run, baseline]), metric)


def shown(rows: list[dict[str, Any]]) -> str:
    return markdown([cells(row) for row in rows])


# ---- names and groups ----------------------------------------------------------------------------


def test_titles_say_the_budget_in_words() -> None:
    words = {"full": "", "128": ", 128 tokens", "0.2": ", 20% budget", "1.0": ", 100% budget"}
    words["0.2B"] = ", 20% bytes"
    assert {budget: title(make_run("snapkv", budget, 1.0)) for budget in words} == {
        budget: "snapkv" + text for budget, text in words.items()
    }


OTHER_SETTINGS = [
    ({"model": "bbbb"}, r"model: .*'weights': 'aaaa'\}\] / .*'weights': 'bbbb'\}\]"),
    ({"dtype": "bfloat16"}, r"dtype: 'float32' / 'bfloat16'"),
    ({"device": "cuda"}, r"device: 'cpu' / 'cuda'"),
    ({"question": "agnostic"}, r"protocol\.question: 'aware' / 'agnostic';"),
    ({"lengths": [500]}, r"protocol\.lengths: \[500, 1000, 2000\] / \[500\];"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_SETTINGS)
def test_unlike_runs_never_share_a_table_or_a_figure(change: dict, message: str, tmp_path: Path) -> None:
    runs = [make_run("fullkv", "full", 1.0), make_run("snapkv", "0.2", 1.0, **change)]
    for refuse in (lambda: table(runs), lambda: heatmaps(runs, tmp_path / "x.png")):
        with pytest.raises(ValueError, match=message) as error:
            refuse()
        assert str(error.value).startswith("fullkv and snapkv, 20% budget cannot share a table")
        assert "\n" not in str(error.value)
    assert [len(group) for group in groups(runs)] == [1, 1]


def test_runs_of_another_scoring_never_share_a_table() -> None:
    runs = [make_run("fullkv", "full", 1.0), make_run("snapkv", "0.2", 1.0), make_run("ada", "0.2", 1.0)]
    for run, version in zip(runs[1:], (2, 3), strict=True):
        run.manifest["scoring"] = {"metrics": {"recall": version}}
    with pytest.raises(ValueError, match=r"differ in scoring\.metrics: \{'recall': 2\} / \{'recall': 3\};"):
        table(runs[1:])
    assert len(groups(runs)) == 3


def test_devices_of_one_kind_are_one_group() -> None:
    runs = [make_run("snapkv", "0.2", 1.0, device=f"cuda:{index}") for index in (0, 1)]
    check_comparable(runs)
    assert len(groups(runs)) == 1


# ---- table ---------------------------------------------------------------------------------------


def test_rows_hold_means_and_start_with_the_full_cache() -> None:
    names = [("snapkv", "128"), ("snapkv", "0.2"), ("ada", "0.2"), ("fullkv", "full"), ("snapkv", "16")]
    names += [("snapkv", "0.4B"), ("snapkv", "0.1B")]
    rows = table([make_run(*name, 0.5) for name in names])
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("fullkv", "full"), ("ada", "0.2"), ("snapkv", "0.2"), ("snapkv", "0.1B"), ("snapkv", "0.4B"),
        ("snapkv", "16"), ("snapkv", "128"),
    ]  # fmt: skip
    row = rows[2]
    assert row["scores"] == {"recall": 0.5, "rouge1": 0.25} and next(iter(row["scores"])) == "recall"
    assert row["kept_tokens"] == pytest.approx(0.2 * 3500 / 3) and row["kept_share"] == pytest.approx(0.2)
    assert row["held_mib"] == pytest.approx(0.2 * 3500 / 3 / 1024, rel=1e-3)
    assert row["held_share"] == pytest.approx(0.2)
    assert (row["prefill_s"], row["compress_s"], row["ttft_s"], row["tpot_s"]) == (1.0, 0.05, 1.2, 0.02)
    assert json.loads(json.dumps(rows)) == rows


def test_out_of_memory_and_unfinished_samples_are_counted_and_seen() -> None:
    run = out_of_memory(make_run("snapkv", "0.2", 1.0), 0, 4)
    run.samples.pop()
    (row,) = table([run])
    assert (row["n"], row["oom"], row["num_samples"], row["scores"]["recall"]) == (6, 2, 9, 1.0)
    text = shown([row])
    assert "1.00 (oom 2/8)" in text and "8/9" in text


def test_a_run_without_any_answer_still_has_a_row() -> None:
    run = out_of_memory(make_run("snapkv", "0.2", 1.0), *range(9))
    rows = table([make_run("fullkv", "full", 1.0), run])
    assert rows[1]["scores"] == {"recall": None, "rouge1": None} and rows[1]["difference"] is None
    assert "– (oom 9/9)" in shown(rows)


def test_a_missing_timing_is_a_dash() -> None:
    run = make_run("snapkv", "0.2", 1.0)
    for sample in run.samples:
        sample["timings"]["tpot_s"] = None  # a single token has no time per output token
    assert shown(table([run])).splitlines()[-1].rstrip(" |").endswith("–")


def test_another_metric_can_lead_and_an_unknown_one_is_refused() -> None:
    runs = [make_run("fullkv", "full", 1.0), make_run("snapkv", "0.2", 0.5)]
    rows = table(runs, "rouge1")
    assert list(rows[1]["scores"]) == ["rouge1", "recall"] and rows[1]["difference"]["mean"] == -0.25
    with pytest.raises(ValueError, match=r"^--metric bleu: these runs hold recall, rouge1$"):
        table(runs, "bleu")
    with pytest.raises(ValueError, match=r"^no runs to report$"):
        table([])


def test_runs_with_equal_labels_are_told_apart() -> None:
    rows = table([make_run("snapkv", "0.2", 1.0, hash="a" * 64), make_run("snapkv", "0.2", 0.0, hash="b" * 64)])
    assert [row["method"] for row in rows] == ["snapkv aaaaaaaa", "snapkv bbbbbbbb"]


# ---- paired difference ---------------------------------------------------------------------------


def scored(method: str, values: list[float]) -> FakeRun:
    run = make_run(method, "full" if method == "fullkv" else "0.2", 0.0)
    for sample, value in zip(run.samples, values, strict=True):
        sample["scores"]["recall"] = value
    return run


def test_difference_is_paired_by_sample_and_repeatable() -> None:
    full = scored("fullkv", [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    worse = scored("snapkv", [0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.4])
    worse.samples.reverse()
    result = paired_difference(worse, full, "recall")
    assert result == paired_difference(worse, full, "recall")
    # Paired differences are -0.5 or -0.6; without pairing the interval would be wider than 0.5.
    assert result["mean"] == pytest.approx(-4.6 / 9) and result["significant"] and result["n"] == 9
    half = 2.306 * 0.0111  # the quantile of Student's t for 8 degrees of freedom, the standard error
    assert result["high"] - result["low"] == pytest.approx(2 * half, rel=0.25)
    assert result["low"] < -4.6 / 9 - half < -0.5 == pytest.approx(result["high"], abs=0.01)


def test_a_difference_that_may_be_chance_is_marked() -> None:
    full = scored("fullkv", [1.0] * 9)
    rows = table([full, scored("snapkv", [1.0] * 8 + [0.0])])
    difference = rows[1]["difference"]
    assert not difference["significant"] and difference["high"] >= 0.0
    assert "-0.11 [-0.64, +0.00] n.s." in shown(rows)
    assert rows[0]["difference"] is None


def test_interval_agrees_with_the_normal_approximation() -> None:
    rng = random.Random(0)
    values = [[rng.gauss(0.3, 0.1) for _ in range(9)] for _ in range(40)]
    runs = [scored("snapkv", row) for row in values]
    many, full = runs[0], scored("fullkv", [0.0] * 9)
    for number, run in enumerate(runs[1:]):
        for sample in run.samples:
            many.samples.append({**sample, "id": f"{sample['id']}-{number}", "context": f"{number} {sample['id']}"})
    full.samples = [{**sample, "scores": {"recall": 0.0}} for sample in many.samples]
    result = paired_difference(many, full, "recall")
    half_width = 1.96 * 0.1 / 360**0.5
    assert result["high"] - result["low"] == pytest.approx(2 * half_width, rel=0.1)


def test_only_common_answered_samples_count() -> None:
    full, run = scored("fullkv", [1.0] * 9), scored("snapkv", [0.0] * 9)
    out_of_memory(full, *range(0, 4))
    out_of_memory(run, *range(4, 8))
    result = paired_difference(run, full, "recall")
    assert (result["mean"], result["n"], result["low"], result["significant"]) == (-1.0, 1, None, False)
    out_of_memory(run, 8)
    assert paired_difference(run, full, "recall") is None


# ---- other forms ---------------------------------------------------------------------------------


def test_scores_in_long_form_have_a_line_per_run_and_score() -> None:
    run = out_of_memory(make_run("snapkv", "0.2", 0.5), 0)
    lines = score_lines(numbers([run, out_of_memory(make_run("tova", "0.2", 0.5), *range(9))]), "abc")
    assert [(line["method"], line["metric"], line["score"]) for line in lines] == [
        ("snapkv", "recall", 0.5), ("snapkv", "rouge1", 0.25), ("tova", "recall", None),
    ]  # fmt: skip
    assert (lines[0]["n"], lines[0]["oom"], lines[0]["num_samples"], lines[0]["dataset"]) == (8, 1, 9, None)
    text = csv_text(lines).splitlines()
    assert text[0].startswith("benchmark,model,") and text[1].startswith(
        "needle,smollm2_135m,float32,cpu,abc,snapkv,0.2,"
    )
    assert len(text) == 4


def test_markdown_lines_up_and_breaks_long_headers() -> None:
    rows = [{"method": "a", "passage_retrieval_en": "1.00"}, {"method": "long name", "passage_retrieval_en": "–"}]
    assert markdown(rows).splitlines()[0] == "| method    | passage_retrieval_en |"
    lines = markdown(rows, narrow=True).splitlines()
    assert [line[14:].strip(" |") for line in lines[:3]] == ["passage_", "retrieval_", "en"]
    assert len({len(line) for line in lines}) == 1 and lines[3].endswith(":|") and lines[-1].endswith(" – |")


def test_latex_escapes_and_spells_what_its_fonts_lack() -> None:
    text = latex([{"method": "ada_snapkv", "Δ full [95%]": "–"}])
    assert r"ada\_snapkv" in text and r"$\Delta$ full [95\%]" in text and "--" in text and r"\toprule" in text
