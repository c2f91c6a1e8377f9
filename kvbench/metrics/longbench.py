"""LongBench v1 scores (Bai et al., arXiv 2308.14508): the 21 datasets and LongBench-E, post-processing included.

The switches name what code bases do differently on the same predictions; the defaults are LongBench's own.

    code_backend     "difflib", or "indel": with python-Levenshtein, as PyramidKV and WindowKV require it
    strip            "none", or "leading": white space before the prediction is removed, as in kvpress's scores of the
                     21 datasets (not of LongBench-E)
    recursion_limit  "off", or "emulate": a ROUGE-L that exceeds Python's recursion limit in LongBench's script is 0, as
                     there; False and True mean the same
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from kvbench.metrics.answer_list import check_answers
from kvbench.metrics.bag_f1 import qa_f1, qa_f1_zh
from kvbench.metrics.code_sim import BACKENDS, code_sim
from kvbench.metrics.matching import classification, count, retrieval
from kvbench.metrics.rouge_l import WALK_LIMIT, rouge_l
from kvbench.metrics.tokens_zh import tokens_zh

METRIC_OF = {
    "narrativeqa": "qa_f1",
    "qasper": "qa_f1",
    "multifieldqa_en": "qa_f1",
    "multifieldqa_zh": "qa_f1_zh",
    "hotpotqa": "qa_f1",
    "2wikimqa": "qa_f1",
    "musique": "qa_f1",
    "dureader": "rouge_l_zh",
    "gov_report": "rouge_l",
    "qmsum": "rouge_l",
    "multi_news": "rouge_l",
    "vcsum": "rouge_l_zh",
    "trec": "classification",
    "triviaqa": "qa_f1",
    "samsum": "rouge_l",
    "lsht": "classification",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
# Named <dataset>_e in LongBench-E.
IN_LONGBENCH_E = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
BUCKETS = ("0-4k", "4-8k", "8k+")

# Raise a number when its function changes a score: runs record it with their scores.
VERSIONS = dict.fromkeys([*METRIC_OF.values(), "code_sim_difflib", "code_sim_indel"], 1)

# The first choice of a switch is its default.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "code_backend": BACKENDS,
    "strip": ("none", "leading"),
    "recursion_limit": ("off", "emulate", False, True),
}
_FIRST_LINE_ONLY = ("trec", "triviaqa", "samsum", "lsht")


def longbench_score(
    dataset: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None, **switches: Any
) -> float:
    """Return LongBench's score of one prediction: the best over the answers, in [0, 1]; 0.0 without answers.

    Raises:
        ValueError: unknown dataset or switch; one string for the answers; a classification without `all_classes`;
            an answer that names no paragraph where it has to.
    """
    return longbench_scores(dataset, prediction, answers, all_classes, **switches)[metric_of(dataset)]


def longbench_scores(
    dataset: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None, **switches: Any
) -> dict[str, float]:
    """Return the score under its metric's name, as a record stores it.

    Code has the score of the chosen backend as "code_sim", and that of each backend under its own name.

    Raises:
        ValueError: as `longbench_score`.
    """
    check_answers(answers)
    metric, chosen = metric_of(dataset), check_switches(**switches)
    if chosen["strip"] == "leading":
        prediction = prediction.lstrip()
    if dataset.removesuffix("_e") in _FIRST_LINE_ONLY:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if metric != "code_sim":
        return {metric: _best(_function(metric, all_classes, chosen["recursion_limit"]), prediction, answers)}
    both = {f"code_sim_{name}": _best(partial(code_sim, backend=name), prediction, answers) for name in BACKENDS}
    return {"code_sim": both[f"code_sim_{chosen['code_backend']}"], **both}


def dataset_score(values: Iterable[float]) -> float:
    """Return 100 * mean, rounded to two decimals, as LongBench prints a dataset or a bucket; NaN without values."""
    total, number = 0.0, 0
    for value in values:  # added value by value: `sum` rounds otherwise from Python 3.12 on
        total, number = total + value, number + 1
    return round(100 * total / number, 2) if number else float("nan")


def bucket(length: float) -> str:
    """Return LongBench-E's bucket of a sample by its field `length` (words): "0-4k", "4-8k" or "8k+"."""
    return BUCKETS[(length >= 4000) + (length >= 8000)]


def metric_of(dataset: str) -> str:
    """Return the metric of a dataset of LongBench or, with the ending `_e`, of LongBench-E.

    Raises:
        ValueError: there is no such dataset.
    """
    base = dataset.removesuffix("_e")
    if base in METRIC_OF and (dataset == base or base in IN_LONGBENCH_E):
        return METRIC_OF[base]
    known = [*METRIC_OF, *(f"{name}_e" for name in IN_LONGBENCH_E)]
    raise ValueError(f"dataset={dataset}: LongBench has no such dataset.{_did_you_mean(dataset, known)}")


def check_switches(**switches: Any) -> dict[str, Any]:
    """Return all switches, with defaults for those not given; the recursion limit as True or False.

    Raises:
        ValueError: a switch that does not exist, or a choice that it does not have.
    """
    for name, value in switches.items():
        if name not in SWITCHES:
            raise ValueError(
                f"benchmark.{name}={value}: the metrics have no such switch.{_did_you_mean(name, SWITCHES)}"
            )
        if value not in SWITCHES[name]:
            raise ValueError(f"benchmark.{name}={value}: choose {' or '.join(str(c).lower() for c in SWITCHES[name])}")
    chosen = {name: choices[0] for name, choices in SWITCHES.items()} | switches
    return chosen | {"recursion_limit": chosen["recursion_limit"] in ("emulate", True)}


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(known)}."


def _best(function: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max((function(prediction, answer) for answer in answers), default=0.0)


def _function(metric: str, all_classes: Sequence[str] | None, limited: bool) -> Callable[[str, str], float]:
    if metric == "classification":
        if all_classes is None:
            raise ValueError("LongBench's data: all_classes is null, but a classification is scored with that list")
        return partial(classification, all_classes=all_classes)
    functions: dict[str, Callable[[str, str], float]] = {
        "qa_f1": qa_f1,
        "qa_f1_zh": qa_f1_zh,
        "rouge_l": partial(rouge_l, walk_limit=WALK_LIMIT if limited else None),
        "rouge_l_zh": partial(_rouge_l_zh, walk_limit=WALK_LIMIT - 1 if limited else None),  # it is one call deeper
        "retrieval": partial(retrieval, word="Paragraph "),
        "retrieval_zh": partial(retrieval, word="段落"),
        "count": count,
    }
    return functions[metric]


def _rouge_l_zh(prediction: str, answer: str, walk_limit: int | None) -> float:
    return rouge_l(" ".join(tokens_zh(prediction)), " ".join(tokens_zh(answer)), walk_limit)
