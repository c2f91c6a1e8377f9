"""The generated haystack is fit to hide a number in, and a folder of essays is read in order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench.benchmarks.haystack import Essays, checksum, first_ids
from kvbench.benchmarks.prose import KEY_ADJECTIVES, KEY_NOUNS, generated
from tests.helpers.needle_forms import ToyTokenizer


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
    assert not words & {*KEY_ADJECTIVES, *KEY_NOUNS}


def test_generated_prose_is_a_function_of_its_seed_and_grows_at_its_end() -> None:
    short = generated(3, 2_000)
    assert generated(3, 2_000) == short and generated(3, 20_000).startswith(short)
    assert not set(sentences(short)) & set(sentences(generated(4, 2_000)))


def test_essays_are_joined_in_sorted_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "Two."), ("a.txt", "One."), ("c.md", "No.")):
        (tmp_path / name).write_text(text)
    assert "".join(Essays(tmp_path).blocks()) == "One.Two." and Essays(tmp_path).head(5) == "One.T"
    assert checksum([Essays(tmp_path)]) == hashlib.sha256(b"One.Two.").hexdigest()


def test_only_the_beginning_of_a_folder_is_tokenised(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A sentence of some words. " * 40_000)
    seen: list[int] = []

    class Counting(ToyTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            seen.append(len(text))
            return super().encode(text, add_special_tokens=add_special_tokens)

    whole = ToyTokenizer().encode((tmp_path / "a.txt").read_text(), add_special_tokens=False)
    assert first_ids(Counting(), Essays(tmp_path), 500)[:500] == whole[:500]
    assert sum(seen) < 10_000


def test_a_text_of_long_tokens_is_read_further(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{'x' * 50} " * 3000)
    assert len(first_ids(ToyTokenizer(), Essays(tmp_path), 1000)) >= 1000


@pytest.mark.parametrize("letters", range(40, 70))
def test_the_last_tokens_before_a_cut_of_the_text_are_not_used(tmp_path: Path, letters: int) -> None:
    """A word that is cut is another token than the whole word."""
    (tmp_path / "a.txt").write_text(f"{'x' * letters} " * 400)
    tokenizer = ToyTokenizer()
    whole = tokenizer.encode((tmp_path / "a.txt").read_text(), add_special_tokens=False)
    assert first_ids(tokenizer, Essays(tmp_path), 99)[:99] == whole[:99]


def latin(folder: Path) -> None:
    (folder / "b.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (latin, r"benchmark.haystack: .*/b.txt is not UTF-8; convert it, or remove it"),
        (lambda folder: (folder / "b.txt").symlink_to("gone"), r".*/b.txt is a link to a file that does not exist; "),
        (lambda folder: (folder / "b.txt").mkdir(), r".*/b.txt is not a file; remove it from the folder"),
        (lambda folder: os.mkfifo(folder / "b.txt"), r".*/b.txt is not a file; remove it from the folder"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    (tmp_path / "a.txt").write_text("One.")
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        checksum([Essays(tmp_path)])
    assert "\n" not in str(error.value)
