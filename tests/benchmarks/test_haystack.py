"""The generated haystack is fit to hide a number in, and a folder of essays is read in order."""

from __future__ import annotations

import re
from pathlib import Path

from kvbench.benchmarks.haystack import essays, generated
from kvbench.benchmarks.needle import _ADJECTIVES, _NOUNS


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)\s+", text.strip())


def test_generated_prose_is_plain_varied_and_free_of_digits() -> None:
    text = generated(0, 50_000)  # about 10k tokens
    lines = sentences(text)
    lengths = [len(line.split()) for line in lines]
    assert len(text) >= 50_000 and not re.search(r"\d", text)
    assert len(set(lines)) == len(lines)
    assert all(re.fullmatch(r"[A-Z][a-z',\- A-Z]+\.", line) for line in lines)
    assert sum(8 <= length <= 25 for length in lengths) > 0.9 * len(lengths) and max(lengths) <= 30
    assert not re.search(r"\ba [aeiou]", text) and "{" not in text
    assert len(set(text.lower().split())) > 700


def test_generated_prose_never_mentions_what_is_asked_for() -> None:
    words = set(re.findall(r"[a-z]+", generated(1, 200_000).lower()))
    assert not words & {"magic", "special", "number", "numbers", "quiz", "memorize"}
    assert not words & {*_ADJECTIVES, *_NOUNS}


def test_generated_prose_is_a_function_of_its_seed_and_grows_at_its_end() -> None:
    short = generated(3, 2_000)
    assert generated(3, 2_000) == short and generated(3, 20_000).startswith(short)
    assert not set(sentences(short)) & set(sentences(generated(4, 2_000)))


def test_essays_are_joined_in_sorted_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "Two."), ("a.txt", "One."), ("c.md", "No.")):
        (tmp_path / name).write_text(text)
    assert essays(tmp_path) == "One.Two."
