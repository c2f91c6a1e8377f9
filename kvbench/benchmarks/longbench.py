"""LongBench (arXiv 2308.14508): 21 datasets, and the 13 of LongBench-E with their length buckets.

A suite: every dataset is a benchmark with a run of its own, so that a further dataset costs only itself. Prompts and
answer lengths are read from the data bundle's protocol files; how a prompt is cut, wrapped and ended is the protocol's
(kvbench/benchmarks/longbench_protocols.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from kvbench.benchmarks.base import ModelFacts, Rendering, Sample, Tokenizer, check_path, choice
from kvbench.benchmarks.longbench_datasets import DATASETS, SETS, place, task_of
from kvbench.benchmarks.longbench_protocols import PRESETS, VERSION, Preset
from kvbench.common.kinds import is_integer
from kvbench.data import longbench as data
from kvbench.data.sources import LONGBENCH_ROWS
from kvbench.metrics.longbench import METRIC_OF, VERSIONS, bucket, longbench_scores

log = logging.getLogger(__name__)


@dataclass
class LongBench:
    """The suite. Every field is a key of conf/benchmark/longbench.yaml, where it is explained.

    None means: as the protocol says. Raises ValueError for settings that cannot work, before any data is read.
    """

    name: str
    protocol: str
    datasets: Sequence[str]
    path: str | None
    question: str | None
    max_length: int | None
    wrapper: str | None
    code_backend: str | None
    samples: int | None
    max_new_tokens: int | None

    def __post_init__(self) -> None:
        self.datasets = tuple(self.datasets)
        choice("protocol", self.protocol, PRESETS)
        check_path("path", self.path)
        if self.question is not None:
            choice("question", self.question, ("aware", "agnostic"))
        if self.code_backend is not None:
            choice("code_backend", self.code_backend, ("difflib", "indel"))
        for name, least in (("max_length", 2), ("samples", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and (not is_integer(value) or value < least):
                raise ValueError(f"benchmark.{name}={value}: must be null or an integer of at least {least}")
        named = self.wrapper is None or self.wrapper in ("chat", "native", "none")
        if not named and str(self.wrapper).count("{prompt}") != 1:
            raise ValueError(f"benchmark.wrapper={self.wrapper}: chat, native, none, or a text with one {{prompt}}")
        if self.wrapper not in (None, "none") and PRESETS[self.protocol].rendering.truncation == "middle_ids":
            raise ValueError(f"benchmark.wrapper={self.wrapper}: {self.protocol} cuts ids, which cannot be wrapped")
        if not self.names:
            raise ValueError("benchmark.datasets=[]: name a set (en16, all21, e13) or datasets")
        if self.question == "aware" and PRESETS[self.protocol].split:
            raise ValueError(f"benchmark.question=aware: {self.protocol} compresses the context alone; leave it null")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The chosen datasets in the order of the official table, with sets spelled out."""
        chosen: set[str] = set()
        known = [*DATASETS, *SETS["e13"]]
        for name in self.datasets:
            if name not in SETS:
                choice("datasets", name, (*SETS, *known))
            chosen |= set(SETS.get(name, (name,)))
        return tuple(name for name in known if name in chosen)

    def benchmarks(self, model: ModelFacts) -> list[LongBenchDataset]:
        """Return one benchmark per chosen dataset."""
        return [LongBenchDataset(self, name, model) for name in self.names]


class LongBenchDataset:
    """One dataset of LongBench under the settings of a suite."""

    def __init__(self, suite: LongBench, dataset: str, model: ModelFacts) -> None:
        self._suite, self._dataset, self._model = suite, dataset, model
        self._plain = dataset.removesuffix("_e")
        self._preset: Preset = PRESETS[suite.protocol]
        self.name = f"{suite.name}-{dataset}"
        self.headline = METRIC_OF[self._plain]
        self.column = place(suite.name, dataset)
        self.question = suite.question or self._preset.question
        self.rendering: Rendering = self._preset.rendering_for(model, self._plain)
        if suite.max_length is not None:
            self.rendering = replace(self.rendering, max_length=suite.max_length)
        if suite.wrapper is not None:
            self.rendering = replace(self.rendering, wrapper=suite.wrapper)

    def protocol(self) -> dict[str, Any]:
        """Return all that changes an answer. Raises ValueError for data that is missing or damaged."""
        unknown = [name for name in self._preset.own_wrapper if self._model.is_called(name)]
        if unknown and self._suite.wrapper is None:
            raise ValueError(
                f"benchmark.wrapper=null: {self._suite.protocol} has a wrapper for {unknown[0]} that kvbench does not; "
                "give it as a text with {prompt}, or chat, or none"
            )
        _say_choices(self._suite, self._model)
        folder = data.find(self._suite.path)
        if self._suite.samples is None and not folder.complete(self._dataset):
            _warn_incomplete(self._dataset, folder.check(self._dataset), LONGBENCH_ROWS[self._dataset])
        texts = "\0".join(self._texts(folder))
        dataset = {
            "name": self._dataset,
            "prompt_sha256": hashlib.sha256(texts.encode()).hexdigest(),
            "data_sha256": folder.checksum(self._dataset),
            "max_new_tokens": self._max_new_tokens(folder),
            "min_new_tokens": self._preset.min_new_tokens(self._plain),
            "chat": self._preset.chat(self._model, self._plain),
            "stop": list(self._stop),
        }
        return self.settings() | {"dataset": dataset}

    def settings(self) -> dict[str, Any]:
        """Return the part of the protocol that the settings alone decide. Reads no data."""
        return {
            "benchmark": "longbench",
            "version": VERSION,
            "protocol": self._suite.protocol,
            "question": self.question,
            "samples": self._suite.samples,
            "max_new_tokens": self._suite.max_new_tokens,
            "code_backend": self._switches["code_backend"],
        }

    def scoring(self) -> dict[str, Any]:
        """Return the metric, its version and switches."""
        names = [name for name in VERSIONS if name.startswith("code_sim")] if self.headline == "code_sim" else []
        metrics = {name: VERSIONS[name] for name in names or [self.headline]}
        return {"metrics": metrics, "switches": self._switches}

    def samples(self, tokenizer: Tokenizer) -> list[Sample]:
        """Return all rows in the order of the file, or the shortest ones where `samples` limits them."""
        _say_choices(self._suite, self._model)
        folder = data.find(self._suite.path)
        rows = list(enumerate(folder.rows(self._dataset)))
        before, after, prefix = self._texts(folder)
        classes = rows[-1][1]["all_classes"]  # as the official scorer does
        if self._suite.samples is not None:
            shortest = sorted(rows, key=lambda row: (len(row[1]["context"]) + len(row[1]["input"]), row[0]))
            rows = sorted(shortest[: self._suite.samples])
        return [
            Sample(
                id=f"{self._dataset}-{index:04d}",
                context=before.format(**row),
                question=after.format(**row | {"input": row["input"].removesuffix(self._cue(folder))}),
                answer_prefix=prefix,
                answers=tuple(row["answers"]),
                max_new_tokens=self._max_new_tokens(folder),
                stop=self._stop,
                chat=self._preset.chat(self._model, self._plain),
                min_new_tokens=self._preset.min_new_tokens(self._plain),
                task=task_of(self._plain),
                meta={
                    "dataset": self._dataset,
                    "index": index,
                    "_id": row["_id"],
                    "length": row["length"],
                    "bucket": bucket(row["length"]),
                    "all_classes": classes,
                },
            )
            for index, row in rows
        ]

    def score(self, sample_answers: Sequence[str], prediction: str, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return the dataset's official score; for code also that of each published backend."""
        return longbench_scores(
            self._dataset, prediction, list(sample_answers), meta.get("all_classes"), **self._switches
        )

    @property
    def _switches(self) -> dict[str, Any]:
        backend = self._suite.code_backend or self._preset.code_backend
        strip = "none" if self._dataset.endswith("_e") else self._preset.strip  # kvpress strips on the plain sets only
        return {"code_backend": backend, "strip": strip}

    @property
    def _stop(self) -> tuple[str, ...]:
        return ("\n",) if self._plain == "samsum" and self._preset.newline else ()

    def _max_new_tokens(self, folder: data.Folder) -> int:
        if self._plain not in folder.max_new_tokens:
            raise ValueError(f"{folder.root}: dataset2maxlen.json has no {self._plain}; copy it again from upstream")
        tokens = folder.max_new_tokens[self._plain] + self._preset.extra_tokens
        return min(tokens, self._suite.max_new_tokens or tokens)

    def _cue(self, folder: data.Folder) -> str:
        """Return the cue at the end of an input that kvpress moves into the answer prefix."""
        if self._preset.split != "kvpress":
            return ""
        notes = folder.splits("kvpress").get("_notes", {})
        return str(notes.get("input_suffix_removed", {}).get(self._plain, ""))

    def _texts(self, folder: data.Folder) -> tuple[str, str, str]:
        """Return the templates of the context and of the question, and the answer prefix."""
        name, plain = self._preset.split, self._plain
        try:
            if name == "kvpress":
                split = folder.splits(name)
                return (
                    split["context_prefix"][plain],
                    split["question_template"][plain],
                    split["answer_prefix"].get(plain, ""),
                )
            if name == "ffy0":
                split = folder.splits(name)
                return split["context_prompt"][plain], split["question_prompt"][plain], ""
            before, border, after = folder.prompts[plain].partition("{context}")
        except KeyError as error:
            file = f"{name}_split.json" if name else "dataset2prompt.json"
            raise ValueError(f"{folder.root}: {file} has no {error} for {plain}; copy it again from upstream") from None
        return before + border, after, ""


@cache
def _say_reasons(protocol: str, names: tuple[str, ...], reasons: str) -> None:
    log.info("%s, model %s: %s; benchmark.wrapper and benchmark.max_length change it", protocol, names[0], reasons)


def _say_choices(suite: LongBench, model: ModelFacts) -> None:
    """Say once per process which wrapper and length are used, and why."""
    reasons = PRESETS[suite.protocol].reasons(model, suite.wrapper, suite.max_length)
    _say_reasons(suite.protocol, model.names, reasons)


@cache
def _warn_incomplete(dataset: str, rows: int, complete: int) -> None:
    """Warn once per process, as a sweep asks for every run."""
    log.warning(
        "%s: %d of the %d published rows; the score is not comparable with published ones", dataset, rows, complete
    )
