"""Prompts that show which attention heads retrieve: the two probes of HeadKV (Fu et al. 2024, arXiv 2410.19258).

Each prompt is generated prose with a needle. With `retrieval` the answer stands in the needle word by word. With
`reasoning` the needle holds two numbers and two ages, and the question asks for that of the older or younger one.
The words are those of our needle test (RULER, arXiv 2404.06654); the bar and the ten depths are those of Important_Head
in FYYFU/HeadKV 0862a09.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvbench.benchmarks.base import MOST_SAMPLES, Rendering, Sample, Tokenizer, encode
from kvbench.benchmarks.haystack import Prose, first_ids
from kvbench.benchmarks.insertion import insert, stops_mark_sentences, trimmed
from kvbench.benchmarks.prose import KEY_ADJECTIVES, KEY_NOUNS
from kvbench.encoding import decoder
from kvbench.metrics.bag_f1 import qa_f1
from kvbench.metrics.needle import needle_rouge_recall

PROBES = ("retrieval", "reasoning")
_LONGEST = 1_000_000  # tokens of a text
_TRADES = ("potter", "miller", "pilot", "glazier", "joiner", "surveyor", "baker", "ferryman", "organist", "gardener")


@dataclass(frozen=True)
class HeadProbe:
    """The prompts of one probe: one per seed, length and depth. The fields are the settings in conf/heads.yaml.

    Raises ValueError, in one line that names the setting, for settings that cannot work.
    """

    probe: str
    lengths: Sequence[int]
    depths: Sequence[int]
    num_seeds: int
    max_new_tokens: int
    bar: float
    seed: int = 0

    question = "aware"
    rendering = Rendering()

    def __post_init__(self) -> None:
        if self.probe not in PROBES:
            raise ValueError(f"probe={self.probe}: choose {' or '.join(PROBES)}")
        _check_list("lengths", self.lengths, 100, _LONGEST)
        _check_list("depths", self.depths, 0, 100)
        _check_list("num_seeds", [self.num_seeds], 1, MOST_SAMPLES // (len(self.lengths) * len(self.depths)))
        _check_list("max_new_tokens", [self.max_new_tokens], 1, 10_000)
        if not 0 <= self.bar < 1:
            raise ValueError(f"heads.bar={self.bar}: must be at least 0 and below 1")

    def protocol(self) -> dict[str, Any]:
        """Return everything that the scores depend on, apart from the model."""
        lists = {"lengths": list(self.lengths), "depths": list(self.depths)}
        return {**vars(self), **lists, "haystack": "generated", "version": 1}

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return the grid: seed by seed, then lengths and depths as listed. `meta["needle"]` is what heads look for."""
        decode, samples = decoder(tokenizer), []
        for seed in range(self.seed, self.seed + self.num_seeds):
            ids = first_ids(tokenizer, Prose(seed, max(self.lengths)), max(self.lengths))
            stops = frozenset(encode(tokenizer, "."))
            stop_ids = stops if stops_mark_sentences(ids, stops) else None
            for length in self.lengths:
                context_ids = trimmed(tokenizer, decode, ids, length)
                for depth in self.depths:
                    words = self._words(random.Random(f"{self.probe}-{seed}-{length}-{depth}"))
                    needle, question, prefix, answer = words
                    try:
                        placed = insert(decode, context_ids, encode(tokenizer, needle), length, depth, stop_ids)
                    except ValueError:
                        raise ValueError(
                            f"heads.lengths: {length} tokens have no room for the needle; choose longer ones"
                        ) from None
                    most = self.max_new_tokens
                    if self.probe == "reasoning":
                        most = min(most, len(encode(tokenizer, f" {answer}")))
                    samples.append(
                        Sample(
                            id=f"len{length:05d}-depth{depth:03d}-seed{seed}",
                            context=placed.text,
                            question=question,
                            answer_prefix=prefix,
                            answers=(answer,),
                            max_new_tokens=most,
                            meta={"needle": answer},
                        )
                    )
        return samples

    def score(self, sample: Sample, prediction: str) -> float:
        """Return how much of the answer a model gave, in [0, 1]: ROUGE-1 recall, or F1 of the words for `reasoning`."""
        rule = needle_rouge_recall if self.probe == "retrieval" else qa_f1
        return rule(prediction, sample.answers[0])

    def _words(self, draw: random.Random) -> tuple[str, str, str, str]:
        """Return needle, question, beginning of the answer, and answer of a prompt."""
        if self.probe == "retrieval":
            key = f"{draw.choice(KEY_ADJECTIVES)}-{draw.choice(KEY_NOUNS)}"
            number = str(draw.randint(1_000_000, 9_999_999))
            return (
                f" One of the special magic numbers for {key} is: {number}.",
                f"\nWhat is the special magic number for {key} mentioned in the provided text?",
                f"The special magic number for {key} mentioned in the provided text is",
                number,
            )
        first, second = draw.sample(_TRADES, 2)
        ages = draw.sample(range(21, 80), 2)
        numbers = [str(number) for number in draw.sample(range(1_000_000, 10_000_000), 2)]
        asked = draw.choice(("older", "younger"))
        return (
            f" One of the special magic numbers for the {first}, {ages[0]} years old, is: {numbers[0]}."
            f" One of the special magic numbers for the {second}, {ages[1]} years old, is: {numbers[1]}.",
            f"\nWhat is the special magic number for the {asked} one of the {first} and the {second} mentioned in the "
            "provided text?",
            f"The special magic number for the {asked} one mentioned in the provided text is",
            numbers[ages.index(max(ages) if asked == "older" else min(ages))],
        )


def token_span(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> tuple[int, int] | None:
    """Return begin and end of the fewest tokens that hold a text, at its first place; None if it is not there."""
    decode = decoder(tokenizer)
    if text not in decode(ids):
        return None
    end = bisect_left(range(len(ids)), True, key=lambda place: text in decode(ids[:place]))
    lost = bisect_left(range(end), True, key=lambda place: text not in decode(ids[place:end]))
    return lost - 1, end


def _check_list(name: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        if not least <= value <= most:
            raise ValueError(f"heads.{name}={value}: must be from {least} to {most}")
    if not values or len(set(values)) < len(values):
        raise ValueError(f"heads.{name}={list(values)}: give at least one number, and each once")
