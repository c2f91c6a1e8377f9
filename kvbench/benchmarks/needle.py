"""Needle in a haystack: find one sentence, placed at a known depth, in a context of a known length.

The default asks for a seven-digit number under a random key, in the words of RULER (arXiv 2404.06654). The published
tests about a sandwich in San Francisco are YAML files of the same class: needle_classic, needle_pyramidkv.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

from kvbench.benchmarks.base import ModelFacts, Rendering, Sample, Tokenizer, encode
from kvbench.benchmarks.haystack import Haystack, checksum, first_ids, haystacks
from kvbench.benchmarks.insertion import insert, stops_mark_sentences, trimmed
from kvbench.benchmarks.needle_checks import TEMPLATES, NeedleSettings, check_model
from kvbench.benchmarks.prose import KEY_ADJECTIVES, KEY_NOUNS
from kvbench.common.tasks import LOCALIZATION
from kvbench.encoding import decoder
from kvbench.metrics.needle import VERSIONS, exact_recall, needle_overlap, needle_rouge


class Needle(NeedleSettings):
    """One sample per seed, length and depth.

    Raises ValueError for settings that cannot work. Only `protocol` and `samples` read the haystack, so that answers
    can be scored again where it is gone.
    """

    column = None

    @property
    def rendering(self) -> Rendering:
        """The prompt as one string through the tokenizer where `raw` says so, else kvbench's own way."""
        if self.raw:  # PyramidKV pins transformers 4.44
            return Rendering(style="upstream", wrapper="none", clean_up_spaces=True)
        return Rendering()

    def benchmarks(self, model: ModelFacts) -> list[Needle]:
        """Return the benchmark itself. Raises ValueError for lengths that the model does not take."""
        check_model(self, model)
        return [self]

    def protocol(self) -> dict[str, Any]:
        """Return all settings but the headline and the metrics, with the haystack's checksum for its path.

        Equal lengths are equal, in whichever way they were given. Raises ValueError for a missing haystack.
        """
        return self.settings() | {"haystack_sha256": checksum(self._haystacks)}

    def settings(self) -> dict[str, Any]:
        """Return the part of the protocol that the settings alone decide. Reads no haystack."""
        left_out = ("headline", "scores", "start", "end", "step")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        return {**plain, "version": 1, "haystack": "generated" if self.haystack == "generated" else "folder"}

    def scoring(self) -> dict[str, Any]:
        """Return the versions of the metrics, by name."""
        return {"metrics": {name: VERSIONS[name] for name in self.scores}}

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return the grid: seed by seed, then lengths and depths as listed. Each haystack is tokenised once."""
        assert self.lengths is not None
        decode = decoder(tokenizer, self.rendering.clean_up_spaces)
        ids = [first_ids(tokenizer, haystack, max(self.lengths)) for haystack in self._haystacks]
        stop_ids = self._stop_ids(tokenizer, ids)
        samples = []
        for index, seed in enumerate(self._seeds):
            for length in self.lengths:
                context_ids = trimmed(tokenizer, decode, ids[index % len(ids)], length)
                for depth in self.depths:
                    words = self._words(length, depth, seed)
                    needle_ids = encode(tokenizer, words["needle"])
                    placed = insert(decode, context_ids, needle_ids, length - self.buffer, depth, stop_ids)
                    meta = {"length": length, "depth": depth, "seed": seed, "reference": words["reference"]}
                    samples.append(
                        Sample(
                            id=f"len{length:05d}-depth{depth:03d}-seed{seed}",
                            context=words["preamble"] + placed.text,
                            question=words["question_text"],
                            answer_prefix=words["answer_prefix"],
                            answers=(words["answer"],),
                            max_new_tokens=self.max_new_tokens,
                            stop=tuple(self.stop),
                            chat=self.chat,
                            task=LOCALIZATION,
                            meta={**meta, "needle_token": placed.token, "depth_reached": placed.depth},
                        )
                    )
        return samples

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return the scores named in `scores`; ROUGE-1 is taken against the reference in `meta`."""
        by_name = {
            "recall": lambda: exact_recall(prediction, sample_answers),
            "rouge1": lambda: needle_rouge(prediction, meta["reference"]),
            "overlap": lambda: needle_overlap(prediction, " ".join(sample_answers)),
        }
        return {name: by_name[name]() for name in self.scores}

    @property
    def _seeds(self) -> range:
        return range(self.seed, self.seed + self.num_seeds)

    @cached_property
    def _haystacks(self) -> list[Haystack]:
        """One text per seed, or one for all where the haystack is a folder."""
        assert self.lengths is not None
        return haystacks(self.haystack, self._seeds, max(self.lengths))

    def _stop_ids(self, tokenizer: Tokenizer, ids: list[list[int]]) -> frozenset[int] | None:
        """Return the tokens that end sentences; None where full stops do not mark the sentences of the haystack."""
        if self.period_ids is not None:
            if not any(i in self.period_ids for i in ids[0]):
                raise ValueError(
                    f"benchmark.period_ids={list(self.period_ids)}: none of these tokens occurs in the haystack; "
                    "give those of this model's tokenizer, or null"
                )
            return frozenset(self.period_ids)
        stop_ids = frozenset(encode(tokenizer, "."))
        return stop_ids if stops_mark_sentences(ids[0], stop_ids) else None

    def _words(self, length: int, depth: int, seed: int) -> dict[str, str]:
        """Return the filled templates of a cell. They depend on it alone: in a larger grid it stays the same."""
        rng = random.Random(f"{seed}-{length}-{depth}")
        key = f"{rng.choice(KEY_ADJECTIVES)}-{rng.choice(KEY_NOUNS)}"
        value = str(rng.randint(1_000_000, 9_999_999))
        return {name: getattr(self, name).format(key=key, value=value) for name in TEMPLATES}
