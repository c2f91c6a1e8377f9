"""What a benchmark is: text in, text out. No torch, no model, no chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
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
    min_new_tokens: before so many tokens are generated, a stop token cannot be chosen.
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
    min_new_tokens: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that benchmarks use, to measure lengths and to place text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True)
class Rendering:
    """How the text of a sample becomes token ids. The default is kvbench's own way; others are those of publications.

    Attributes:
        style: "strict": text is only ever text, control tokens come from templates (kvbench/prompts/strict.py).
            "upstream": strings go through the tokenizer as in published code, so that "</s>" in a data set is a
            control token (kvbench/prompts/upstream.py). The other fields belong to "upstream" alone.
        wrapper: "chat": the model's template around the unchanged text; "native": the template applied to the text,
            which it may trim; "none"; or a text that holds {prompt}.
        wrap_first: the wrapper is there before the prompt is truncated.
        max_length: tokens of the prompt before it is wrapped; "auto": from the model's limit; None: no limit.
        truncation: "refuse": too long is an error; "middle": the first and last half, joined as text; "middle_ids":
            the same, joined as ids; "context": the end of the context is cut.
        bos: "once"; "added": what the tokenizer adds, beside one that a wrapper writes; "missing": only where the text
            does not begin with one.
        bare_tail: what follows the question of a wrapped sample where there is no template (truncation "context").
        stops: "all": every end that model, tokenizer and chat template name; "model": those of the generation config;
            "tokenizer": the tokenizer's one.
        first_may_stop: False: the first token never ends an answer, whichever it is.
        span: what is compressed: "prompt", "context", or None for what the benchmark's `question` says.
    """

    style: str = "strict"
    wrapper: str = "chat"
    wrap_first: bool = False
    max_length: int | str | None = None
    truncation: str = "refuse"
    bos: str = "once"
    bare_tail: str = ""
    stops: str = "all"
    first_may_stop: bool = True
    span: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a published protocol may ask of a model: its names, its longest prompt in tokens, how it is chatted with."""

    name: str
    path: str = ""
    max_length: int | None = None
    chat_template: str = "auto"
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def called(self, pattern: str) -> bool:
        """Whether `pattern` occurs in one of its names, upper and lower case alike."""
        return pattern.lower() in f"{self.name} {self.path}".lower()


@dataclass(frozen=True)
class Part:
    """A benchmark's place in a suite, which is a column of the suite's table.

    suite: "longbench", "longbench-e", "ruler-4096"; name: the column, such as "qasper"; order: of the column.
    means: flat averages that the column enters, with the number of columns each has when complete: {"avg-16": 16}.
    macros: averages over the means of categories, with the number of categories: {"macro-en": 6}.
    samples: how many the published dataset has, where that is known.
    """

    suite: str
    name: str
    order: int
    category: str = ""
    means: Mapping[str, int] = field(default_factory=dict)
    macros: Mapping[str, int] = field(default_factory=dict)
    samples: int | None = None


class Benchmark(Protocol):
    """One dataset and the rule that scores its answers: one run folder per method and budget."""

    name: str  # the label in folders and tables: "needle", "longbench-qasper"
    headline: str  # the score that tables show first
    part: Part | None  # None for a benchmark that stands alone
    question: str  # "aware": the question is part of what is compressed; "agnostic": only the context is
    rendering: Rendering

    def protocol(self) -> dict[str, Any]:
        """Everything that changes what is generated, JSON-able: templates, lengths, data checksum.

        What differs between the parts of a suite stands under the one key "dataset".
        """
        ...

    def scoring(self) -> dict[str, Any]:
        """Names, versions and switches of the metrics, JSON-able. Recorded with the scores; answers outlive it."""
        ...

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """All samples, in a fixed order."""
        ...

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Scores in [0, 1] by name. Needs only what a stored record holds: results can be scored again."""
        ...


class Suite(Protocol):
    """Several benchmarks under one name. Hydra builds it, or a single benchmark, from conf/benchmark/<name>.yaml."""

    name: str

    def parts(self, model: ModelFacts) -> Sequence[Benchmark]:
        """The benchmarks, in the order in which they run, as they are for a model. Reads no data yet."""
        ...


def choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest of them, for a value of benchmark.<name> that is none of `known`."""
    names = list(known)
    if value not in names:
        near = get_close_matches(str(value), names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
        raise ValueError(f"benchmark.{name}={value}: {hint}")


def check_path(name: str, value: Any) -> None:
    """Raise ValueError unless benchmark.<name> is null or a text that may name a folder."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"benchmark.{name}={value!r}: name a folder, or null")
