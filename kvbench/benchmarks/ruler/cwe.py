"""Common words extraction: a numbered list in which ten words come ten times as often as the others."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kvbench.benchmarks.ruler.fitting import Draft
from kvbench.benchmarks.ruler.request import RulerRequest

SHORT = 4096  # below this length fewer repetitions leave room for more words


class CommonWords:
    """Samples of cwe. A unit is a different word.

    With the generator of 2024, the answer follows the example's prefix without a space, and trials count the answers
    too.
    """

    step = 10

    def __init__(self, request: RulerRequest, prompt: str):
        task, sources, is_short = request.spec, request.texts, request.length < SHORT
        self.prompt, self.seed, self.count, self.year2024 = prompt, request.seed, request.count, request.is_old
        self.rng = random.Random(self.seed)
        self.reserve = task.tokens_to_generate
        self.common = task.args["num_cw"]
        # (words, repetitions of a common word, of another one) of the example; repetitions of the list
        self.example = (20, 3, 1) if is_short else (40, 10, 3)
        self.repeats = (6, 1) if is_short else (task.args["freq_cw"], task.args["freq_ucw"])
        self.words = sorted({*sources.nouns, *sources.adjectives, *sources.verbs})
        random.Random(self.seed).shuffle(self.words)
        # the generator of 2024 had no second list
        self.more: Sequence[str] = () if self.year2024 else sources.more_words
        self.most: int | None = max(len(self.words), len(self.more))
        self.first = min(4096, self.most)  # units of the trial that head_size estimates from

    def slack(self, length: int, per_unit: float) -> int:
        """Return the largest number of words that head_size tries: twice the estimate."""
        return int(length // per_unit) * 2

    def floor(self, row: int) -> int:
        """Return 1: a single word."""
        return 1

    def trial(self, size: int) -> int:
        """Return the tokens of one sample."""
        text, answers = self._sample(size)
        return self.count(f"{text} {_numbered(answers)}" if self.year2024 else text)

    def draw(self, size: int, row: int) -> Draft:
        """Return a sample; rows differ by the random stream alone."""
        text, answers = self._sample(size)
        return Draft(text, answers, self.count(text) + self.reserve)

    def _sample(self, size: int) -> tuple[str, list[str]]:
        example, example_answers = self._list(*self.example)
        context, answers = self._list(size, *self.repeats)
        space = "" if self.year2024 else " "
        shown = self.prompt.format(context=example) + space + _numbered(example_answers)
        return f"{shown}\n{self.prompt.format(context=context)}", answers

    def _list(self, number: int, common: int, others: int) -> tuple[str, list[str]]:
        drawn = self.rng.sample(self.words if number <= len(self.words) else self.more, number)
        answers = drawn[: self.common]
        items = answers * common + drawn[self.common :] * others
        random.Random(self.seed).shuffle(items)
        return _numbered(items), answers


def _numbered(items: list[str]) -> str:
    return " ".join(f"{number}. {item}" for number, item in enumerate(items, 1))
