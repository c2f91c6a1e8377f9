"""LongBench's datasets (arXiv 2308.14508): categories, languages, and the averages they enter."""

from __future__ import annotations

from kvbench.benchmarks.base import SuiteColumn
from kvbench.common.tasks import AGGREGATION, LOCALIZATION
from kvbench.data.sources import LONGBENCH_ROWS

# category, language; the order of the official table
DATASETS: dict[str, tuple[str, str]] = {
    "narrativeqa": ("single-doc QA", "en"),
    "qasper": ("single-doc QA", "en"),
    "multifieldqa_en": ("single-doc QA", "en"),
    "multifieldqa_zh": ("single-doc QA", "zh"),
    "hotpotqa": ("multi-doc QA", "en"),
    "2wikimqa": ("multi-doc QA", "en"),
    "musique": ("multi-doc QA", "en"),
    "dureader": ("multi-doc QA", "zh"),
    "gov_report": ("summarisation", "en"),
    "qmsum": ("summarisation", "en"),
    "multi_news": ("summarisation", "en"),
    "vcsum": ("summarisation", "zh"),
    "trec": ("few-shot", "en"),
    "triviaqa": ("few-shot", "en"),
    "samsum": ("few-shot", "en"),
    "lsht": ("few-shot", "zh"),
    "passage_count": ("synthetic", "en"),
    "passage_retrieval_en": ("synthetic", "en"),
    "passage_retrieval_zh": ("synthetic", "zh"),
    "lcc": ("code", "en"),
    "repobench-p": ("code", "en"),
}
# LongBench calls these few-shot and synthetic, but the answer lies in one passage of the context.
_LOCALIZATION = ("triviaqa", "passage_retrieval_en", "passage_retrieval_zh")
ENGLISH = tuple(name for name, (_, language) in DATASETS.items() if language == "en")
E = tuple(name for name in ENGLISH if name not in ("narrativeqa", "musique", "qmsum"))
SETS = {"en16": ENGLISH, "all21": tuple(DATASETS), "e13": tuple(f"{name}_e" for name in E)}


def task_of(dataset: str) -> str:
    """Return the task of a dataset: localization for question answering and retrieval, else aggregation.

    WindowKV (arXiv 2503.17922) names these two kinds; its code calls the first "qa" and everything else "other".
    """
    category, _ = DATASETS[dataset]
    return LOCALIZATION if category.endswith("QA") or dataset in _LOCALIZATION else AGGREGATION


def place(suite: str, dataset: str) -> SuiteColumn:
    """Return a dataset's column in the tables of a suite; Chinese has an overall score of its own."""
    plain = dataset.removesuffix("_e")
    category, language = DATASETS[plain]
    order = list(DATASETS).index(plain)
    if dataset != plain:
        return SuiteColumn(
            f"{suite}-e",
            dataset,
            order,
            category,
            means={"avg-13": 13},
            macros={"macro": 6},
            samples=LONGBENCH_ROWS[dataset],
        )
    means = {"avg-21": 21} | ({"avg-16": 16} if language == "en" else {})
    categories = len({kind for kind, tongue in DATASETS.values() if tongue == language})
    return SuiteColumn(
        suite,
        dataset,
        order,
        category,
        means=means,
        macros={f"macro-{language}": categories},
        samples=LONGBENCH_ROWS[dataset],
    )
