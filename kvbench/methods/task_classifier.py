"""A classifier of tasks by the words at the beginning and at the end of a prompt: hashed n-grams with integer weights.

It stands in the place of WindowKV's fine-tuned BERT (arXiv 2503.17922), whose weights are not published. As there, the
first and the last 256 tokens of a prompt are read. All sums are of integers: the answer is the same on every machine.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kvbench.common.tasks import AGGREGATION, LOCALIZATION
from kvbench.methods.files import json_object

FORMAT = "kvbench task classifier 2"
STEM = 5  # letters of a word that its other forms share: summary, summarize
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff])")  # scripts without spaces: every letter is a word
_MARK = re.compile(r"<\|[^|>]*\|>|</?s>|\[/?INST\]")  # of chat templates: they say nothing about the task


@dataclass(frozen=True)
class TaskClassifier:
    """The weights of a classifier.

    Attributes:
        weights: per bucket of n-grams, -127 to 127; positive speaks for aggregation. A power of two of them.
        bias: added to the sum.
        read: tokens that are read at either end of a prompt.
        words: words that count at either end of these.
    """

    weights: bytes
    bias: int
    read: int = 256
    words: int = 64

    def task(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Return the task of a prompt: localization or aggregation."""
        first, last = ends(ids, self.read)
        return self.task_of_texts(decode(first), decode(last))

    def task_of_texts(self, first: str, last: str) -> str:
        """Return the task of a prompt that begins and ends with these texts."""
        return AGGREGATION if self.sum(first, last) > 0 else LOCALIZATION

    def sum(self, first: str, last: str) -> int:
        """Return the sum of the weights of a prompt's n-grams, each counted once."""
        return self.bias + sum(
            (self.weights[bucket] ^ 128) - 128 for bucket in buckets(first, last, len(self.weights), self.words)
        )


def ends(ids: Sequence[int], read: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the first and the last tokens of a prompt, none of them twice."""
    return ids[:read], ids[max(read, len(ids) - read) :]


def buckets(first: str, last: str, count: int, words: int) -> set[int]:
    """Return the buckets of the n-grams of one and two words at either end of a prompt.

    Each counts as such, and also as one of the beginning or of the end: instructions stand there. All of it is done
    for the words and again for their stems.
    """
    whole = split(first) + split(last)
    grams = set[str]()
    for place, part in (("<", whole[:words]), (">", whole[-words:])):
        for own in (part, [f"{word[:STEM]}~" for word in part]):
            pairs = [f"{a} {b}" for a, b in itertools.pairwise(own)]
            grams |= {place + gram for gram in (*own, *pairs)} | {*own, *pairs}
    return {zlib.crc32(gram.encode()) % count for gram in grams}


def split(text: str) -> list[str]:
    """Return the words of a text in lower case, without marks of chat templates; numbers are all the same word."""
    words = _WORD.findall(_CJK.sub(r" \1 ", _MARK.sub(" ", text).lower()))
    return ["0" if word.isdecimal() else word for word in words]


@lru_cache(maxsize=8)
def read_classifier(text: str) -> TaskClassifier:
    """Return the classifier of a file's text. Raises ValueError that says what is wrong with it."""
    content = json_object(text, "weights")
    if content.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    try:
        weights = base64.b64decode(content["weights"], validate=True)
        numbers = {name: content[name] for name in ("bias", "read", "words")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    wrong = next((name for name, value in numbers.items() if type(value) is not int), None)
    if wrong or not weights or min(numbers["read"], numbers["words"]) < 1:
        raise ValueError(f"{wrong or 'weights, read and words'} must be numbers above 0")
    return TaskClassifier(weights, **numbers)


def written(classifier: TaskClassifier) -> str:
    """Return the text of a classifier's file."""
    numbers = {"bias": classifier.bias, "read": classifier.read, "words": classifier.words}
    content = {"format": FORMAT, **numbers, "weights": base64.b64encode(classifier.weights).decode()}
    return json.dumps(content, indent=1) + "\n"
