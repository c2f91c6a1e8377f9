"""Tables of suites, on synthetic runs whose numbers are known, and on published tables."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pytest

from kvbench.metrics import longbench
from kvbench.report import suite
from kvbench.report.difference import ColumnScores, Difference, differences
from kvbench.report.paired import Matrix
from kvbench.report.suite import suite_table
from kvbench.report.suite_groups import suite_groups
from tests.helpers.fake_runs import SUITE, FakeRun, make_part, make_suite, numbers, out_of_memory
from tests.helpers.outside import DATA, golden


def table(runs: list[FakeRun], metric: str | None = None) -> dict[str, Any]:
    (group,) = suite_groups(numbers(runs))
    return suite_table(group, metric)


def trials(strata: list[np.ndarray], draws: int = 9999) -> list[Difference | None]:
    """Return the average difference over strata of [trials, samples] differences, for each trial."""
    number = len(strata[0])
    columns = [
        ColumnScores(
            f"dataset{index}",
            range(number + 1),
            Matrix(
                tuple(f"{at:06d}" for at in range(values.shape[1])),
                np.concatenate([values, np.zeros((1, values.shape[1]))]),
                np.arange(values.shape[1]),
            ),
        )
        for index, values in enumerate(strata)
    ]
    average = {"average": [[column.name for column in columns]]}
    return [row.get("average") for row in differences(columns, average, number + 1, number, draws)][:number]


def stratified_difference(strata: list[np.ndarray]) -> Difference | None:
    return trials([stratum[None] for stratum in strata])[0]


# ---- which runs share a table --------------------------------------------------------------------


def test_the_runs_of_a_suite_are_one_table_with_the_full_cache_first() -> None:
    runs = [*make_suite("snapkv", "128", 0.4), *make_suite("fullkv", "full", 0.5), *make_suite("kivi", "full", 0.5)]
    runs += [*make_suite("snapkv", "0.2", 0.4), *make_suite("ada", "0.2", 0.4)]
    result = table(runs[::-1])
    assert [column["name"] for column in result["columns"]] == list(SUITE)
    assert [(row["method"], row["budget"]) for row in result["rows"]] == [
        ("fullkv", "full"), ("kivi", "full"), ("ada", "0.2"), ("snapkv", "0.2"), ("snapkv", "128"),
    ]  # fmt: skip
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "change",
    [{"suite": "ruler-4096"}, {"model": "bbbb"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"question": "agnostic"}],
)
def test_unlike_runs_are_tables_of_their_own(change: dict) -> None:
    runs = [*make_suite("fullkv", "full", 0.5), *make_suite("snapkv", "128", 0.5, **change)]
    assert sorted(len(group) for group in suite_groups(runs)) == [4, 4]
    assert len(suite_groups([*runs[:4], *make_suite("snapkv", "128", 0.5, device="cpu:1")])) == 1


@pytest.mark.parametrize("change", [{"data": "d2"}, {"scoring": {"metrics": {"qa_f1": 2}}}, {"scoring": None}])
def test_a_column_never_mixes_data_or_scorings(change: dict) -> None:
    common = [*make_suite("fullkv", "full", 0.5), *make_suite("snapkv", "128", 0.5)]
    main, other = suite_groups([make_part("ada", "128", "qasper", 0.9, **change), *common])
    assert len(main) == 8 and [run.manifest["label"]["method"] for run in other] == ["ada"]


def test_what_two_columns_are_scored_by_must_agree_where_both_say_it() -> None:
    def scoring(metric: str, backend: str) -> dict:
        return {"metrics": {metric: 1}, "switches": {"code_backend": backend}}

    runs = [
        make_part("fullkv", "full", name, 0.5, scoring=scoring(metric, backend))
        for name, metric, backend in (
            ("qasper", "qa_f1", "indel"), ("gov_report", "rouge_l", "indel"), ("hotpotqa", "qa_f1", "difflib"),
        )
    ]  # fmt: skip
    groups = [[run.manifest["part"]["name"] for run in group] for group in suite_groups(runs)]
    assert sorted(map(sorted, groups)) == [["gov_report", "qasper"], ["hotpotqa"]]


def test_rows_of_one_label_are_told_apart_by_their_dials() -> None:
    runs = []
    for window in (8, 16):
        for run in make_suite("snapkv", "128", window / 100):
            run.manifest["identity"] |= {"method": {"name": "snapkv", "window": window}}
            runs.append(run)
    rows = table(runs)["rows"]
    assert {row["method"]: row["datasets"]["qasper"]["score"] for row in rows} == {
        "snapkv window=8": 8.0, "snapkv window=16": 16.0,
    }  # fmt: skip


# ---- scores and averages -------------------------------------------------------------------------


def test_scores_are_rounded_before_they_are_averaged() -> None:
    runs = [make_part("fullkv", "full", "qasper", [1 / 3] * 8), make_part("fullkv", "full", "hotpotqa", [2 / 3] * 10)]
    (row,) = table(runs)["rows"]
    assert [row["datasets"][name]["score"] for name in ("qasper", "hotpotqa")] == [33.33, 66.67]
    assert row["means"]["avg-4"] == {"score": 50.0, "n": 2, "of": 4}


def test_datasets_count_alike_and_categories_count_alike() -> None:
    scores = {"qasper": 0.1, "multifieldqa_en": 0.2, "hotpotqa": 0.6, "gov_report": 0.9}
    result = table([make_part("fullkv", "full", name, score) for name, score in scores.items()])
    (row,) = result["rows"]
    assert result["lead"] == "avg-4" and row["means"]["avg-4"] == {"score": 45.0, "n": 4, "of": 4}
    macro = row["macros"]["macro"]
    assert {name: cell["score"] for name, cell in macro["categories"].items()} == {
        "single-doc QA": 15.0, "multi-doc QA": 60.0, "summarisation": 90.0,
    }  # fmt: skip
    assert (macro["score"], macro["n"], macro["of"], macro["complete"]) == (55.0, 3, 3, True)


def test_an_incomplete_average_says_so() -> None:
    runs = [run for run in make_suite("fullkv", "full", 0.5) if run.manifest["part"]["name"] != "multifieldqa_en"]
    (row,) = table(runs)["rows"]
    assert row["means"]["avg-4"] == {"score": 50.0, "n": 3, "of": 4}
    macro = row["macros"]["macro"]  # all three categories are there, but not all of their datasets
    assert (macro["n"], macro["of"], macro["complete"], macro["datasets"]) == (3, 3, False, 3)
    (row,) = table(runs[:2])["rows"]
    assert (row["macros"]["macro"]["n"], row["macros"]["macro"]["complete"]) == (2, False)


def test_a_macro_average_that_lacks_a_category_is_incomplete() -> None:
    """Every dataset that was run is complete, but none of the third category was run."""
    first = {category: name for name, (category, _) in reversed(SUITE.items())}
    runs = [make_part("snapkv", "0.2", name, 0.5, means={}, category=at) for at, name in list(first.items())[:2]]
    (row,) = table(runs)["rows"]
    macro = row["macros"]["macro"]
    assert (macro["n"], macro["of"], macro["complete"]) == (2, 3, False)


def test_a_dataset_that_was_asked_for_in_part_counts_all_published_samples() -> None:
    run = make_part("snapkv", "0.2", "qasper", 0.5)
    run.manifest["part"]["samples"] = 200
    (row,) = table([run])["rows"]
    assert row["num_samples"] == row["datasets"]["qasper"]["num_samples"] == 200 and row["n"] == len(run.samples)


def test_the_leading_average_is_the_most_complete_then_the_larger() -> None:
    means = {"qasper": {"all": 2, "english": 1}, "hotpotqa": {"all": 2}}
    runs = [make_part("fullkv", "full", name, 0.5, means=means[name]) for name in means]
    assert table(runs)["lead"] == "all" and table(runs[:1])["lead"] == "english"
    (row,) = table([make_part("fullkv", "full", "qasper", 0.5, means={}, macros={})])["rows"]
    assert row["means"] == {"mean": {"score": 50.0, "n": 1, "of": 1}} and row["macros"] == {}


def test_missing_samples_out_of_memory_and_what_was_kept_are_counted_over_the_row() -> None:
    runs = make_suite("snapkv", "0.2", 0.5)
    out_of_memory(runs[0], 0, 1)
    runs[1].samples.pop()
    (row,) = table(runs)["rows"]
    assert (row["n"], row["oom"], row["num_samples"]) == (25, 2, 28)
    assert row["datasets"]["qasper"] == {"score": 50.0, "n": 6, "oom": 2, "failed": 0, "num_samples": 8}
    assert row["kept_tokens"] == pytest.approx(200) and row["kept_share"] == row["held_share"] == pytest.approx(0.2)
    out_of_memory(runs[0], *range(8))
    (row,) = table(runs)["rows"]
    assert row["datasets"]["qasper"]["score"] is None and row["means"]["avg-4"]["n"] == 3


def test_another_metric_is_shown_where_it_was_taken() -> None:
    runs = make_suite("fullkv", "full", 0.5)
    for sample in runs[0].samples:
        sample["scores"]["rouge_l"] = 0.25
    (row,) = table(runs, "rouge_l")["rows"]
    assert [cell["score"] for cell in row["datasets"].values()] == [25.0, None, None, None]
    with pytest.raises(ValueError, match=r"^--metric bleu: these runs hold qa_f1, rouge_l$"):
        table(runs, "bleu")


def test_buckets_are_those_that_the_benchmark_names() -> None:
    assert suite.BUCKETS == longbench.BUCKETS


def test_shares_are_means_over_samples_and_not_the_share_of_the_means() -> None:
    """A long prompt counts as much as a short one."""
    run = make_part("snapkv", "0.2", "qasper", [0.5, 0.5])
    for sample, span, kept in zip(run.samples, (1000, 100), (100, 90), strict=True):
        sample |= {"span": span, "kept_mean": float(kept), "kv_bytes_full": 8 * span, "kv_bytes": 8 * kept}
    (row,) = table([run])["rows"]
    assert row["kept_tokens"] == pytest.approx(95)
    assert row["kept_share"] == row["held_share"] == pytest.approx(0.5)


def test_buckets_are_by_dataset_and_an_empty_one_has_no_score() -> None:
    buckets = ["0-4k", "0-4k", "8k+", "0-4k", "0-4k", "8k+"]
    runs = [make_part("fullkv", "full", "multifieldqa_en", [0.1, 0.2, 1.0, 0.3, 0.4, 0.5], buckets=buckets)]
    (row,) = table([*runs, make_part("fullkv", "full", "qasper", 0.5)])["rows"]
    assert row["buckets"] == {"multifieldqa_en": {"0-4k": 25.0, "4-8k": None, "8k+": 75.0}}


# ---- difference to the full cache ----------------------------------------------------------------


def test_the_difference_is_of_the_leading_mean_over_common_datasets_and_samples() -> None:
    full, run = make_suite("fullkv", "full", 0.5), make_suite("snapkv", "128", 0.4)
    for sample in run[2].samples:  # hotpotqa: no loss
        sample["scores"]["qa_f1"] = 0.5
    difference = table([*full, *run])["rows"][1]["difference"]
    assert difference["mean"] == pytest.approx(-7.5) and difference["n"] == 28 and difference["significant"]
    out_of_memory(run[0], *range(8))  # qasper: nothing in common
    out_of_memory(full[3], *range(4))  # gov_report: nothing in common
    difference = table([*full, *run])["rows"][1]["difference"]
    assert difference["mean"] == pytest.approx(-5.0) and difference["n"] == 16
    assert table(run)["rows"][0]["difference"] is None
    assert table([*full, *run])["rows"][0]["difference"] is None


def test_strata_count_alike_and_the_interval_is_of_draws_within_them() -> None:
    rng = np.random.default_rng(1)
    strata = [rng.normal(1, 0.5, 50), rng.normal(3, 0.1, 800), np.array([])]
    result = stratified_difference(strata)
    assert result["mean"] == pytest.approx((strata[0].mean() + strata[1].mean()) / 2)
    error = 0.5 * (strata[0].var() / 50 + strata[1].var() / 800) ** 0.5  # the spread between strata is no part of it
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert result == stratified_difference(strata) and result["n"] == 850
    assert stratified_difference([np.array([])]) is None


def test_without_a_spread_there_is_no_interval_but_a_reason() -> None:
    alone = stratified_difference([np.array([1.0, 2.0, 3.0]), np.array([2.0])])
    assert alone is not None and (alone["mean"], alone["low"], alone["reason"]) == (2.0, None, "1 sample")
    assert not alone["significant"], "a dataset of one sample is not certain"
    for value, number, significant in ((0.0, 500, False), (-1.0, 5, False), (-1.0, 6, True)):
        equal = stratified_difference([np.full(number, value)])
        assert equal is not None and (equal["low"], equal["reason"]) == (None, "no spread")
        assert equal["significant"] == significant
    both = stratified_difference([np.full(6, -1.0), np.full(6, 1.0)])
    assert both is not None and not both["significant"], "of two signs"


def draws(kind: str, rng: np.random.Generator, size: int | tuple[int, int]) -> np.ndarray:
    """Return differences whose true mean is -0.1."""
    if kind == "normal":
        return rng.normal(-0.1, 0.3, size)
    if kind == "skewed":
        return -rng.exponential(0.1, size)
    return rng.choice([-1.0, 0.0, 1.0], size, p=[0.15, 0.8, 0.05])  # an answer is right or wrong


@pytest.mark.parametrize("kind", ["normal", "skewed", "right or wrong"])
@pytest.mark.parametrize(("datasets", "samples"), [(16, 2), (6, 2), (3, 2), (16, 10), (1, 5), (1, 50)])
def test_the_interval_covers_the_true_difference(kind: str, datasets: int, samples: int) -> None:
    """At least as often as it says, but for single datasets of a few skewed samples."""
    rng = np.random.default_rng(7)
    results = trials([draws(kind, rng, (500, samples)) for _ in range(datasets)], draws=999)
    intervals = [(trial["low"], trial["high"]) for trial in results if trial and trial["low"] is not None]
    coverage = np.mean([low <= -0.1 <= high for low, high in intervals])
    assert coverage >= (0.86 if kind == "skewed" and datasets == 1 else 0.92), coverage


# ---- published tables ----------------------------------------------------------------------------


def published(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((DATA / "reference_results" / name).read_text().splitlines()))


@golden("reference_results")
def test_published_averages_follow_from_their_datasets() -> None:
    cases = [
        *((row, list(row)[5:21], "avg_recomputed", 0.0101) for row in published("longbench16.csv")),
        *((row, list(row)[3:9], "Avg6", 0.0101) for row in published("headkv_qa.csv")),
        *((row, list(row)[7:20], "avg", 0.051) for row in published("ruler4k_tables.csv")),
    ]
    whole = [case for case in cases if all(case[0][name] for name in [*case[1], case[2]])]
    assert len(whole) >= 100
    for row, columns, average, tolerance in whole:
        runs = [
            make_part("fullkv", "full", name, [float(row[name]) / 100], means={"avg": len(columns)}, order=order)
            for order, name in enumerate(columns)
        ]
        (line,) = table(runs)["rows"]
        assert [cell["score"] for cell in line["datasets"].values()] == [float(row[name]) for name in columns]
        assert line["means"]["avg"]["score"] == pytest.approx(float(row[average]), abs=tolerance), row


def test_a_method_that_stores_all_tokens_in_fewer_bits_is_no_baseline() -> None:
    """It has no budget either, and its name may come first."""
    runs = [
        *make_suite("a_quantised", "full", 0.9),
        *make_suite("fullkv", "full", 0.5),
        *make_suite("snapkv", "0.2", 0.4),
    ]
    for run in runs[: len(SUITE)]:
        run.manifest["identity"]["method"] |= {"store": {"bits": 2}}
    result = table(runs)
    assert [(row["method"], row["is_full_cache"]) for row in result["rows"]] == [
        ("fullkv", True), ("a_quantised", False), ("snapkv", False),
    ]  # fmt: skip
    assert [row["difference"] and round(row["difference"]["mean"], 6) for row in result["rows"]] == [None, 40.0, -10.0]
