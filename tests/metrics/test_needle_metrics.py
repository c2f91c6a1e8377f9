"""Needle scores: cases worked out by hand, and outputs of the published metric code."""

from __future__ import annotations

import pytest

from kvbench.metrics.needle import exact_recall, needle_overlap, needle_rouge
from tests.helpers.outside import golden, read_rows

NEEDLE = "\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n"
ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day."
ORACLE = "oracle/needle_rouge.jsonl"


@pytest.mark.parametrize(
    ("prediction", "answers", "recall"),
    [
        (" 1234567.", ["1234567"], 1.0),
        ("It is 1234567, I think", ["1234567"], 1.0),
        ("12345678", ["1234567"], 0.0),
        ("01234567", ["1234567"], 0.0),
        ("123456", ["1234567"], 0.0),
        ("87654321234567 and 1234567", ["1234567"], 1.0),
        ("", ["1234567"], 0.0),
        ("They EAT a\n sandwich", ["eat a sandwich."], 1.0),
        ("one and two", ["one", "two"], 1.0),
        ("one", ["one", "two"], 0.0),
        ("a.b", ["aXb"], 0.0),
        ("axb", ["a.b"], 0.0),
        ("anything", [""], 0.0),
    ],
)
def test_exact_recall(prediction: str, answers: list[str], recall: float) -> None:
    assert exact_recall(prediction, answers) == recall


def test_rouge_of_the_perfect_short_answer() -> None:
    # 12 of the needle's 21 words, all of them right: precision 1, recall 12/21.
    assert needle_rouge(f"\n {ANSWER}", NEEDLE) == pytest.approx(2 * (12 / 21) / (1 + 12 / 21))


def test_rouge_stems_and_survives_an_empty_prediction() -> None:
    assert needle_rouge("running", "runs") == 1.0
    assert needle_rouge(" \n", NEEDLE) == 0.0
    assert needle_rouge("1234567.", "1234567") == 1.0


def test_overlap_counts_distinct_words_with_their_punctuation() -> None:
    assert needle_overlap("EAT a a a sandwich", ANSWER) == pytest.approx(3 / 11)
    assert needle_overlap(ANSWER.rstrip("."), ANSWER) == pytest.approx(10 / 11)
    assert needle_overlap(ANSWER, ANSWER) == 1.0
    assert needle_overlap("a", "") == 0.0


@golden(ORACLE)
def test_published_metric_code_agrees() -> None:
    rows = read_rows(ORACLE)
    assert rows
    for row in rows:
        rouge = needle_rouge(row["response"], row["needle"])
        assert rouge == pytest.approx(row["rouge1_f_x10"] / 10, abs=1e-9), row["id"]
        if row["heatmap_overlap"] is not None:  # defined for the sandwich needle alone
            overlap = needle_overlap(row["response"], ANSWER)
            assert overlap == pytest.approx(row["heatmap_overlap"], abs=1e-9), row["id"]
