"""A plan: the rows that runs of one group still miss, on their way through the engine and onto the disk.

A row is a sample under one run's method and budget. Samples share prefills and batches as far as memory goes; every
record is on disk as soon as its sample has stopped.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from kvbench import models, prompts, store
from kvbench.benchmarks.base import Sample
from kvbench.engine.caches import choose
from kvbench.engine.decode import stream
from kvbench.engine.variant import Generation, Request, Variant
from kvbench.prompts import Prompt
from kvbench.run import memory
from kvbench.run.jobs import Job
from kvbench.run.record import broken_promise, record
from kvbench_kernels.backends import AttentionSpec, unmet_requirement

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Open:
    """A job whose run folder is open for writing, and the samples it misses."""

    job: Job
    run: store.Run
    pending: set[str] = field(default_factory=set)
    error: Exception | None = None


@dataclass
class _Work:
    """A sample, and the runs that wait for it."""

    sample: Sample
    prompt: Prompt
    runs: list[Open]
    alone: bool = False  # shares its batch with nothing: what it was tried with made the engine fail

    def request(self, question: str) -> Request:
        span = span_of(self.prompt, question)
        return Request(self.prompt, [one.job.variant_for(span) for one in self.runs], self.sample.max_new_tokens)


def question_of(job: Job) -> str:
    """Whether the question is compressed with the context (aware) or comes after (agnostic)."""
    return "agnostic" if prompts.span_of(job.benchmark) == "context" else "aware"


def span_of(prompt: Prompt, question: str) -> int:
    """Tokens of what is compressed."""
    return prompt.context_len if question == "agnostic" else len(prompt.ids)


def generate(
    opened: Sequence[Open], samples: Sequence[Sample], rendered: Mapping[str, Prompt], kept: models.ModelCache
) -> None:
    """Answer every sample that some run misses: one prefill for all runs that miss it.

    A batch that runs out of memory is tried again in halves, down to a single row; that one is recorded as out of
    memory. When the engine fails otherwise, each run of the batch is tried by itself: those that fail then, and those
    whose method breaks the budget's promise, get an error and no more samples, the others go on.
    """
    job = opened[0].job
    works = [_Work(s, rendered[s.id], [one for one in opened if s.id in one.pending]) for s in samples]
    todo = [work for work in works if work.runs]
    limits = _preflight(job, todo, kept)
    loaded = kept.model(job.model)
    if job.cfg["engine"]["cache"] == "ragged":
        choose(loaded.model, job.cfg["kernel"])  # says so once, before the progress bar is there
    limits = replace(limits, free=_free(job))
    total = sum(len(work.runs) for work in todo)
    with tqdm(total=total, disable=not job.cfg["progress"], unit="row", desc=job.benchmark.name) as bar:
        while todo:
            feed, error = _attempt(todo, job.cfg, loaded, limits, bar)
            failed, todo = list(feed.flying.values()), list(feed.queue)
            rows = sum(len(work.runs) for work in failed)
            if error is None:
                continue
            if not failed:  # not even a prompt was under way
                raise error
            if not is_out_of_memory(error):
                todo = _blame(failed, error) + todo
            elif rows > 1:
                log.warning("out of memory with %d rows; trying half as much at a time", rows)
                limits = replace(limits, free=feed.together // 2)
                todo = failed + todo
            elif not failed[0].alone:  # others may have left their memory behind
                todo = [replace(failed[0], alone=True), *todo]
            else:
                log.warning("%s: out of memory with a single row; recorded", failed[0].sample.id)
                variants = failed[0].request(limits.question).variants
                said = (str(error).splitlines() or [type(error).__name__])[0]
                _record(failed[0], variants, [None], loaded.device, said)
                bar.update()


def _attempt(
    works: Sequence[_Work], cfg: Mapping[str, Any], loaded: models.Loaded, limits: memory.Limits, bar: tqdm
) -> tuple[_Feed, Exception | None]:
    """Work until nothing is left or the engine fails: what was under way then and what had not begun, and why."""
    feed, error = _Feed(deque(works), limits), None
    answers = stream(
        loaded.model,
        loaded.tokenizer,
        feed.draw,
        cache=cfg["engine"]["cache"],
        kernel=cfg["kernel"],
        graph=cfg["engine"]["graph"],
        question=limits.question,
    )
    with closing(answers):
        while True:
            try:
                request, generations = next(answers)
            except StopIteration:
                break
            except Exception as problem:
                if not isinstance(problem, ValueError) and not is_out_of_memory(problem):
                    log.error("the engine failed", exc_info=problem)
                error = problem.with_traceback(None)  # its frames would keep the failed batch's tensors alive
                break
            work = feed.flying.pop(request)
            _record(work, request.variants, generations, loaded.device, None)
            bar.set_postfix_str(work.sample.id, refresh=False)
            bar.update(len(work.runs))
    if error is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return feed, error


def _blame(failed: Sequence[_Work], error: Exception) -> list[_Work]:
    """The works to try again, each run of them apart; a run that was alone already has its error now."""
    runs = list({id(one): one for work in failed for one in work.runs}.values())
    if len(runs) == 1:
        runs[0].error = error
        return []
    log.warning("%s; trying the %d runs under way one by one", error, len(runs))
    return [replace(work, runs=[one], alone=True) for one in runs for work in failed if one in work.runs]


@dataclass
class _Feed:
    """What the engine draws from: works in order, each in as few parts as fit."""

    queue: deque[_Work]
    limits: memory.Limits
    flying: dict[Request, _Work] = field(default_factory=dict)
    together: int = 0  # bytes that what is under way was thought to take

    def draw(self, in_flight: Sequence[Request]) -> Request | None:
        while self.queue:
            work = self.queue.popleft()
            runs = [one for one in work.runs if one.error is None]
            if not runs:
                continue
            request = self.limits.part(replace(work, runs=runs).request(self.limits.question))
            apart = any(one.alone for one in [work, *self.flying.values()])
            if in_flight and (apart or not self.limits(in_flight, request)):
                self.queue.appendleft(work)
                return None
            count = len(request.variants)
            self.flying[request] = replace(work, runs=runs[:count])
            self.together = self.limits.total([*in_flight, request])
            if runs[count:]:
                self.queue.appendleft(replace(work, runs=runs[count:]))
            return request
        return None


def _record(
    work: _Work, variants: Sequence[Variant], generations: Sequence[Generation | None], device: str, error: str | None
) -> None:
    for one, variant, generation in zip(work.runs, variants, generations, strict=True):
        if one.error is not None:
            continue
        if generation is not None:
            generation = replace(generation, text=prompts.answer_text(work.prompt, generation.text))
        try:
            made = record(work.sample, generation, one.job.benchmark, error, device)
        except Exception as problem:  # scoring is the benchmark's; the other runs go on
            log.error("%s: cannot be scored", work.sample.id, exc_info=problem)
            one.error = problem
            continue
        if generation is not None:
            made["fallback"] = None if variant is one.job.variant else "recent"
            one.error = broken_promise(variant, generation)
        if one.error is None:
            one.run.append(made)
            one.pending.discard(work.sample.id)


def _preflight(job: Job, works: Sequence[_Work], kept: models.ModelCache) -> memory.Limits:
    """What may decode together, and one line that says what memory it will take, before weights are loaded."""
    spec, engine, question = job.model, job.cfg["engine"], question_of(job)
    device, shape = models.device(spec), models.shape(spec)
    _check_kernel(job.cfg, device, shape)
    kept.drop_others(spec)
    weights = 0 if kept.holds(spec) else shape.weight_bytes
    free = _free(job)
    limits = memory.Limits(
        max_rows=engine["max_rows"],
        max_prompts=engine["max_prompts"],
        free=max(0, free - weights),
        shape=shape,
        question=question,
        masked=engine["cache"] == "masked",
    )
    largest = max((work.request(question) for work in works), key=lambda request: limits.total([request]))
    part = limits.part(largest)
    need = limits.total([part])
    gib = memory.GIB
    log.info(
        "%s: %d row(s) of %d sample(s) to compute; memory: weights %.2f GiB, the largest prompt (%d tokens, %d of %d "
        "row(s) at once) about %.2f GiB, of %.1f GiB free on %s",
        job.benchmark.name,
        sum(len(work.runs) for work in works),
        len(works),
        shape.weight_bytes / gib,
        len(largest.prompt.ids),
        len(part.variants),
        len(largest.variants),
        need / gib,
        free / gib,
        device,
    )
    if need > limits.free:
        log.warning(
            "that may be more than there is: samples that do not fit are recorded as out of memory; choose a smaller "
            "model, model.dtype=bfloat16, model.device_map=auto or a smaller model.max_length"
        )
    return limits


def _check_kernel(cfg: Mapping[str, Any], device: str, shape: models.Shape) -> None:
    """Say before weights are loaded that a kernel that was asked for cannot run. Raises ValueError."""
    if str(cfg["engine"]["graph"]).lower() == "true" and not device.startswith("cuda"):
        raise ValueError(f"engine.graph=true: CUDA graphs need a GPU, and the model is on device={device}")
    if cfg["kernel"] != "auto":
        dtype = torch.float32 if shape.itemsize == 4 else torch.bfloat16  # no kernel tells the half precisions apart
        use = AttentionSpec(torch.device(device), dtype, shape.head_dim, shape.heads // shape.kv_heads)
        lack = unmet_requirement(cfg["kernel"], use)
        if lack is not None:
            raise ValueError(f"kernel={cfg['kernel']}: {lack}")


def _free(job: Job) -> int:
    """Bytes that may be used now."""
    all_gpus = job.model.device_map is not None
    return int(memory.FRACTION * memory.free_bytes(models.device(job.model), all_gpus=all_gpus))


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    text = str(problem).lower()
    return (
        isinstance(problem, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "status_alloc_failed" in text  # of cuBLAS and cuDNN
    )
