"""The interface of every benchmark: text in, text out. No torch, no model, no chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from kvbench.common.kinds import is_integer
from kvbench.common.suggest import did_you_mean
from kvbench.common.tasks import check_task
from kvbench.common.text import shortened

LONGEST = 10_000_000  # tokens of a context; no model takes more
MOST_SAMPLES = 100_000  # of one benchmark

# LongBench's own limits for models of a known length leave room for the answer and the wrapper; the rest by analogy.
_ROOM = {4096: 3500, 8192: 7500, 16384: 15500, 32768: 31500}
_ANSWER_AND_WRAPPER = 1024


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
    min_new_tokens: a stop token cannot be chosen before this many tokens are generated.
    task: "localization" if the answer lies in a few places of the context, "aggregation" if it depends on all of it
        (kvbench/common/tasks.py); some methods adapt to it. None: they decide by the words of the prompt.
    meta: JSON-able facts that scoring and reports need, e.g. {"length": 1000, "depth": 50}.

    Raises:
        ValueError: a task of another name.
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
    task: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task(self.task, f"benchmark: sample {self.id}")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that benchmarks use, to measure lengths and to place text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids."""
        ...


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return token ids without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)


@dataclass(frozen=True)
class Rendering:
    """The rules by which the text of a sample becomes token ids. The default is kvbench's own way.

    Attributes:
        style: "strict": text is only ever text, control tokens come from templates (kvbench/prompts/strict.py).
            "upstream": strings go through the tokenizer as in published code, so that "</s>" in a data set is a
            control token (kvbench/prompts/upstream.py). The other fields belong to "upstream" alone.
        wrapper: "chat": the model's template around the unchanged text; "native": the template applied to the text,
            which it may trim; "none"; or a text that holds {prompt}.
        wrap_first: wrap the prompt before it is truncated.
        max_length: tokens of the prompt before it is wrapped; "auto": from the model's limit; None: no limit.
        truncation: "refuse": too long is an error; "middle": keep the first and last half, joined as text;
            "middle_ids": keep both halves, joined as ids; "context": cut the end of the context.
        clean_up_spaces: remove the spaces before punctuation from decoded text if the tokenizer's configuration sets
            `clean_up_tokenization_spaces`, as transformers 4 did.
        bos: "once"; "added": what the tokenizer adds, in addition to one that a wrapper writes; "missing": only where
            the text does not begin with one.
        bare_tail: what follows the question of a wrapped sample where there is no template (truncation "context").
        stops: "all": every end that model, tokenizer and chat template name; "model": those of the generation config;
            "tokenizer": the tokenizer's only.
        first_may_stop: False: the first token never ends an answer, whichever it is.
        span: what is compressed: "prompt", "context", or None for what the benchmark's `question` says.
    """

    style: str = "strict"
    wrapper: str = "chat"
    wrap_first: bool = False
    max_length: int | str | None = None
    truncation: str = "refuse"
    clean_up_spaces: bool = False
    bos: str = "once"
    bare_tail: str = ""
    stops: str = "all"
    first_may_stop: bool = True
    span: str | None = None


def resolve(rendering: Rendering, limit: int | None) -> Rendering:
    """Return the rendering with its length in numbers: "auto" becomes what the model's limit leaves for a prompt."""
    if rendering.max_length != "auto":
        return rendering
    if limit is None:
        return replace(rendering, max_length=None)
    return replace(rendering, max_length=_ROOM.get(limit) or max(limit - _ANSWER_AND_WRAPPER, limit // 2))


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model that a published protocol may depend on.

    name: model.name. path: model.path, a hub id or a folder. max_length: the longest prompt in tokens.
    """

    name: str
    path: str = ""
    max_length: int | None = None
    chat_template: str = "auto"
    chat_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that rules are matched against: model.name, and the last part of model.path."""
        last = self.path.rstrip("/").rpartition("/")[2]
        return tuple(dict.fromkeys(name for name in (self.name, last) if name))

    def is_called(self, *words: str) -> bool:
        """Return True if one of the names contains all `words`, in upper or lower case."""
        return any(all(word.lower() in name.lower() for word in words) for name in self.names)


@dataclass(frozen=True)
class SuiteColumn:
    """The place of a benchmark in the table of its suite.

    suite: "longbench", "longbench-e", "ruler-4096"; name: the column, such as "qasper"; order: of the column.
    means: flat averages that the column enters, with the number of columns each has when complete: {"avg-16": 16}.
    macros: averages over the means of categories, with the number of categories: {"macro-en": 6}.
    samples: the number of samples in the published dataset, where that is known.
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
    column: SuiteColumn | None  # None for a benchmark that stands alone
    question: str  # "aware": the question is part of what is compressed; "agnostic": only the context is
    rendering: Rendering

    def protocol(self) -> dict[str, Any]:
        """Return everything that changes what is generated, JSON-able: templates, lengths, data checksum.

        Benchmarks of a suite may differ under the key "dataset" alone. Raises ValueError for data that is missing
        or damaged.
        """
        ...

    def scoring(self) -> dict[str, Any]:
        """Return names, versions and switches of the metrics, JSON-able. A changed metric scores old answers again."""
        ...

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return all samples, in a fixed order."""
        ...

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return scores in [0, 1] by name. Needs only what a stored record holds: results can be scored again."""
        ...


class Suite(Protocol):
    """Several benchmarks under one name. Hydra builds it, or a single benchmark, from conf/benchmark/<name>.yaml."""

    name: str

    def benchmarks(self, model: ModelFacts) -> Sequence[Benchmark]:
        """Return the benchmarks for a model, in the order in which they run. Reads no data yet.

        Raises ValueError for a model that cannot take them.
        """
        ...


def benchmarks_of(configured: Benchmark | Suite, model: ModelFacts) -> Sequence[Benchmark]:
    """Return the benchmarks of a suite for a model, or the one benchmark that was configured."""
    if hasattr(configured, "benchmarks"):
        return configured.benchmarks(model)
    return [configured]


def build(node: Any) -> Benchmark | Suite:
    """Return the benchmark or suite that a checked node `benchmark` describes.

    Raises:
        ValueError: the benchmark refuses a setting.
    """
    import hydra
    from hydra.errors import InstantiationException

    try:
        configured: Benchmark | Suite = hydra.utils.instantiate(node)
    except InstantiationException as error:  # the message inside says which setting is wrong
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    return configured


def choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise ValueError, with the nearest name, for a value of benchmark.<name> that is not in `known`."""
    names = list(known)
    if value not in names:
        raise ValueError(f"benchmark.{name}={value}: not known.{did_you_mean(str(value), names)}")


def whole(name: str, value: Any, least: int, most: int | None = None, *, optional: bool = False) -> None:
    """Raise ValueError unless benchmark.<name> is a whole number in its range, or null where it is `optional`."""
    if optional and value is None:
        return
    if not is_integer(value) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        null = ", or null" if optional else ""
        raise ValueError(f"benchmark.{name}={shortened(value)}: give a whole number {limits}{null}")


def distinct(name: str, values: Any, least: int, most: int) -> None:
    """Raise ValueError unless benchmark.<name> is a list of different whole numbers in a range."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        shown = list(values) if isinstance(values, tuple) else values
        raise ValueError(f"benchmark.{name}={shortened(shown)}: give a list of at least one number")
    for value in values:
        whole(name, value, least, most)
    if len(set(values)) < len(values):
        raise ValueError(f"benchmark.{name}={shortened(list(values))}: give each value once")


def check_path(name: str, value: Any) -> None:
    """Raise ValueError unless benchmark.<name> is null or a text that may name a folder."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"benchmark.{name}={value!r}: name a folder, or null")
