"""All metrics on our own texts, against the scores stored in tests/golden/."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvbench.metrics.longbench import METRIC_OF
from kvbench.metrics.ruler import METRICS
from tests.golden import make


def rows(name: str) -> list[dict[str, Any]]:
    text = (make.HERE / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.parametrize(
    ("name", "scores", "number"),
    [
        ("longbench_metrics", make.longbench_row_scores, 253),
        ("ruler_metrics", make.ruler_row_scores, 78),
        ("needle_metrics", make.needle_row_scores, 40),
    ],
)
def test_scores_are_the_stored_ones(name: str, scores: Callable[[dict[str, Any]], Any], number: int) -> None:
    stored = rows(name)
    assert len(stored) == number
    for row in stored:
        for key, expected in row["scores"].items():
            assert scores(row)[key] == pytest.approx(expected, abs=1e-9), row


def test_the_rows_cover_every_metric_and_every_switch() -> None:
    stored = rows("longbench_metrics")
    assert {row["dataset"] for row in stored} == set(METRIC_OF)
    assert {row["task"] for row in rows("ruler_metrics")} == set(METRICS)
    for switch in set(make.SWITCHES) - {"default"}:
        assert any(row["scores"][switch] != row["scores"]["default"] for row in stored), switch
    assert any(row["scores"]["ruler"] != row["scores"]["kvpress"] for row in rows("ruler_metrics"))
