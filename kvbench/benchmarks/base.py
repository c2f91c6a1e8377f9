"""What a benchmark is: text in, text out. No torch, no model, no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One question about one context.

    The prompt reads: context, question, (end of the user turn,) answer prefix. In question-agnostic runs only
    `context` is compressed; in question-aware runs the whole prompt is.

    id: unique in the benchmark and safe as a file name, e.g. "len01000-depth050-seed0"; the key for resuming.
    question: follows the context directly, so it carries its own leading newline.
    answer_prefix: starts the assistant's turn; "" for none.
    stop: task stop strings, each a single token of the tokenizer.
    chat: False writes the sample without the model's chat template.
    meta: JSON-able facts that scoring and reports need, e.g. {"length": 1000, "depth": 50}.
    """

    id: str
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    chat: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that benchmarks use, to measure lengths and to place text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        ...


class Benchmark(Protocol):
    """Samples and the rule that scores their answers. Hydra builds it from conf/benchmark/<name>.yaml."""

    name: str
    headline: str  # the score that tables show first

    def protocol(self) -> dict[str, Any]:
        """Everything that changes a score, JSON-able: templates, lengths, metric versions, data checksum."""
        ...

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """All samples, in a fixed order."""
        ...

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Scores in [0, 1] by name. Needs only what a stored record holds: results can be scored again."""
        ...
