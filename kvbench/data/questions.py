"""A user's own questions: one JSON object per line, checked before they are used."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvbench.common.kinds import is_integer
from kvbench.common.tasks import TASKS
from kvbench.data.text import is_whole_text, parse_json, read_lines

log = logging.getLogger(__name__)

MOST_TOKENS = 1_000_000  # of one answer
_KINDS = {
    "context": "a text that is not empty",
    "question": "a text that is not empty",
    "answers": "a list of texts that are not empty",
    "answer_prefix": "a text",
    "max_new_tokens": f"a whole number from 1 to {MOST_TOKENS}",
    "task": " or ".join(TASKS),
    "id": "a text of letters, digits, '.', '_', '+' and '-', at most 100 of them",
}
_REQUIRED = ("context", "question", "answers")
_ID = re.compile(r"[\w+-][\w.+-]{0,99}", re.ASCII)  # part of file names


@dataclass(frozen=True)
class Question:
    """One line of a file: a context, a question about it, and the answers that are right.

    id: the line's own, or "line-" with its number. line: its number, from 1 on.
    answer_prefix, max_new_tokens, task: None where the line has none.
    """

    id: str
    line: int
    context: str
    question: str
    answers: tuple[str, ...]
    answer_prefix: str | None
    max_new_tokens: int | None
    task: str | None


def read(path: Path) -> tuple[tuple[Question, ...], str]:
    """Return the questions of a file in its order, and its sha256. The file is read once as long as it stays as it is.

    Raises:
        ValueError: a file that cannot be read, or a line that is no question; one line with the file and its number.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    return _read(path.absolute(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)  # all jobs of a sweep ask for it
def _read(path: Path, stamp: int, size: int) -> tuple[tuple[Question, ...], str]:
    lines, data = read_lines(path)
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    questions: list[Question] = []
    lines_of: dict[str, int] = {}
    unread: set[str] = set()
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        question = _question(row, number, line, where)
        if question.id in lines_of:
            raise ValueError(f"{where}: 'id' is {question.id!r}, as in line {lines_of[question.id]}; make it another")
        lines_of[question.id] = number
        questions.append(question)
        unread |= row.keys() - _KINDS.keys()
    if unread:
        names = ", ".join(map(repr, sorted(unread)))
        log.info("%s: nothing reads the field(s) %s; those that are read: %s", path.name, names, ", ".join(_KINDS))
    return tuple(questions), hashlib.sha256(data).hexdigest()


def _question(row: Any, number: int, line: str, where: str) -> Question:
    """Return the question in the JSON of a line. Raises ValueError, beginning with `where`."""
    if not isinstance(row, dict):
        raise ValueError(f'{where}: not a JSON object, such as {{"context": ..., "question": ..., "answers": [...]}}')
    for field in _REQUIRED:
        if field not in row:
            raise ValueError(f"{where}: no field {field!r}; a line has {', '.join(_REQUIRED)}")
    for field, kind in _KINDS.items():
        if field in row and not _fits(field, row[field]):
            raise ValueError(f"{where}: {field!r} must be {kind}, and is {_short(row[field])}")
    if "\\ud" in line.lower() and not is_whole_text(row):
        raise ValueError(f"{where}: holds half of a character, which no tokenizer can read")
    return Question(
        row.get("id", f"line-{number:05d}"),
        number,
        row["context"],
        row["question"],
        tuple(row["answers"]),
        row.get("answer_prefix"),
        row.get("max_new_tokens"),
        row.get("task"),
    )


def _fits(field: str, value: Any) -> bool:
    if field == "answers":
        return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
    if field == "max_new_tokens":
        return is_integer(value) and 1 <= value <= MOST_TOKENS
    if field == "task":
        return value in TASKS
    if field == "id":
        return isinstance(value, str) and _ID.fullmatch(value) is not None
    return isinstance(value, str) and (field == "answer_prefix" or bool(value.strip()))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
