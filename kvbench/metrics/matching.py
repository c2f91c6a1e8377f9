"""LongBench's scores for answers that are a class, a paragraph's number or a count (arXiv 2308.14508)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")  # Unicode digits: "１２" is a number too, though it equals no answer


def classification(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """Return 1/n if the answer is among the n class names in the prediction, else 0.0.

    Names that are part of the answer's name do not count. LongBench deletes them from the list that it iterates over,
    and so skips the name after each; published scores include this.
    """
    present = [name for name in all_classes if name in prediction]
    place = 0
    while place < len(present):
        if present[place] in answer and present[place] != answer:
            present.remove(present[place])
        place += 1
    return 1 / len(present) if answer in present else 0.0


def retrieval(prediction: str, answer: str, word: str) -> float:
    """Return the share of the prediction's numbers that name the answer's paragraph: `word` "Paragraph " or "段落".

    Raises:
        ValueError: the answer names no paragraph.
    """
    paragraph = re.search(word + r"(\d+)", answer)
    if paragraph is None:
        raise ValueError(f"LongBench's data: the answer {answer!r} names no paragraph ({word.strip()} and its number)")
    return count(prediction, paragraph[1])


def count(prediction: str, answer: str) -> float:
    """Return the share of the prediction's numbers that are written like the answer: "07" is not "7".

    0.0 without a number.
    """
    numbers = _NUMBER.findall(prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0
