"""Batching: the missing samples of a group of runs on their way through the engine and onto the disk.

A row is a sample under one run's method and budget. Samples share batches as far as memory goes. Those of a
question-agnostic benchmark often share their context: it is prefilled and compressed once, and all of its questions are
answered from that. Contexts are compared by token ids. Records are on disk as soon as all rows of a context have
stopped.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from tqdm.auto import tqdm

from kvbench import models
from kvbench.benchmarks.base import Sample
from kvbench.engine.caches import choose
from kvbench.engine.decode import stream
from kvbench.engine.variant import Generation, Request, Variant, context_key, span_tokens
from kvbench.methods.part_call import PartError
from kvbench.models.cache import ModelCache
from kvbench.prompts import Prompt, answer_text
from kvbench.run import memory
from kvbench.run.jobs import Job
from kvbench.run.open_run import OpenRun
from kvbench.run.preflight import free_bytes, memory_limits
from kvbench.run.record import answered, broken_promise, unanswered, unused_bytes
from kvbench.store import KeptTokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MissingRecord:
    """A sample that a run misses: one row of a batch."""

    sample: Sample
    prompt: Prompt
    run: OpenRun


@dataclass(frozen=True)
class Task:
    """Missing records that share a prefill: the contexts of their prompts are the same.

    Attributes:
        isolated: True if nothing may share its batch: the batch it was in before made the engine fail.
    """

    records: Sequence[MissingRecord]
    isolated: bool = False

    @property
    def runs(self) -> list[OpenRun]:
        """The runs that miss an answer."""
        return list({id(record.run): record.run for record in self.records}.values())

    def of_run(self, run: OpenRun) -> Task:
        """Return the task of one run, isolated."""
        return Task([record for record in self.records if record.run is run], isolated=True)

    def request(self, question: str) -> Request:
        """Return the request to the engine: one row per record, in order."""
        prompt = self.records[0].prompt
        span = span_tokens(prompt, question)
        variants = {id(run): run.job.variant_for(span, min(prompt.template_len, span)) for run in self.runs}
        rows = [(record.prompt, variants[id(record.run)]) for record in self.records]
        cfg = self.runs[0].job.cfg
        return Request(rows, self.records[0].sample.max_new_tokens, cfg["seed"], cfg["save"]["kept"])


def tasks_of(
    runs: Sequence[OpenRun], samples: Sequence[Sample], prompts: Mapping[str, Prompt], question: str
) -> list[Task]:
    """Return the tasks of runs, in the order of their first samples.

    The records of a run stand together, so that a task that does not fit into memory compresses few variants again.

    Args:
        prompts: sample id -> prompt.
    """
    contexts: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        key = context_key(prompts[sample.id], question), sample.max_new_tokens
        contexts.setdefault(key, []).append(sample)
    tasks = (
        Task([MissingRecord(s, prompts[s.id], run) for run in runs for s in group if s.id in run.missing])
        for group in contexts.values()
    )
    return [task for task in tasks if task.records]


def compute(
    runs: Sequence[OpenRun],
    samples: Sequence[Sample],
    prompts: Mapping[str, Prompt],
    model_cache: ModelCache,
) -> None:
    """Compute and record every sample that some run misses.

    There is one prefill for all samples with the same context and all runs that miss one of them.

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
    waiting = tasks_of(runs, samples, prompts, job.question)
    limits = memory_limits(job, [task.request(job.question) for task in waiting], model_cache)
    loaded = model_cache.model(job.model)
    if job.cfg["engine"]["cache"] == "ragged":
        choose(loaded.model, job.cfg["kernel"])  # only for its log line, which would tear the progress bar later
    limits = replace(limits, free=free_bytes(job))
    rows = sum(len(task.records) for task in waiting)
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

    waiting: deque[Task]
    limits: memory.Limits
    in_flight: dict[Request, Task] = field(default_factory=dict)
    planned_bytes: int = 0

    def draw(self, in_flight: Sequence[Request]) -> Request | None:
        """Return the next request that may join those in flight; None if none may, or none is left."""
        while self.waiting:
            task = self.waiting.popleft()
            records = [record for record in task.records if record.run.error is None]
            if not records:
                continue
            task = replace(task, records=records)
            request = self.limits.part(task.request(self.limits.question))
            isolated = any(each.isolated for each in [task, *self.in_flight.values()])
            if in_flight and (isolated or not self.limits(in_flight, request)):
                self.waiting.appendleft(task)
                return None
            count = len(request.rows)
            self.in_flight[request] = replace(task, records=records[:count])
            self.planned_bytes = self.limits.total([*in_flight, request])
            if records[count:]:
                self.waiting.appendleft(replace(task, records=records[count:]))
            return request
        return None


def _work_through(queue: TaskQueue, job: Job, loaded: models.Loaded, bar: tqdm) -> Exception | None:
    """Compute and record until the queue is empty or the engine fails. Return the engine's error, or None."""
    engine = job.cfg["engine"]
    answers = stream(
        loaded.model,
        loaded.engine_tokenizer,
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
                error = _reported(problem, queue)
                break
            task = queue.in_flight.pop(request)
            _record(task, [variant for _, variant in request.rows], generations, loaded)
            bar.set_postfix_str(task.records[0].sample.id, refresh=False)
            bar.update(len(task.records))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return error


def _reported(problem: Exception, queue: TaskQueue) -> Exception:
    """Log the traceback of a failure that is no message to a user. Return the failure, for the outcome of a run.

    The traceback of a part is logged once, when its run is tried by itself.
    """
    tasks = list(queue.in_flight.values())
    runs = {id(run): run for task in tasks for run in task.runs}
    if isinstance(problem, PartError) and len(runs) == 1:
        (run,) = runs.values()
        log.error("%s: its part failed", run.job.folder.name, exc_info=problem.__cause__)
        asked = queue.in_flight.get(problem.request) if isinstance(problem.request, Request) else None
        ids = [task.records[0].sample.id for task in ([asked] if asked else tasks)]
        where = f"sample {ids[0]}" if len(ids) == 1 else f"one of the samples {', '.join(ids[:3])}"
        return PartError(
            f"{problem} (method {run.job.variant.method.name}, {where}; its traceback is above); what is recorded "
            "stays, so mend the part and issue the same command again"
        )
    if not isinstance(problem, ValueError) and not is_out_of_memory(problem):
        log.error("the engine failed", exc_info=problem)
    problem.__cause__ = None
    return problem.with_traceback(None)  # its frames would keep the failed batch's tensors alive


def _after_failure(queue: TaskQueue, error: Exception, device: str, bar: tqdm) -> tuple[list[Task], memory.Limits]:
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
    rows = sum(len(task.records) for task in failed)
    if rows > 1:
        log.warning("out of memory with %d rows; trying half as much at a time", rows)
        return failed, replace(limits, free=queue.planned_bytes // 2)
    task, (record,) = failed[0], failed[0].records
    if not task.isolated:  # rows before it may not have freed their memory yet
        return [replace(task, isolated=True)], limits
    log.warning("%s: out of memory with a single row; recorded", record.sample.id)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    _write(record, unanswered(record.sample, "oom", reason, device))
    bar.update()
    return [], limits


def _one_run_at_a_time(failed: Sequence[Task], error: Exception) -> list[Task]:
    """Return the failed tasks split by run. If all are of one run, that run ends with the error instead."""
    runs = list({id(run): run for task in failed for run in task.runs}.values())
    if len(runs) == 1:
        runs[0].error = error
        return []
    log.warning("%s; trying the %d runs of the batch one by one", error, len(runs))
    return [task.of_run(run) for run in runs for task in failed if run in task.runs]


def _record(task: Task, variants: Sequence[Variant], generations: Sequence[Generation], loaded: models.Loaded) -> None:
    """Write the records of a task, in its order."""
    for record, variant, generation in zip(task.records, variants, generations, strict=True):
        run, sample = record.run, record.sample
        if run.error is not None:
            continue
        if generation.error is not None:
            log.warning("%s: %s: %s; recorded as failed", run.job.folder.name, sample.id, generation.error)
            _write(record, unanswered(sample, "failed", generation.error, loaded.device))
            continue
        generation = replace(generation, text=answer_text(record.prompt, generation.text))
        try:
            line = answered(sample, variant, generation, run.job.benchmark, loaded.device)
        except Exception as problem:  # the benchmark failed to score; other runs go on
            log.error("%s: cannot be scored", sample.id, exc_info=problem)
            run.error = problem
            continue
        run.error = broken_promise(variant, generation)
        if run.error is None:
            if generation.kept_mask is not None:  # first: a recorded sample is never computed again
                ids = record.prompt.ids[: generation.span]
                words = [str(loaded.tokenizer.decode([token])) for token in ids]
                run.writer.append_kept(KeptTokens(sample.id, words, generation.kept_mask.numpy()))
            unused = unused_bytes(generation)
            if unused is not None and not run.told_unused:
                log.warning("%s: %s: %s; said once per run", run.job.folder.name, sample.id, unused)
                run.told_unused = True
            _write(record, line | {"fallback": None if variant is run.job.variant else "recent"})


def _write(record: MissingRecord, line: Mapping[str, object]) -> None:
    record.run.writer.append(line)
    record.run.missing.discard(record.sample.id)


def is_out_of_memory(problem: BaseException) -> bool:
    """Return True if an exception says that memory ran out, on a GPU or on the host."""
    text = str(problem).lower()
    return (
        isinstance(problem, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
        or "status_alloc_failed" in text  # of cuBLAS and cuDNN
    )
