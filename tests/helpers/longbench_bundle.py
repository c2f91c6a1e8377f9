"""A made-up LongBench in upstream's layout, and a small one of everything for the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPTS = {
    "qasper": "Read this.\n\nText: {context}\n\n Now answer.\n\nQuestion: {input}\n\nAnswer:",
    "trec": "Which kind?\n\n{context}\n{input}",
    "lcc": "Go on. \n{context}Next:\n",
    "gov_report": "Read.\n{context}\n\nSum up.\n\nSummary:",
}
LENGTHS = {"qasper": 128, "trec": 64, "lcc": 64, "gov_report": 512}


def row(dataset: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return one row in upstream's schema."""
    plain: dict[str, Any] = {
        "input": f"question {number}?",
        "context": f"Context {number} with a line\u2028separator.",
        "answers": [f"answer {number}"],
        "length": 1000 + number,
        "dataset": dataset,
        "language": "en",
        "all_classes": ["Reason", "Place"] if dataset == "trec" else None,
        "_id": f"{number:048x}",
    }
    return plain | changes


def text(rows: list[dict[str, Any]]) -> str:
    """Return rows as the text of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path, data: str = "data", **rows: int) -> Path:
    """Write templates, lengths and files with the given number of rows: qasper=3, trec=2."""
    (folder / "config").mkdir(parents=True)
    (folder / data).mkdir(exist_ok=True)
    (folder / "config" / "dataset2prompt.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    (folder / "config" / "dataset2maxlen.json").write_text(json.dumps(LENGTHS), encoding="utf-8")
    for name, count in rows.items():
        path = folder / data / f"{name}.jsonl"
        path.write_text(text([row(name, number) for number in range(count)]), encoding="utf-8")
    return folder
