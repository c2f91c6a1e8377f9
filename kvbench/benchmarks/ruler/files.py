"""RULER's files: how they are read, written, and split into context, question and start of the answer."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvbench.benchmarks.ruler.tasks import find_task
from kvbench.common.files import replacing
from kvbench.data.text import is_whole_text, parse_json, read_lines

# NVIDIA/kvpress 8bb29b9c: the context ends before the LAST match of the first pattern; the answer prefix starts at the
# FIRST match of the second pattern after it.
QUESTION = {
    "niah": r"What (?:is|are all) the special magic",
    "vt": r"Question: Find all variables that are assigned the value",
    "cwe": r"Question: What are the 10 most common words in the above list\?",
    "fwe": r"Question: Do not provide any explanation\.",
    "qa": r"Answer the question based on the given documents\.",
}
ANSWER = {"niah": r"The special magic", **dict.fromkeys(("vt", "cwe", "fwe", "qa"), r"Answer:")}
STYLES = ("kvpress", "upstream")


def split(task: str, record: Mapping[str, Any], *, style: str = "kvpress") -> tuple[str, str, str]:
    """Return (context, question, answer prefix) of a record. Joined, they are its input and answer prefix.

    style: "kvpress" puts the space before the answer into the question, as the data set of NVIDIA/kvpress does;
    "upstream" leaves it in the answer prefix, which is where RULER writes the end of the user's turn. The context is
    the same. The record can also be one of 2024, with the prefix inside its input, or a row that is split already.
    Raises ValueError if the text does not look like the task.
    """
    family = find_task(task).family
    if style not in STYLES:
        raise ValueError(f"style={style}: one of {', '.join(STYLES)}")
    text = record["input"] + record.get("answer_prefix", "")
    if "context" in record:
        start = len(record["context"])
    else:
        questions = list(re.finditer(QUESTION[family.name], text))
        start = questions[-1].start() if questions else -1
    if style == "kvpress":
        answer = re.search(ANSWER[family.name], text[start:]) if start >= 0 else None
        end = start + answer.start() if answer else -1
    else:
        end = text.rfind(family.answer_prefix[:10])
    if start < 0 or end < start:
        raise ValueError(f"benchmark.tasks=[{task}]: a record lacks the question or the answer prefix of this task")
    return text[:start], text[start:end], text[end:]


def load_records(path: str | Path, task: str) -> list[dict[str, Any]]:
    """Return the records of a task from a JSONL file, or a folder with <task>/validation.jsonl or <task>.jsonl.

    Lines are upstream's, of any year, or rows of the Hugging Face data set simonjegou/ruler (context, question,
    answer_prefix, answer, task, max_new_tokens). These become records that keep their context and question; rows of
    other tasks are left out. Raises ValueError, with file and line, for a damaged line or a missing field.
    """
    find_task(task)
    file = records_file(path, task)
    records = []
    for number, line in enumerate(read_lines(file)[0], 1):
        if line.strip():
            record = _parsed(line, f"{file}, line {number}")
            if record.pop("task", task) == task:
                records.append(record)
    if not records:
        raise ValueError(f"{file}: no records of {task} in it")
    return records


def records_file(path: str | Path, task: str) -> Path:
    """Return the file with a task's records: `path` itself, or <task>/validation.jsonl or <task>.jsonl in it.

    Raises ValueError if there is none.
    """
    folder = Path(path).expanduser()
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        for file in (folder, folder / task / "validation.jsonl", folder / f"{task}.jsonl"):
            if file.is_file():
                return file
    raise ValueError(f"benchmark.files={path}: not a file, and no folder with {task}.jsonl or {task}/validation.jsonl")


def _parsed(line: str, where: str) -> dict[str, Any]:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object was expected, not {type(row).__name__}")
    published = "context" in row
    for name in ("context", "question", "answer_prefix", "answer") if published else ("input", "outputs"):
        if name not in row:
            raise ValueError(f"{where}: the field {name!r} is missing")
    answers = row.pop("answer") if published else row["outputs"]
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text for text in answers):
        raise ValueError(f"{where}: the answers must be a list of texts that are not empty")
    if type(row.get("length", 0)) is not int:
        raise ValueError(f"{where}: the field 'length' must be a whole number")
    for name in {"input", "context", "question", "answer_prefix"} & set(row):
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: the field {name!r} must be a text")
    if "\\ud" in line.lower() and not is_whole_text(row):
        raise ValueError(f"{where}: holds half of a character, which no tokenizer can read")
    if published:
        row["input"] = row["context"] + row["question"]
    return {**row, "outputs": answers}


def save_records(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL as upstream does. The file appears when it is whole, also if several processes write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record) + "\n")
