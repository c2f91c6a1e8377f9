"""Your own questions, from a file of JSON lines: a context, a question and the answers that are right in each line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvbench.benchmarks.base import ModelFacts, Rendering, Sample, SuiteColumn, Tokenizer, choice, whole
from kvbench.benchmarks.needle_checks import tell_escapes
from kvbench.data import questions
from kvbench.metrics.answers import VERSIONS, answer_score

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass
class JsonLines:
    """The questions of one file. Every field is a key of conf/benchmark/jsonl.yaml, where it is explained.

    Raises ValueError for settings that cannot work. Only `protocol` and `samples` read the file, so that answers can be
    scored again where it is gone.
    """

    name: str
    path: str | None
    headline: str
    scores: Sequence[str]
    question: str
    template: str
    answer_prefix: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.path is not None and not self.path.strip():
            raise ValueError(f"benchmark.path={self.path!r}: name your file of JSON lines")
        if not self.scores or isinstance(self.scores, str):
            raise ValueError(f"benchmark.scores={self.scores}: give a list of {', '.join(VERSIONS)}")
        for score in self.scores:
            choice("scores", score, VERSIONS)
        if self.headline not in self.scores:
            raise ValueError(f"benchmark.headline={self.headline}: must be one of benchmark.scores={list(self.scores)}")
        choice("question", self.question, ("aware", "agnostic"))
        whole("max_new_tokens", self.max_new_tokens, 1, questions.MOST_TOKENS)
        tell_escapes(tuple(name for name in ("template", "answer_prefix") if "\\n" in getattr(self, name)))
        slots = _SLOT.findall(self.template)
        for slot in slots:
            if slot not in ("context", "question"):
                raise ValueError(
                    f"benchmark.template: {{{slot}}}: the only placeholders are {{context}} and {{question}}"
                )
        if slots != ["context", "question"]:
            raise ValueError("benchmark.template: must have {context} once, and {question} once after it")

    @property
    def column(self) -> SuiteColumn | None:
        """None: the file stands alone."""
        return None

    @property
    def rendering(self) -> Rendering:
        """The model's chat template around the text."""
        return Rendering()

    def benchmarks(self, model: ModelFacts) -> list[JsonLines]:
        """Return the benchmark under the name of its file, as folders and tables show it."""
        stem = re.sub(r"[^\w.+-]+", "_", Path(self.path).stem).strip("._") if self.path else ""
        return [replace(self, name=f"{self.name}-{stem[:60]}") if stem else self]

    def protocol(self) -> dict[str, Any]:
        """Return all that can change an answer, with the file's checksum for its path. Raises ValueError."""
        return {
            "benchmark": "jsonl",
            "version": 1,
            "data_sha256": self._read()[1],
            "question": self.question,
            "template": self.template,
            "answer_prefix": self.answer_prefix,
            "max_new_tokens": self.max_new_tokens,
            **({"tasks": True} if any(row.task for row in self._read()[0]) else {}),  # once, no field said the task
        }

    def scoring(self) -> dict[str, Any]:
        """Return the versions of the metrics, by name."""
        return {"metrics": {name: VERSIONS[name] for name in self.scores}}

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return one sample per line, in the order of the file. Raises ValueError as `protocol` does."""
        before, _, rest = self.template.partition("{context}")
        border, _, after = rest.partition("{question}")
        return [
            Sample(
                id=row.id,
                context=before + row.context,
                question=border + row.question + after,
                answer_prefix=self.answer_prefix if row.answer_prefix is None else row.answer_prefix,
                answers=row.answers,
                max_new_tokens=row.max_new_tokens or self.max_new_tokens,
                meta={"line": row.line},
                task=row.task,
            )
            for row in self._read()[0]
        ]

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return the scores named in `scores`, each the best over the answers."""
        return {name: answer_score(name, prediction, sample_answers) for name in self.scores}

    def _read(self) -> tuple[tuple[questions.Question, ...], str]:
        if self.path is None:
            raise ValueError(
                "benchmark.path=null: name your file of JSON lines, such as benchmark.path=questions.jsonl"
            )
        try:
            return questions.read(Path(self.path).expanduser())
        except ValueError as error:
            raise ValueError(f"benchmark.path: {error}") from None
