"""Scores of a short answer that any benchmark can choose by name: the best over the answers that are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvbench.metrics.answer_list import check_answers
from kvbench.metrics.bag_f1 import qa_f1
from kvbench.metrics.needle import exact_recall
from kvbench.metrics.rouge_l import rouge_l

# Raise a number when its function changes a score: runs record it with their scores.
VERSIONS = {"exact": 1, "contains": 1, "f1": 1, "rouge_l": 1}


def answer_score(name: str, prediction: str, answers: Sequence[str]) -> float:
    """Return the score `name` of a prediction, in [0, 1]: its best over the answers; 0.0 without answers.

    exact: 1.0 if the prediction is an answer; case, runs of white space and a final full stop do not count.
    contains: 1.0 if the prediction holds an answer, which must not continue into a longer number (`exact_recall`).
    f1: F1 of the words, LongBench's score for questions (`qa_f1`). rouge_l: ROUGE-L F, LongBench's score for summaries.

    Raises:
        KeyError: there is no such score.
    """
    check_answers(answers)
    score = _SCORES[name]
    return max((score(prediction, answer) for answer in answers), default=0.0)


def exact(prediction: str, answer: str) -> float:
    """Return 1.0 if the texts are the same but for case, runs of white space and a final full stop, else 0.0."""
    return float(_plain(prediction) == _plain(answer))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


_SCORES: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "contains": lambda prediction, answer: exact_recall(prediction, [answer]),
    "f1": qa_f1,
    "rouge_l": rouge_l,
}
