"""A check of every file against its name before it counts, so that a login page is not taken for a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvbench.data import longbench, rows
from kvbench.data.text import read_bytes, read_json


def content(name: str, path: Path) -> None:
    """Read a file under the name it has in our folders. Raises ValueError of one line."""
    short = Path(name).name
    if short.endswith(".jsonl"):
        rows.read(path, short.removesuffix(".jsonl"))
    elif short == "dataset2prompt.json":
        longbench.read_prompts(path)
    elif short == "dataset2maxlen.json":
        longbench.read_max_new_tokens(path)
    elif short.endswith(".json"):
        try:
            is_right = _JSON[short](read_json(path))
        except (KeyError, TypeError, IndexError, AttributeError):
            is_right = False
        if not is_right:
            raise ValueError(f"{path}: JSON, but not of the layout of {short}")
    else:
        _text(path)


def _text(path: Path) -> None:
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")


def _essays(value: Any) -> bool:
    return isinstance(value["text"], str) and bool(value["text"].strip())


def _squad(value: Any) -> bool:
    questions = 0
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            if not isinstance(paragraph["context"], str):
                return False
            for entry in paragraph["qas"]:
                texts = [entry["question"], *(answer["text"] for answer in entry["answers"])]
                if not isinstance(entry["is_impossible"], bool) or not all(isinstance(text, str) for text in texts):
                    return False
                questions += 1
    return questions > 0


def _hotpotqa(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for record in value:
        if not isinstance(record["question"], str) or not isinstance(record["answer"], str):
            return False
        for title, sentences in record["context"]:
            if not isinstance(title, str) or not all(isinstance(sentence, str) for sentence in sentences):
                return False
    return bool(value)


def _words(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(word, str) for word in value.values())


_JSON = {
    "PaulGrahamEssays.json": _essays,
    "squad.json": _squad,
    "hotpotqa.json": _hotpotqa,
    "english_words.json": _words,
}
