"""Needle in a haystack: find one sentence, placed at a known depth, in a context of a known length.

The default asks for a seven-digit number under a random key, in the words of RULER (arXiv 2404.06654). The published
tests about a sandwich in San Francisco are YAML files of the same class: needle_classic, needle_pyramidkv.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from kvbench.benchmarks.base import Rendering, Sample, Tokenizer
from kvbench.benchmarks.haystack import essays, generated
from kvbench.benchmarks.insertion import encode, haystack_ids, insert_ids, trimmed
from kvbench.data import manifest
from kvbench.data.needle import essays_folder
from kvbench.metrics.needle import VERSIONS, exact_recall, needle_overlap, needle_rouge

_TEMPLATES = ("preamble", "needle", "question_text", "answer_prefix", "answer", "reference")
# fmt: off
_ADJECTIVES = (
    "agile", "brisk", "candid", "dapper", "eager", "fabled", "glossy", "humble", "itchy", "jolly", "keen",
    "lavish", "mellow", "nimble", "opulent", "placid", "quaint", "robust", "sleek", "tactful", "upbeat",
    "vivid", "wistful", "zesty", "bouncy", "clumsy", "drowsy", "fluffy", "giddy", "hearty", "jaunty",
    "lanky", "moody", "perky",
)
_NOUNS = (
    "acorn", "badger", "cactus", "dolphin", "emerald", "falcon", "gecko", "hammock", "iguana", "jigsaw",
    "kayak", "lemur", "meteor", "nutmeg", "otter", "pelican", "quartz", "raccoon", "saffron", "tadpole",
    "umbrella", "velvet", "walnut", "yogurt", "zeppelin", "bobsled", "comet", "dynamo", "easel", "ferret",
    "gazebo",
)
# fmt: on


@dataclass
class Needle:
    """One sample per seed, length and depth. Every field is a key of conf/benchmark/needle.yaml.

    Raises ValueError for settings that cannot work. Only `protocol` and `samples` read the haystack, so that answers
    can be scored again where it is gone.
    """

    part = None

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
        for name in ("lengths", "period_ids"):  # null in a YAML, so Hydra takes anything
            value = getattr(self, name)
            if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise ValueError(f"benchmark.{name}={value}: must be a list, or null")
        self.lengths, self.depths = _lengths(self), tuple(self.depths)
        self.scores, self.stop = tuple(self.scores), tuple(self.stop)
        self.period_ids = None if self.period_ids is None else tuple(self.period_ids)
        _check_grid(self)
        _check_scores(self)
        _check_templates(self)

    @property
    def rendering(self) -> Rendering:
        """As a string through the tokenizer where `raw` says so, else kvbench's own way."""
        return Rendering(style="upstream", wrapper="none") if self.raw else Rendering()

    def protocol(self) -> dict[str, Any]:
        """All settings but the headline and the metrics, and the haystack's checksum for its path.

        Equal lengths are equal, whichever way they were given. Raises ValueError for a haystack that is not there.
        """
        left_out = ("headline", "scores", "start", "end", "step")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        source = "generated" if self.haystack == "generated" else "folder"
        checksum = hashlib.sha256("\0".join(self._texts).encode()).hexdigest()
        return {**plain, "version": 1, "haystack": source, "haystack_sha256": checksum}

    def scoring(self) -> dict[str, Any]:
        """The versions of the metrics, by name."""
        return {"metrics": {name: VERSIONS[name] for name in self.scores}}

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """The grid: seed by seed, then lengths and depths as listed. Each haystack is tokenised once."""
        assert self.lengths is not None
        period_ids = frozenset(encode(tokenizer, ".") if self.period_ids is None else self.period_ids)
        ids = [haystack_ids(tokenizer, text, max(self.lengths)) for text in self._texts]
        samples = []
        for index, seed in enumerate(range(self.seed, self.seed + self.num_seeds)):
            for length in self.lengths:
                context_ids = trimmed(tokenizer, ids[index % len(ids)], length)
                for depth in self.depths:
                    words = self._words(length, depth, seed)
                    needle_ids = encode(tokenizer, words["needle"])
                    limit = length - self.buffer
                    context, at = insert_ids(tokenizer, context_ids, needle_ids, limit, depth, period_ids)
                    meta = {"length": length, "depth": depth, "seed": seed, "reference": words["reference"]}
                    samples.append(
                        Sample(
                            id=f"len{length:05d}-depth{depth:03d}-seed{seed}",
                            context=words["preamble"] + context,
                            question=words["question_text"],
                            answer_prefix=words["answer_prefix"],
                            answers=(words["answer"],),
                            max_new_tokens=self.max_new_tokens,
                            stop=tuple(self.stop),
                            chat=self.chat,
                            meta={**meta, "needle_token": at},
                        )
                    )
        return samples

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """The scores named in `scores`; ROUGE-1 is taken against the reference in `meta`."""
        by_name = {
            "recall": lambda: exact_recall(prediction, sample_answers),
            "rouge1": lambda: needle_rouge(prediction, meta["reference"]),
            "overlap": lambda: needle_overlap(prediction, " ".join(sample_answers)),
        }
        return {name: by_name[name]() for name in self.scores}

    @cached_property
    def _texts(self) -> list[str]:
        """One text per seed, or one for all where the haystack is a folder."""
        if self.haystack != "generated":
            return [essays(_prepared() if self.haystack == "essays" else self.haystack)]
        # Eight characters per token is more than any common tokenizer needs; a shorter text would repeat.
        assert self.lengths is not None
        seeds = range(self.seed, self.seed + self.num_seeds)
        return [generated(seed, 8 * max(self.lengths)) for seed in seeds]

    def _words(self, length: int, depth: int, seed: int) -> dict[str, str]:
        """The filled templates of a cell. They depend on it alone: in a larger grid it stays the same."""
        rng = random.Random(f"{seed}-{length}-{depth}")
        key = f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"
        value = str(rng.randint(1_000_000, 9_999_999))
        return {name: getattr(self, name).format(key=key, value=value) for name in _TEMPLATES}


def _prepared() -> Path:
    """The folder of the essays that the published tests hide their needle in, once they were fetched."""
    folder = essays_folder()
    if folder is None:
        raise ValueError(
            "benchmark.haystack=essays: not there yet; run `python -m kvbench.data needle`, or set "
            "benchmark.haystack=generated or a folder of .txt files"
        )
    if problems := manifest.verify(folder.parent):
        raise ValueError(f"{folder.parent}/{problems[0]}; get it anew: python -m kvbench.data needle --force")
    return folder


def _lengths(needle: Needle) -> tuple[int, ...]:
    """The lengths as listed, or from `start` to `end` in steps of `step`."""
    steps = {name: getattr(needle, name) for name in ("start", "end", "step")}
    given = [name for name, value in steps.items() if value is not None]
    if needle.lengths is not None:
        if given:
            nulls = " ".join(f"benchmark.{name}=null" for name in given)
            raise ValueError(f"benchmark.lengths={list(needle.lengths)}: give either lengths or steps; add {nulls}")
        return tuple(needle.lengths)
    for name, value in steps.items():
        if not _whole(value) or value < 1:
            raise ValueError(
                f"benchmark.{name}={value}: a whole number of tokens, 1 or more, as benchmark.lengths is null"
            )
    if steps["end"] < steps["start"]:
        raise ValueError(f"benchmark.end={needle.end}: at least benchmark.start={needle.start}")
    return tuple(range(steps["start"], steps["end"] + 1, steps["step"]))


def _check_grid(needle: Needle) -> None:
    assert needle.lengths is not None
    for name in ("seed", "num_seeds", "buffer", "max_new_tokens"):
        if not _whole(getattr(needle, name)):
            raise ValueError(f"benchmark.{name}={getattr(needle, name)!r}: a whole number")
    if needle.seed < 0:
        raise ValueError(f"benchmark.seed={needle.seed}: 0 or more")
    if needle.period_ids is not None and not (needle.period_ids and all(map(_whole, needle.period_ids))):
        raise ValueError(f"benchmark.period_ids={list(needle.period_ids)}: token ids, or null for those of '.'")
    for name, values in (("lengths", needle.lengths), ("depths", needle.depths)):
        if not values:
            raise ValueError(f"benchmark.{name}=[]: give at least one value")
        if not all(map(_whole, values)):
            raise ValueError(f"benchmark.{name}={list(values)}: whole numbers only")
        if len(set(values)) < len(values):
            raise ValueError(f"benchmark.{name}={list(values)}: each value once")
    if not all(0 <= depth <= 100 for depth in needle.depths):
        raise ValueError(f"benchmark.depths={list(needle.depths)}: depths are percent, 0 to 100")
    if needle.buffer < 0:
        raise ValueError(f"benchmark.buffer={needle.buffer}: tokens left unused, 0 or more")
    if min(needle.lengths) <= needle.buffer:
        raise ValueError(
            f"benchmark.lengths={list(needle.lengths)}: each must exceed benchmark.buffer={needle.buffer} "
            "and the needle's own tokens"
        )
    for name in ("num_seeds", "max_new_tokens"):
        if getattr(needle, name) < 1:
            raise ValueError(f"benchmark.{name}={getattr(needle, name)}: at least 1")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_scores(needle: Needle) -> None:
    unknown = [name for name in needle.scores if name not in VERSIONS]
    if unknown or not needle.scores:
        raise ValueError(f"benchmark.scores={list(needle.scores)}: choose from {', '.join(VERSIONS)}")
    if needle.headline not in needle.scores:
        raise ValueError(f"benchmark.headline={needle.headline}: must be one of benchmark.scores={list(needle.scores)}")
    if needle.raw and needle.chat:
        raise ValueError("benchmark.raw=true: a raw prompt has no chat template; set benchmark.chat=false")
    if needle.question not in ("aware", "agnostic"):
        raise ValueError(f"benchmark.question={needle.question}: aware or agnostic")


def _check_templates(needle: Needle) -> None:
    used = {name: _placeholders(name, getattr(needle, name)) for name in _TEMPLATES}
    for name, slots in used.items():
        if slots - used["needle"]:
            missing = ", ".join(f"{{{slot}}}" for slot in sorted(slots - used["needle"]))
            raise ValueError(f"benchmark.{name} asks for {missing}, which benchmark.needle does not contain")
    if not needle.answer.strip() or not needle.needle.strip():
        raise ValueError("benchmark.needle and benchmark.answer must not be empty")


def _placeholders(name: str, template: str) -> set[str]:
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None}
    except ValueError as error:
        raise ValueError(f"benchmark.{name}={template!r}: {error}") from None
    if not slots <= {"key", "value"}:
        raise ValueError(f"benchmark.{name}={template!r}: the only placeholders are {{key}} and {{value}}")
    return slots
