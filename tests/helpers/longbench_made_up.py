"""A LongBench bundle in upstream's layout, made up: own prompts, two short rows per dataset."""

from __future__ import annotations

import json
from pathlib import Path

from kvbench.benchmarks.longbench_datasets import DATASETS

CLASSES = ["Food", "Foodstuff", "Date"]
ANSWERS = {
    "multifieldqa_zh": "北京大学",
    "dureader": "是的，可以。",
    "vcsum": "会议讨论了预算。",
    "trec": "Food",
    "lsht": "Date",
    "passage_count": "7",
    "passage_retrieval_en": "Paragraph 3",
    "passage_retrieval_zh": "段落3",
    "lcc": "    return x",
    "repobench-p": "import os",
}
NO_INPUT = ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")


def template(dataset: str) -> str:
    """Return a prompt with an instruction on both sides, and a trailing space where upstream has one."""
    asked = "" if dataset in NO_INPUT else "\nAsked: {input}"
    end = "\nThe answer is: " if dataset.startswith("passage") else "\nAnswer:"
    return f"Task {dataset}.\n\n{{context}}\n\nNow answer.{asked}{end}"


def row(dataset: str, index: int, more: int = 0) -> dict:
    """Return one sample, long enough that a small limit cuts its middle; `more` sentences make it longer."""
    plain = dataset.removesuffix("_e")
    return {
        "input": "" if plain in NO_INPUT else f"What is {{number}} {index}?",
        "context": f"The {plain} text {index} begins. "
        + "Nothing happens here, <s> or there. " * (5 + 3 * index + more),
        "answers": [ANSWERS.get(plain, "a small mat")],
        "length": 3000 + 3000 * index,
        "dataset": dataset,
        "language": "zh" if DATASETS[plain][1] == "zh" else "en",
        "all_classes": CLASSES if plain in ("trec", "lsht") else None,
        "_id": f"{index:048x}",
    }


def write_bundle(folder: Path, datasets: list[str] | None = None, rows: int = 2, more: int = 0) -> Path:
    """Write config/ and data/ below `folder`; returns it."""
    names = [*DATASETS, "qasper_e"] if datasets is None else datasets
    (folder / "config").mkdir(parents=True)
    (folder / "data").mkdir()
    prompts = {name: template(name) for name in DATASETS}
    (folder / "config" / "dataset2prompt.json").write_text(json.dumps(prompts), encoding="utf-8")
    lengths = {name: 8 + position for position, name in enumerate(DATASETS)}
    (folder / "config" / "dataset2maxlen.json").write_text(json.dumps(lengths), encoding="utf-8")
    for name in names:
        lines = [json.dumps(row(name, index, more), ensure_ascii=False) + "\n" for index in range(rows)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
