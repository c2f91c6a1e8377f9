"""The settings of the needle test. Those that cannot work are refused in one line, before any text is generated."""

from __future__ import annotations

import logging
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from kvbench.benchmarks.base import LONGEST, MOST_SAMPLES, ModelFacts, choice, distinct, whole
from kvbench.metrics.needle import VERSIONS

log = logging.getLogger(__name__)

TEMPLATES = ("preamble", "needle", "question_text", "answer_prefix", "answer", "reference")
_IN_PROMPT = TEMPLATES[:4]


@dataclass
class NeedleSettings:
    """The fields of a needle test. Each is a key of conf/benchmark/needle.yaml."""

    name: str
    headline: str
    question: str
    lengths: Sequence[int] | None  # either these, or start, end (included) and step
    start: int | None
    end: int | None
    step: int | None
    depths: Sequence[int]
    seed: int
    num_seeds: int
    haystack: str
    buffer: int
    period_ids: Sequence[int] | None
    preamble: str
    needle: str
    question_text: str
    answer_prefix: str
    answer: str
    reference: str
    scores: Sequence[str]
    max_new_tokens: int
    stop: Sequence[str]
    chat: bool
    raw: bool

    def __post_init__(self) -> None:
        self.lengths = listed_lengths(self)
        check(self)
        self.depths, self.scores, self.stop = tuple(self.depths), tuple(self.scores), tuple(self.stop)
        self.period_ids = None if self.period_ids is None else tuple(self.period_ids)
        if not self.draws:
            self.seed = 0  # the samples of every seed are the same, so their ids are, too

    @property
    def draws(self) -> bool:
        """True if a seed chooses something: the words of the needle, or a generated haystack."""
        return self.haystack == "generated" or bool(_placeholders("needle", self.needle))


def listed_lengths(needle: NeedleSettings) -> tuple[int, ...]:
    """Return the lengths as listed, or from `start` to `end` in steps of `step`. Raises ValueError."""
    steps = {name: getattr(needle, name) for name in ("start", "end", "step")}
    given = [name for name, value in steps.items() if value is not None]
    if needle.lengths is not None:
        if given:
            nulls = " ".join(f"benchmark.{name}=null" for name in given)
            raise ValueError(f"benchmark.lengths={needle.lengths}: give either lengths or steps; add {nulls}")
        distinct("lengths", needle.lengths, 1, LONGEST)
        return tuple(needle.lengths)
    for name in steps:
        if steps[name] is None:
            raise ValueError(f"benchmark.{name}=null: benchmark.lengths is null, so give start, end and step")
        whole(name, steps[name], 1, LONGEST)
    if steps["end"] < steps["start"]:
        raise ValueError(f"benchmark.end={needle.end}: at least benchmark.start={needle.start}")
    lengths = range(steps["start"], steps["end"] + 1, steps["step"])
    if len(lengths) > MOST_SAMPLES:
        raise ValueError(f"benchmark.step={needle.step}: that is {len(lengths)} lengths; at most {MOST_SAMPLES}")
    return tuple(lengths)


def check(needle: NeedleSettings) -> None:
    """Raise ValueError for a setting that cannot work."""
    _check_grid(needle)
    choice("question", needle.question, ("aware", "agnostic"))
    if isinstance(needle.scores, str) or not needle.scores:
        raise ValueError(f"benchmark.scores={needle.scores}: give a list of {', '.join(VERSIONS)}")
    for name in needle.scores:
        choice("scores", name, VERSIONS)
    if needle.headline not in needle.scores:
        raise ValueError(f"benchmark.headline={needle.headline}: must be one of benchmark.scores={list(needle.scores)}")
    if isinstance(needle.stop, str) or not all(isinstance(text, str) and text for text in needle.stop):
        raise ValueError(f"benchmark.stop={needle.stop}: give a list of texts, such as ['.']")
    if needle.raw and needle.chat:
        raise ValueError("benchmark.raw=true: a raw prompt has no chat template; set benchmark.chat=false")
    _check_templates(needle)


def check_model(needle: NeedleSettings, model: ModelFacts) -> None:
    """Raise ValueError for lengths that leave a model no room for question and answer."""
    assert needle.lengths is not None
    if model.max_length is None:
        return
    room = model.max_length - needle.max_new_tokens
    if too_long := [length for length in needle.lengths if length - needle.buffer >= room]:
        raise ValueError(
            f"benchmark.lengths={too_long[:3]}{'...' if too_long[3:] else ''}: {model.name} takes {model.max_length} "
            "tokens with question and answer; shorten the benchmark's lengths or raise model.max_length"
        )


def _check_grid(needle: NeedleSettings) -> None:
    assert needle.lengths is not None
    distinct("depths", needle.depths, 0, 100)
    whole("seed", needle.seed, 0)
    whole("num_seeds", needle.num_seeds, 1, MOST_SAMPLES)
    whole("buffer", needle.buffer, 0)
    whole("max_new_tokens", needle.max_new_tokens, 1, LONGEST)
    if needle.period_ids is not None:
        distinct("period_ids", needle.period_ids, 0, 2**31)
    if min(needle.lengths) <= needle.buffer:
        raise ValueError(
            f"benchmark.lengths={list(needle.lengths)}: each must exceed benchmark.buffer={needle.buffer} "
            "and the needle's own tokens"
        )
    if needle.num_seeds > 1 and not needle.draws:
        raise ValueError(
            f"benchmark.num_seeds={needle.num_seeds}: needle and haystack are the same for every seed; set it to 1, or "
            "benchmark.haystack=generated"
        )
    cells = len(needle.lengths) * len(needle.depths)
    if cells * needle.num_seeds > MOST_SAMPLES:
        raise ValueError(
            f"benchmark.num_seeds={needle.num_seeds}: with {cells} cells of lengths and depths, these are more than "
            f"{MOST_SAMPLES} samples"
        )
    if needle.haystack == "generated" and needle.num_seeds * max(needle.lengths) > LONGEST:
        raise ValueError(
            f"benchmark.num_seeds={needle.num_seeds}: the haystacks would have more than {LONGEST} tokens together; "
            "take fewer seeds, shorter lengths, or benchmark.haystack=FOLDER"
        )


def _check_templates(needle: NeedleSettings) -> None:
    used = {name: _placeholders(name, getattr(needle, name)) for name in TEMPLATES}
    for name, slots in used.items():
        if slots - used["needle"]:
            missing = ", ".join(f"{{{slot}}}" for slot in sorted(slots - used["needle"]))
            raise ValueError(f"benchmark.{name} asks for {missing}, which benchmark.needle does not contain")
    if not needle.answer.strip() or not needle.needle.strip():
        raise ValueError("benchmark.needle and benchmark.answer must not be empty")
    tell_escapes(tuple(name for name in _IN_PROMPT if "\\n" in getattr(needle, name)))


@cache
def tell_escapes(names: Sequence[str]) -> None:
    """Warn once that a backslash and an n are two characters: a shell does not turn them into a line break."""
    for name in names:
        log.warning(
            "benchmark.%s holds a backslash and an n, which the model reads as two characters; for a line break "
            "write $'benchmark.%s=\"first\\nsecond\"' in bash, or use a YAML file",
            name,
            name,
        )


def _placeholders(name: str, template: str) -> set[str]:
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None}
    except (ValueError, TypeError) as error:
        raise ValueError(f"benchmark.{name}={template!r}: {error}") from None
    if not slots <= {"key", "value"}:
        raise ValueError(f"benchmark.{name}={template!r}: the only placeholders are {{key}} and {{value}}")
    return slots
