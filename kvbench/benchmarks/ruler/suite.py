"""RULER (arXiv 2404.06654) as a suite: every task at every length is a benchmark with a run of its own.

The chat wrapper is part of the generated text, as upstream has it: it counts in the length, and the worked example of
the task cwe repeats it. So the text goes to the tokenizer with its control tokens, and no wrapper is added later.

The protocol "kvpress" reads samples and runs them as NVIDIA/kvpress 8bb29b9c does: the model's template around context
and question, context and question encoded apart, no end before the second token, and kvpress's form of the metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kvbench.benchmarks.base import (
    LONGEST,
    MOST_SAMPLES,
    ModelFacts,
    Rendering,
    Sample,
    SuiteColumn,
    Tokenizer,
    check_path,
    choice,
    distinct,
    whole,
)
from kvbench.benchmarks.longbench_protocols import PRESETS
from kvbench.benchmarks.ruler import (
    FITS,
    TASKS,
    TEMPLATES,
    VERSION,
    RulerRequest,
    Sources,
    cached,
    load_records,
    records_file,
    split,
)
from kvbench.common.tasks import AGGREGATION, LOCALIZATION
from kvbench.data.ruler_hub import hub_file
from kvbench.encoding import around_user, has_template
from kvbench.metrics.ruler import METRIC_VERSION, ruler_sample_score

CATEGORIES = {"niah": "retrieval", "vt": "multi-hop tracing", "cwe": "aggregation", "fwe": "aggregation", "qa": "QA"}
SYNTHETIC = tuple(task for task in TASKS if not task.startswith("qa"))
SETS = {"all": tuple(TASKS), "synthetic": SYNTHETIC}
KVPRESS = "kvpress"
_RENDERING = Rendering(style="upstream", wrapper="none", bos="missing")
_KVPRESS = PRESETS[KVPRESS].rendering  # its pipeline is the same for all of its data sets


@dataclass
class Ruler:
    """The suite. Every field is a key of conf/benchmark/ruler.yaml, where it is explained.

    Raises ValueError for settings that cannot work, before anything is generated.
    """

    name: str
    protocol: str
    tasks: Sequence[str]
    lengths: Sequence[int]
    samples: int
    seed: int
    question: str
    wrapper: str
    path: str | None
    files: str | None

    def __post_init__(self) -> None:
        self.tasks, self.lengths = tuple(self.tasks), tuple(self.lengths)
        choice("protocol", self.protocol, (*FITS, KVPRESS))
        choice("question", self.question, ("aware", "agnostic"))
        if self.wrapper not in ("chat", "none", *TEMPLATES) and self.wrapper.count("{task_template}") != 1:
            known = ", ".join(("chat", "none", *TEMPLATES))
            raise ValueError(f"benchmark.wrapper={self.wrapper}: {known}, or a text with one {{task_template}}")
        whole("samples", self.samples, 1, MOST_SAMPLES)
        whole("seed", self.seed, 0, 2**32 - 1)
        check_path("path", self.path)
        check_path("files", self.files)
        distinct("lengths", self.lengths, 1, LONGEST)
        if self.files is not None:
            fit = "head" if self.protocol == KVPRESS else self.protocol
            unused = (("seed", self.seed, 42), ("path", self.path, None), ("protocol", fit, "head"))
            for name, value, default in unused:
                if value != default:
                    raise ValueError(
                        f"benchmark.{name}={value}: nothing is generated with benchmark.files; leave it out"
                    )
            if len(self.lengths) > 1 and self.files != "hub":
                raise ValueError(f"benchmark.lengths={list(self.lengths)}: benchmark.files holds one length; give that")
        elif self.is_kvpress:
            raise ValueError("benchmark.protocol=kvpress: nothing is generated; add benchmark.files=hub, or a folder")
        if self.is_kvpress and self.wrapper not in ("chat", "none"):
            raise ValueError(f"benchmark.wrapper={self.wrapper}: kvpress has chat (the model's template) or none")
        if not self.names:
            raise ValueError("benchmark.tasks=[]: name a set (all, synthetic) or tasks")

    @property
    def is_kvpress(self) -> bool:
        """Return True if samples are run as kvpress runs them: always with its own data set."""
        return self.protocol == KVPRESS or self.files == "hub"

    @property
    def rendering(self) -> Rendering:
        """The way from text to token ids, the same for all tasks."""
        if not self.is_kvpress:
            return _RENDERING
        return _KVPRESS if self.wrapper == "chat" else replace(_KVPRESS, wrapper="none")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The chosen tasks in RULER's order, with sets spelled out."""
        chosen: set[str] = set()
        for name in self.tasks:
            if name not in SETS:
                choice("tasks", name, (*SETS, *TASKS))
            chosen |= set(SETS.get(name, (name,)))
        return tuple(task for task in TASKS if task in chosen)

    @cached_property
    def sources(self) -> Sources:
        """Word lists, essays and question sets. Raises ValueError for a folder that lacks them."""
        return Sources.load(self.path)

    def benchmarks(self, model: ModelFacts) -> list[RulerTask]:
        """Return one benchmark per length and task. Raises ValueError for lengths that the model does not take."""
        limit = model.max_length
        if limit is not None and (too_long := [length for length in self.lengths if length > limit]):
            raise ValueError(f"benchmark.lengths={too_long}: more than the {limit} tokens that {model.name} takes")
        return [RulerTask(self, task, length, model) for length in self.lengths for task in self.names]


class RulerTask:
    """One task at one length."""

    def __init__(self, suite: Ruler, task: str, length: int, model: ModelFacts) -> None:
        self._suite, self._task, self._length, self._model = suite, task, length, model
        self.name = f"{suite.name}-{length}-{task}"
        self.headline = TASKS[task].metric
        self.question, self.rendering = suite.question, suite.rendering
        means = {"avg-13": len(TASKS)} | ({"avg-11": len(SYNTHETIC)} if task in SYNTHETIC else {})
        order = list(TASKS).index(task)
        self.column = SuiteColumn(f"{suite.name}-{length}", task, order, CATEGORIES[task.split("_")[0]], means=means)

    def protocol(self) -> dict[str, Any]:
        """Return all that changes an answer. Raises ValueError for missing or damaged data."""
        suite = self._suite
        dataset: dict[str, Any] = {"name": self._task, "max_new_tokens": TASKS[self._task].tokens_to_generate}
        origin: dict[str, Any] = {}
        if suite.files is None:
            suite.sources.require(self._task)
            dataset["sources"] = suite.sources.checksums(self._task)
            origin = {"sources": suite.sources.version}
        else:
            file = records_file(self._files(), self._task)
            self._check_length(load_records(file, self._task))
            dataset["data_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.settings() | origin | {"dataset": dataset}

    def settings(self) -> dict[str, Any]:
        """Return the part of the protocol that the settings alone decide. Reads no data."""
        suite = self._suite
        settings = {
            "benchmark": "ruler",
            "protocol": suite.protocol,
            "question": suite.question,
            "samples": suite.samples,
            "wrapper": suite.wrapper,
            "length": self._length,
        }
        if suite.files is None:
            return settings | {"seed": suite.seed, "generator": VERSION}
        name = KVPRESS if suite.is_kvpress else "files"
        return settings | {"protocol": name, "files": "hub" if suite.files == "hub" else True}

    def scoring(self) -> dict[str, Any]:
        """Return the metric, its version, and the switch in which kvpress differs."""
        switches = {"switches": {"control_characters": "deleted"}} if self._suite.is_kvpress else {}
        return {"metrics": {self.headline: METRIC_VERSION}} | switches

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return the samples, generated or read from the files of another generator."""
        suite, spec = self._suite, TASKS[self._task]
        before, after = ("", "") if suite.is_kvpress else self._wrapper(tokenizer)
        # upstream turns "are" into "is" for a single answer, in the wrapper too; a model's own wrapper is left alone
        own = suite.wrapper == "chat"
        if suite.files is not None:
            records = load_records(self._files(), self._task)[: suite.samples]
        else:
            request = RulerRequest(
                self._task,
                self._length,
                tokenizer,
                num_samples=suite.samples,
                seed=suite.seed,
                sources=suite.sources,
                template=f"{_escaped(before)}{{task_template}}{_escaped(after)}" if own else self._template(),
                edit_wrapper=not own,
                fit=suite.protocol,
            )
            records = cached(request)
            before, after = "", ""  # they are in the records already
        samples = []
        for index, record in enumerate(records):
            context, question, prefix = split(self._task, record, style=KVPRESS if suite.is_kvpress else "upstream")
            if suite.is_kvpress and suite.question == "aware":  # kvpress adds the question to the context
                context, question = context + question, ""
            samples.append(
                Sample(
                    id=f"{self._task}-{index:04d}",
                    context=before + context,
                    question=question + after,
                    answer_prefix=prefix,
                    answers=tuple(record["outputs"]),
                    max_new_tokens=spec.tokens_to_generate,
                    chat=suite.is_kvpress,  # else the wrapper is in the text
                    task=AGGREGATION if self.column.category == "aggregation" else LOCALIZATION,
                    meta={"dataset": self._task, "index": index, "length": self._length},
                )
            )
        return samples

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return the share of the answers that occur in the prediction; for qa, 1.0 if any does."""
        answers, is_kvpress = list(sample_answers), self._suite.is_kvpress
        return {self.headline: ruler_sample_score(self._task, prediction, answers, kvpress=is_kvpress)}

    def _check_length(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError for records that were generated for another length."""
        longest = max((record.get("length", 0) for record in records), default=0)
        if longest and not self._length / 2 < longest <= self._length:
            raise ValueError(
                f"benchmark.lengths=[{self._length}]: the longest record of {self._task} in benchmark.files has "
                f"{longest} tokens; give the length for which they were generated"
            )

    def _files(self) -> Path:
        """Return the place of the records of another generator."""
        return hub_file(self._length) if self._suite.files == "hub" else Path(str(self._suite.files))

    def _wrapper(self, tokenizer: Any) -> tuple[str, str]:
        """Return the text before and after the user's words."""
        if self._suite.wrapper == "chat":
            if not has_template(tokenizer, self._model.chat_template):
                return "", ""
            return around_user(tokenizer, dict(self._model.chat_kwargs))
        before, _, after = self._template().partition("{task_template}")
        return before, after

    def _template(self) -> str:
        """Return a wrapper of RULER's, or the user's, with {task_template} in it."""
        wrapper = self._suite.wrapper
        return "{task_template}" if wrapper == "none" else TEMPLATES.get(wrapper, wrapper)


def _escaped(text: str) -> str:
    """Return text that a template reproduces unchanged."""
    return text.replace("{", "{{").replace("}", "}}")
