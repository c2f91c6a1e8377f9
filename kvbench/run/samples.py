"""The samples that a group of jobs still misses, rendered as prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kvbench import prompts, store
from kvbench.benchmarks.base import Sample, Tokenizer
from kvbench.config import shard_of
from kvbench.engine.variant import span_tokens
from kvbench.models.cache import ModelCache
from kvbench.prompts import Prompt
from kvbench.run.jobs import Job


@dataclass(frozen=True)
class GroupSamples:
    """The samples of a group of jobs.

    Attributes:
        total: number of samples of the benchmark.
        own: the samples that this process works on: its shard of the first `limit` samples.
        missing: those of them that some job has not recorded.
        prompts: id -> prompt, of the missing samples alone: prompts are long.
    """

    total: int
    own: Sequence[Sample]
    missing: Sequence[Sample]
    prompts: Mapping[str, Prompt]
    _others: Sequence[Sample]
    _render: Callable[[Sample], Prompt]
    _question: str

    def spans(self) -> list[int]:
        """Return the number of compressed tokens of every missing sample."""
        return [span for span, _ in self.sizes()]

    def sizes(self) -> list[tuple[int, int]]:
        """Return `spans` with the number of tokens that the chat template of each sample writes first."""
        return [self._size(prompt) for prompt in self.prompts.values()]

    def other_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield `sizes` of every sample that is assigned to another shard."""
        return (self._size(self._render(sample)) for sample in self._others)

    def other_spans(self) -> Iterator[int]:
        """Yield the number of compressed tokens of every sample that is assigned to another shard."""
        return (span for span, _ in self.other_sizes())

    def _size(self, prompt: Prompt) -> tuple[int, int]:
        span = span_tokens(prompt, self._question)
        return span, min(prompt.template_len, span)


def read_samples(jobs: Sequence[Job], model_cache: ModelCache) -> GroupSamples:
    """Return the samples of jobs of one group; the missing ones are rendered. No weights are loaded.

    Raises:
        ValueError: a sample that does not fit, a template that cannot be rendered, or damaged data.
    """
    job = jobs[0]
    tokenizer = model_cache.tokenizer(job.model)
    samples = job.benchmark.samples(cast("Tokenizer", tokenizer))
    render = prompts.renderer(job.model, tokenizer, job.benchmark)
    wanted = samples[: job.cfg["limit"]]
    own = _share(samples, job.cfg)
    own_ids = {sample.id for sample in own}
    missing_ids: set[str] = set()
    for each in jobs:
        missing_ids |= own_ids - _recorded_ids(each)
    missing = [sample for sample in own if sample.id in missing_ids]
    return GroupSamples(
        total=len(samples),
        own=own,
        missing=missing,
        prompts={sample.id: render(sample) for sample in missing},
        _others=[sample for sample in wanted if sample.id not in own_ids],
        _render=render,
        _question=job.question,
    )


def _share(samples: Sequence[Sample], cfg: Mapping[str, Any]) -> Sequence[Sample]:
    """Return the samples that this process works on: of the first `limit`, every n-th from the i-th on (shard=i/n)."""
    index, number = shard_of(cfg["shard"])
    return samples[: cfg["limit"]][index - 1 :: number]


def _recorded_ids(job: Job) -> set[str]:
    """Return the ids of the samples that a job need not compute again."""
    if not (job.folder / "manifest.json").is_file():
        return set()
    if not job.retry:
        return store.recorded_ids(job.folder)
    stored = store.load_run(job.folder, bulky=False, any_scoring=True)
    return {record["id"] for record in stored.samples if record["status"] not in job.retry}
