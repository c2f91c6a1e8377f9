"""Frequent words extraction: coded words whose counts follow a Zipf law; the first rank is noise."""

from __future__ import annotations

import random
import string

import numpy as np

from kvbench.benchmarks.ruler.fitting import Draft, does_not_fit
from kvbench.benchmarks.ruler.request import RulerRequest

LETTERS = 6
ANSWERS = 3
ZETA_2 = 1.6449340668482264  # the sum of 1 / rank^2


class FrequentWords:
    """Samples of fwe, which fit in a way of their own: words are added until the text is full.

    With the generator of 2024, the text alone may fill the length; the answer is added to it.
    """

    def __init__(self, request: RulerRequest, prompt: str):
        task = request.spec
        self.prompt, self.seed, self.count = prompt, request.seed, request.count
        self.name, self.length = task.name, request.length
        self.alpha = task.args["alpha"]
        assert self.alpha == 2.0, "ZETA_2 belongs to alpha 2"
        self.tokens_to_generate = task.tokens_to_generate
        self.room = self.length - (0 if request.is_old else self.tokens_to_generate)
        self.rng = random.Random(self.seed)
        self.vocabulary_size = self.room // 50
        if self.vocabulary_size <= ANSWERS:
            raise self._error()
        self.step = self.room // 32
        self.words = self._grow(self._vocabulary())

    def row(self, row: int) -> Draft:
        """Return the sample of a row. Raises ValueError if a text with all answers in it does not fit."""
        vocabulary = self._vocabulary()
        words = self.words if self.words > 0 else self._grow(vocabulary)
        text = self._text(vocabulary, words)
        while (tokens := self.count(text)) > self.room and words > 0:
            words -= self.step
            text = self._text(vocabulary, words)
        if self._counts(words, ANSWERS + 1)[-1] < 1:  # the rarest answer has fallen out
            raise self._error()
        return Draft(text, vocabulary[1 : ANSWERS + 1], tokens + self.tokens_to_generate)

    def _error(self) -> ValueError:
        return does_not_fit(self.name, self.length, "its three answers do not all have a place")

    def _vocabulary(self) -> list[str]:
        words = [self._word() for _ in range(self.vocabulary_size)]
        while len(set(words)) < self.vocabulary_size:
            words.append(self._word())
        words = sorted(set(words))
        random.Random(self.seed).shuffle(words)
        words[0] = "..."
        return words

    def _word(self) -> str:
        return "".join(self.rng.choices(string.ascii_lowercase, k=LETTERS))

    def _grow(self, vocabulary: list[str]) -> int:
        words = self.room // LETTERS
        while self.count(self._text(vocabulary, words)) < self.room:
            words += self.step
            if words > 8 * self.room:
                raise ValueError("tokenizer: its counts do not grow with the text; lengths need one whose counts do")
        return words - self.step

    def _counts(self, words: int, ranks: int) -> list[int]:
        rank = np.arange(1, ranks + 1)
        return [int(number) for number in words * (rank**-self.alpha) / ZETA_2]

    def _text(self, vocabulary: list[str], words: int) -> str:
        counts = self._counts(words, len(vocabulary))
        items = [word for word, number in zip(vocabulary, counts, strict=True) for _ in range(number)]
        random.Random(self.seed).shuffle(items)
        return self.prompt.format(context=" ".join(items))
