"""Needle scores: exact recall, and the two of PyramidKV (arXiv 2406.02069), ROUGE-1 and word overlap.

PyramidKV stores the first and draws its heatmaps from the second. They differ on the same text: the perfect
short answer has an overlap of 1.0 and a ROUGE-1 F1 of 0.727. Hence each has its own name here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kvbench.metrics.answer_list import check_answers

# Raise a number when its function changes a score: it is part of every run's protocol.
VERSIONS = {"recall": 1, "rouge1": 1, "overlap": 1}


def exact_recall(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if every answer occurs in the prediction, else 0.0.

    Case, runs of white space and an answer's final full stop do not count. An answer that starts or ends
    with a digit must not continue into a longer number: "12345678" does not contain "1234567".
    """
    check_answers(answers)
    text = _plain(prediction)
    return float(all(_occurs(_plain(answer).rstrip("."), text) for answer in answers))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _occurs(answer: str, text: str) -> bool:
    if not answer:
        return False
    before = r"(?<!\d)" if answer[0].isdigit() else ""
    after = r"(?!\d)" if answer[-1].isdigit() else ""
    return re.search(before + re.escape(answer) + after, text) is not None


def needle_rouge(prediction: str, answer: str) -> float:
    """Return ROUGE-1 F1 (package `rouge_score`, Porter stemmer) of the stripped prediction; 0.0 for an empty one.

    PyramidKV and HeadKV store ten times this value, with the whole needle as the reference.
    """
    prediction = prediction.strip()
    return float(_scorer().score(answer, prediction)["rouge1"].fmeasure) if prediction else 0.0


def needle_rouge_recall(prediction: str, answer: str) -> float:
    """Return ROUGE-1 recall of the stripped prediction, as HeadKV's probe of heads takes it (arXiv 2410.19258)."""
    return float(_scorer().score(answer, prediction.strip())["rouge1"].recall)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second; only scoring needs it

    return RougeScorer(["rouge1"], use_stemmer=True)


def needle_overlap(prediction: str, answer: str) -> float:
    """Return the share of the answer's distinct lower-cased words, split at white space, that the prediction holds.

    The score of the published PyramidKV heatmaps. Punctuation belongs to its word: "day." is not "day".
    """
    expected = set(answer.lower().split())
    return len(expected & set(prediction.lower().split())) / len(expected) if expected else 0.0
