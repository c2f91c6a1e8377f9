"""LongBench scores against outputs of the published scoring code. All tests here need data outside the repository."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from typing import Any

import pytest

from kvbench.metrics import bucket, dataset_score, longbench_score, score_many
from kvbench.metrics.code_sim import fuzz_ratio
from kvbench.metrics.longbench import METRIC_OF
from tests.helpers.outside import DATA, golden, read_rows

METRICS, FUZZ = "oracle/longbench_metrics.jsonl", "oracle/fuzz_ratio.jsonl"
REAL, TRUTH = "oracle/longbench_real", "longbench/groundtruth"

FIELDS: dict[str, dict[str, Any]] = {
    "score": {"recursion_limit": True},
    "score_no_recursion_limit": {},
    "score_levenshtein": {"code_backend": "indel"},
    "score_kvpress": {"strip": "leading", "recursion_limit": True},
    "score_kvpress_difflib": {"strip": "leading"},
    "score_kvpress_levenshtein": {"strip": "leading", "code_backend": "indel"},
}


@golden(METRICS)
@pytest.mark.parametrize("field", FIELDS)
def test_every_row_of_the_published_code(field: str) -> None:
    rows = [row for row in read_rows(METRICS) if field in row]
    assert len(rows) >= 50
    for row in rows:
        score = longbench_score(
            row["dataset"], row["prediction"], row["ground_truths"], row["all_classes"], **FIELDS[field]
        )
        assert score == pytest.approx(row[field], abs=1e-9), row["id"]


@golden(METRICS)
def test_the_rows_tell_the_recursion_limit_and_the_strip() -> None:
    rows = read_rows(METRICS)
    assert any(row.get("score_no_recursion_limit", row["score"]) != row["score"] for row in rows)
    assert any(row.get("score_kvpress", row["score"]) != row["score"] for row in rows)
    assert {row["dataset"] for row in rows} == set(METRIC_OF)


@golden(FUZZ)
def test_every_pair_of_fuzz_ratio() -> None:
    pairs = read_rows(FUZZ)
    assert len(pairs) >= 100
    for pair in pairs:
        assert fuzz_ratio(pair["a"], pair["b"], "difflib") == pair["fuzzywuzzy_difflib"]
        assert fuzz_ratio(pair["a"], pair["b"], "indel") == pair["fuzzywuzzy_levenshtein"] == pair["thefuzz"]


def predictions(model: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the rows to score and their lengths. As published, all rows of a dataset have the classes of the last."""
    truth = {dataset: read_rows(f"{TRUTH}/{dataset}.jsonl") for dataset in METRIC_OF}
    rows, lengths = [], []
    with lzma.open(DATA / REAL / f"{model}.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            of_dataset = truth[record["dataset"]]
            sample = of_dataset[record["index"]]
            rows.append({"dataset": record["dataset"], "prediction": record["pred"], "answers": sample["answers"]})
            rows[-1]["all_classes"] = of_dataset[-1]["all_classes"]
            lengths.append(sample["length"])
    return rows, lengths


@golden(REAL, TRUTH)
@pytest.mark.parametrize("model", ["llama2-7b-chat-4k"])
def test_real_predictions_score_as_published(model: str) -> None:
    rows, lengths = predictions(model)
    assert len(rows) == 4750
    figures: dict[str, dict[str, float]] = {dataset: {} for dataset in METRIC_OF}
    buckets: dict[str, dict[str, float]] = {}
    for strip, kind in (("none", "upstream"), ("leading", "kvpress")):
        values = defaultdict(list)
        of_bucket = defaultdict(list)
        details = score_many(rows, workers=2, detail=True, strip=strip)
        for row, length, scores in zip(rows, lengths, details, strict=True):
            for name, value in scores.items():
                values[row["dataset"], name].append(value)
            of_bucket[row["dataset"], bucket(length)].append(scores[METRIC_OF[row["dataset"]]])
        for (dataset, name), each in values.items():
            backend = {"code_sim_difflib": "_difflib", "code_sim_indel": "_levenshtein"}.get(name, "")
            figures[dataset][kind + backend] = dataset_score(each)
        if kind == "upstream":
            for (dataset, name), each in of_bucket.items():
                buckets.setdefault(dataset, {})[name] = dataset_score(each)
    published = json.loads((DATA / REAL / "scores.json").read_text(encoding="utf-8"))[model]
    checked = 0
    for dataset, expected in published.items():
        if dataset.startswith("_"):
            continue
        assert figures[dataset]["upstream"] == expected["published"], dataset
        for kind, figure in expected.items():
            if kind == "scorer_e_buckets":
                assert buckets[dataset] == figure, dataset
            elif kind not in ("published", "n"):
                assert figures[dataset][kind] == figure, (dataset, kind)
            checked += 1
    assert checked >= 21 * 3
    chinese = {d for d, metric in METRIC_OF.items() if metric.endswith("_zh")} | {"lsht"}
    for name, left_out in (("_avg16_difflib", chinese), ("_avg21_difflib", set())):
        flat = [figures[dataset]["upstream"] for dataset in METRIC_OF if dataset not in left_out]
        assert sum(flat) / len(flat) == pytest.approx(published[name], abs=1e-9)
