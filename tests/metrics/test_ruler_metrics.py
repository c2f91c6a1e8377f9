"""RULER's scores: cases worked out by hand, and outputs of upstream's metric code."""

from __future__ import annotations

import pytest

from kvbench.benchmarks.ruler import TASKS
from kvbench.metrics.ruler import METRICS, post_process, ruler_sample_score, ruler_score
from tests.helpers.outside import golden, read_rows

ORACLE = "oracle/ruler_metrics.jsonl"


@pytest.mark.parametrize(
    ("task", "prediction", "references", "score"),
    [
        ("niah_single_1", " 1234567.", ["1234567"], 1.0),
        ("niah_single_1", "12345678", ["1234567"], 1.0),  # no word boundaries
        ("niah_multivalue", "1 and 3", ["1", "2", "3", "4"], 0.5),
        ("vt", "abcde FGHIJ", ["ABCDE", "FGHIJ", "KLMNO"], 2 / 3),
        ("cwe", "", ["word"], 0.0),
        ("qa_1", "I know", ["no", "yes"], 1.0),  # one is enough, and inside a word
        ("qa_2", "perhaps", ["no", "yes"], 0.0),
        ("qa_1", "DENVER Broncos", ["Denver Broncos", "The Denver Broncos"], 1.0),
        ("fwe", "ab\tc", ["b\nc"], 1.0),  # a control character becomes a newline
    ],
)
def test_sample_score(task: str, prediction: str, references: list[str], score: float) -> None:
    assert ruler_sample_score(task, prediction, references) == pytest.approx(score, abs=1e-12)


def test_a_task_score_is_a_percentage_with_two_decimals() -> None:
    assert ruler_score("niah_single_1", ["1", "2", "x"], [["1"], ["2"], ["3"]]) == 66.67
    assert ruler_score("qa_1", ["yes"], [["no", "yes"]]) == 100.0


def test_kvpress_deletes_control_characters() -> None:
    assert post_process(" \x00a\tb\n") == "a\nb"
    assert post_process(" \x00a\tb\n", kvpress=True) == "ab"
    assert ruler_score("niah_single_1", ["12\n34"], [["1234"]]) == 0.0
    assert ruler_score("niah_single_1", ["12\n34"], [["1234"]], kvpress=True) == 100.0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"^benchmark.tasks=\[niah\]: no such task; RULER has niah_single_1, .*$"):
        ruler_score("niah", ["1"], [["1"]])
    with pytest.raises(ValueError, match="vt: 2 predictions for 1 lists of references"):
        ruler_score("vt", ["1", "2"], [["1"]])
    with pytest.raises(ValueError, match="vt: 0 predictions"):
        ruler_score("vt", [], [])
    with pytest.raises(ValueError, match="without reference answers"):
        ruler_score("vt", ["1"], [[]])


def test_every_task_has_a_metric() -> None:
    assert list(METRICS) == list(TASKS)
    assert [name for name, task in TASKS.items() if task.metric == "string_match_part"] == ["qa_1", "qa_2"]


@golden(ORACLE)
def test_scores_are_upstreams() -> None:
    rows = read_rows(ORACLE)
    assert len(rows) >= 100
    for row in rows:
        arguments = row["task"], row["predictions"], row["references"]
        assert METRICS[row["task"]] == row["metric"]
        assert [post_process(prediction) for prediction in row["predictions"]] == row["postprocessed"], row["id"]
        assert ruler_score(*arguments) == pytest.approx(row["score"], abs=1e-9), row["id"]
        assert ruler_score(*arguments, kvpress=True) == pytest.approx(row["score_kvpress"], abs=1e-9), row["id"]
