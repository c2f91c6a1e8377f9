"""Batching: the missing samples of a group of runs on their way through the engine and onto the disk.

A row is a sample under one run's method and budget. Samples share prefills and batches as far as memory goes. Every
record is on disk as soon as its sample has stopped.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from kvbench import models
from kvbench.benchmarks.base import Sample
from kvbench.engine.caches import choose
from kvbench.engine.decode import stream
from kvbench.engine.variant import Generation, Request, Variant, span_tokens
from kvbench.models.cache import ModelCache
from kvbench.prompts import Prompt, answer_text
from kvbench.run import memory
from kvbench.run.jobs import Job
from kvbench.run.open_run import OpenRun
from kvbench.run.preflight import free_bytes, memory_limits
from kvbench.run.record import answered, broken_promise, unanswered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleTask:
    """A sample, and the runs that miss it.

    Attributes:
        isolated: True if nothing may share its batch: the batch it was in before made the engine fail.
    """

    sample: Sample
    prompt: Prompt
    runs: Sequence[OpenRun]
    isolated: bool = False

    def request(self, question: str) -> Request:
        """Return the request to the engine: one variant per run, in order."""
        span = span_tokens(self.prompt, question)
        variants = [run.job.variant_for(span) for run in self.runs]
        return Request(self.prompt, variants, self.sample.max_new_tokens, self.runs[0].job.cfg["seed"])


def compute(
    runs: Sequence[OpenRun],
    samples: Sequence[Sample],
    prompts: Mapping[str, Prompt],
    model_cache: ModelCache,
) -> None:
    """Compute and record every sample that some run misses, with one prefill for all runs that miss it.

    A batch that runs out of memory is tried again in halves, down to a single row; that one is recorded as out of
    memory. When the engine fails otherwise, each run of the batch is tried by itself. A run that fails then, or whose
    method breaks the budget's promise, gets an error and no more samples; the others go on.

    Args:
        runs: open runs of one group.
        prompts: sample id -> prompt.

    Raises:
        ValueError: the model cannot be loaded; one line naming the override to change.
    """
    job = runs[0].job
    tasks = [SampleTask(s, prompts[s.id], [run for run in runs if s.id in run.missing]) for s in samples]
    waiting = [task for task in tasks if task.runs]
    limits = memory_limits(job, [task.request(job.question) for task in waiting], model_cache)
    loaded = model_cache.model(job.model)
    if job.cfg["engine"]["cache"] == "ragged":
        choose(loaded.model, job.cfg["kernel"])  # only for its log line, which would tear the progress bar later
    limits = replace(limits, free=free_bytes(job))
    rows = sum(len(task.runs) for task in waiting)
    with tqdm(total=rows, disable=not job.cfg["progress"], unit="row", desc=job.benchmark.name) as bar:
        while waiting:
            queue = TaskQueue(deque(waiting), limits)
            error = _work_through(queue, job, loaded, bar)
            waiting = list(queue.waiting)
            if error is not None:
                again, limits = _after_failure(queue, error, loaded.device, bar)
                waiting = again + waiting


@dataclass
class TaskQueue:
    """The tasks that the engine draws from, in order, each in as few parts as memory allows.

    Attributes:
        in_flight: the tasks that the engine works on, by request.
        planned_bytes: estimated memory of the tasks in flight when the latest was drawn.
    """

    waiting: deque[SampleTask]
    limits: memory.Limits
    in_flight: dict[Request, SampleTask] = field(default_factory=dict)
    planned_bytes: int = 0

    def draw(self, in_flight: Sequence[Request]) -> Request | None:
        """Return the next request that may join those in flight; None if none may, or none is left."""
        while self.waiting:
            task = self.waiting.popleft()
            runs = [run for run in task.runs if run.error is None]
            if not runs:
                continue
            task = replace(task, runs=runs)
            request = self.limits.part(task.request(self.limits.question))
            isolated = any(each.isolated for each in [task, *self.in_flight.values()])
            if in_flight and (isolated or not self.limits(in_flight, request)):
                self.waiting.appendleft(task)
                return None
            count = len(request.variants)
            self.in_flight[request] = replace(task, runs=runs[:count])
            self.planned_bytes = self.limits.total([*in_flight, request])
            if runs[count:]:
                self.waiting.appendleft(replace(task, runs=runs[count:]))
            return request
        return None


def _work_through(queue: TaskQueue, job: Job, loaded: models.Loaded, bar: tqdm) -> Exception | None:
    """Compute and record until the queue is empty or the engine fails. Return the engine's error, or None."""
    engine = job.cfg["engine"]
    answers = stream(
        loaded.model,
        loaded.tokenizer,
        queue.draw,
        cache=engine["cache"],
        kernel=job.cfg["kernel"],
        graph=engine["graph"],
        fused=engine["fused"],
        question=job.question,
        max_length=sys.maxsize,  # lengths were checked when prompts were rendered; a published protocol may go beyond
    )
    error = None
    with closing(answers):
        while True:
            try:
                request, generations = next(answers)
            except StopIteration:
                return None
            except Exception as problem:
                if not isinstance(problem, ValueError) and not is_out_of_memory(problem):
                    log.error("the engine failed", exc_info=problem)
                error = problem.with_traceback(None)  # its frames would keep the failed batch's tensors alive
                break
            task = queue.in_flight.pop(request)
            _record(task, request.variants, generations, loaded.device)
            bar.set_postfix_str(task.sample.id, refresh=False)
            bar.update(len(task.runs))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return error


def _after_failure(
    queue: TaskQueue, error: Exception, device: str, bar: tqdm
) -> tuple[list[SampleTask], memory.Limits]:
    """Decide how to go on after the engine failed with the tasks in flight.

    Returns:
        The tasks to try again, before those that wait, and the limits from now on.

    Raises:
        Exception: the engine failed without a task in flight.
    """
    failed, limits = list(queue.in_flight.values()), queue.limits
    if not failed:
        raise error
    if not is_out_of_memory(error):
        return _one_run_at_a_time(failed, error), limits
    rows = sum(len(task.runs) for task in failed)
    if rows > 1:
        log.warning("out of memory with %d rows; trying half as much at a time", rows)
        return failed, replace(limits, free=queue.planned_bytes // 2)
    task = failed[0]
    if not task.isolated:  # rows before it may not have freed their memory yet
        return [replace(task, isolated=True)], limits
    log.warning("%s: out of memory with a single row; recorded", task.sample.id)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    _write(task.runs[0], task, unanswered(task.sample, "oom", reason, device))
    bar.update()
    return [], limits


def _one_run_at_a_time(failed: Sequence[SampleTask], error: Exception) -> list[SampleTask]:
    """Return the failed tasks split by run. If all are of one run, that run ends with the error instead."""
    runs = list({id(run): run for task in failed for run in task.runs}.values())
    if len(runs) == 1:
        runs[0].error = error
        return []
    log.warning("%s; trying the %d runs of the batch one by one", error, len(runs))
    return [replace(task, runs=[run], isolated=True) for run in runs for task in failed if run in task.runs]


def _record(task: SampleTask, variants: Sequence[Variant], generations: Sequence[Generation], device: str) -> None:
    """Write the records of a task, one per run, in the order of its runs."""
    for run, variant, generation in zip(task.runs, variants, generations, strict=True):
        if run.error is not None:
            continue
        if generation.error is not None:
            log.warning("%s: %s: %s; recorded as failed", run.job.folder.name, task.sample.id, generation.error)
            _write(run, task, unanswered(task.sample, "failed", generation.error, device))
            continue
        generation = replace(generation, text=answer_text(task.prompt, generation.text))
        try:
            line = answered(task.sample, generation, run.job.benchmark, device)
        except Exception as problem:  # the benchmark failed to score; other runs go on
            log.error("%s: cannot be scored", task.sample.id, exc_info=problem)
            run.error = problem
            continue
        run.error = broken_promise(variant, generation)
        if run.error is None:
            _write(run, task, line | {"fallback": None if variant is run.job.variant else "recent"})


def _write(run: OpenRun, task: SampleTask, line: Mapping[str, object]) -> None:
    run.writer.append(line)
    run.missing.discard(task.sample.id)


def is_out_of_memory(problem: BaseException) -> bool:
    """Return True if an exception says that memory ran out, on a GPU or on the host."""
    text = str(problem).lower()
    return (
        isinstance(problem, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "status_alloc_failed" in text  # of cuBLAS and cuDNN
    )
