"""RULER's metrics (arXiv 2404.06654): whether the reference strings occur in the answer.

Comparison is by substring without case and without word boundaries, as upstream: "no" is found in "know", and
1234567 in 12345678. For a stricter reading of numbers see `kvbench.metrics.needle.exact_recall`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvbench.metrics.answer_list import check_answers

METRIC_VERSION = 1  # raise when a score changes

METRICS: dict[str, str] = {
    **dict.fromkeys(
        (
            "niah_single_1",
            "niah_single_2",
            "niah_single_3",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multikey_3",
            "niah_multivalue",
            "niah_multiquery",
            "vt",
            "cwe",
            "fwe",
        ),
        "string_match_all",
    ),
    **dict.fromkeys(("qa_1", "qa_2"), "string_match_part"),
}
_CONTROL = re.compile(r"[\x00-\x1f]")


def post_process(prediction: str, *, kvpress: bool = False) -> str:
    """Return the text that is compared: stripped, control characters turned into newlines, stripped again.

    kvpress: NVIDIA/kvpress deletes the control characters instead, which joins the words around them.
    """
    return _CONTROL.sub("" if kvpress else "\n", prediction.strip()).strip()


def ruler_sample_score(task: str, prediction: str, references: Sequence[str], *, kvpress: bool = False) -> float:
    """Return the score of one sample, in [0, 1].

    Share of the references that the prediction holds; for qa_1 and qa_2 1.0 as soon as it holds one of them. Raises
    ValueError for an unknown task, or without references.
    """
    check_answers(references)
    if task not in METRICS:
        raise ValueError(f"benchmark.tasks=[{task}]: no such task; RULER has {', '.join(METRICS)}")
    if not references:
        raise ValueError(f"{task}: a sample without reference answers cannot be scored")
    text = post_process(prediction, kvpress=kvpress).lower()
    occurs = [reference.lower() in text for reference in references]
    return float(any(occurs)) if METRICS[task] == "string_match_part" else sum(occurs) / len(occurs)


def ruler_score(
    task: str, predictions: Sequence[str], references: Sequence[Sequence[str]], *, kvpress: bool = False
) -> float:
    """Return the score of a task in [0, 100]: the mean over its samples, rounded to two decimals as upstream prints it.

    Raises ValueError without samples, or if there are not as many references as predictions.
    """
    check_answers(references)
    check_answers(predictions)
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{task}: {len(predictions)} predictions for {len(references)} lists of references")
    scores = [ruler_sample_score(task, *pair, kvpress=kvpress) for pair in zip(predictions, references, strict=True)]
    return round(sum(scores) / len(scores) * 100, 2)
