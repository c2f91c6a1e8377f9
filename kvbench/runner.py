"""The runner: jobs that share model and benchmark become one plan; every record is on disk before the next sample.

The model is loaded only if a sample is missing.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from kvbench import models, prompts, store
from kvbench.benchmarks.base import Benchmark, Sample
from kvbench.engine.decode import run as generate
from kvbench.engine.variant import Generation, Variant
from kvbench.jobs import Job, versions
from kvbench.prompts import Prompt

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a job ended: its folder and mean headline score, or the error that ended it."""

    job: Job
    folder: Path
    score: float | None = None
    samples: int = 0
    error: Exception | None = None


@dataclass
class _Open:
    """A job whose run folder is open for writing."""

    job: Job
    run: store.Run
    pending: set[str] = field(default_factory=set)
    error: Exception | None = None


def run_group(jobs: Sequence[Job]) -> list[Outcome]:
    """Run jobs of one group as one plan; outcomes in the order of the jobs.

    Jobs that are the same run (a full cache under several budgets) are run once. A job that fails does not take the
    others with it, if its budget is impossible or its method breaks the promise: its outcome holds the error. Any
    other exception ends the group; what was recorded stays.
    """
    distinct = {job.folder: job for job in jobs}
    outcomes: dict[Path, Outcome] = {}
    for folder, job in distinct.items():
        finished = _finished(job)
        if finished is not None:
            outcomes[folder] = finished
    todo = {folder: job for folder, job in sorted(distinct.items()) if folder not in outcomes}
    if todo:
        outcomes.update(_run(todo))
    return [replace(outcomes[job.folder], job=job) for job in jobs]


def _finished(job: Job) -> Outcome | None:
    """The outcome of a job whose samples are all recorded, found without a tokenizer; None if one is missing."""
    if not (job.folder / "manifest.json").is_file():
        return None
    stored = store.load_run(job.folder)
    samples, limit = stored.manifest["num_samples"], job.cfg["limit"]
    wanted = min(samples, limit or samples)
    retry = job.cfg["retry_oom"] and any(s["status"] == "oom" for s in stored.samples)
    settled = stored.status.get("status") == "done" or wanted < samples
    if len(stored.samples) < wanted or retry or not settled:
        return None
    log.info("%s: %d of %d samples recorded, nothing to compute", job.folder.name, len(stored.samples), samples)
    found, now = stored.manifest["versions"], versions()
    changed = sorted(name for name in now if found.get(name) != now[name])
    if changed:
        log.warning(
            "%s: recorded with another version of %s; move the folder away to compute it anew",
            job.folder.name,
            ", ".join(changed),
        )
    return _outcome(job)


def _outcome(job: Job) -> Outcome:
    stored = store.load_run(job.folder)
    scores = [s["scores"][stored.manifest["headline"]] for s in stored.samples if s["status"] == "ok"]
    return Outcome(job, job.folder, sum(scores) / len(scores) if scores else None, len(stored.samples))


def _run(jobs: Mapping[Path, Job]) -> dict[Path, Outcome]:
    """Render the prompts, open the runs, load the model, work through the samples."""
    first = next(iter(jobs.values()))
    cfg, question = first.cfg, str(first.benchmark.protocol()["question"])
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    tokenizer = models.load_tokenizer(cfg["model"])
    samples = first.benchmark.samples(tokenizer)
    rendered = _render(samples[: cfg["limit"]], tokenizer, cfg, question)
    outcomes = {}
    for folder, job in jobs.items():
        impossible = _impossible(job.variant, rendered.values(), question)
        if impossible is not None:
            outcomes[folder] = Outcome(job, folder, error=impossible)
    with ExitStack() as stack:
        opened = {
            folder: _Open(job, stack.enter_context(_open(job, len(samples))))
            for folder, job in jobs.items()
            if folder not in outcomes
        }
        for one in opened.values():
            one.pending = set(rendered) - one.run.done_ids()
        if any(one.pending for one in opened.values()):
            _generate(list(opened.values()), samples[: cfg["limit"]], rendered, question)
        for folder, one in opened.items():
            if one.error is None:
                complete = len(one.run.done_ids()) >= len(samples)
                one.run.set_status("done" if complete else "partial", samples=len(samples))
                outcomes[folder] = _outcome(one.job)
            else:
                one.run.set_status("failed", error=f"{type(one.error).__name__}: {one.error}")
                outcomes[folder] = Outcome(one.job, folder, error=one.error)
    return outcomes


def _render(samples: Sequence[Sample], tokenizer: Any, cfg: Mapping[str, Any], question: str) -> dict[str, Prompt]:
    """Prompts by sample id, without weights."""
    eos_ids, limit = models.eos_ids(cfg["model"], tokenizer), models.max_length(cfg["model"])
    return {
        sample.id: prompts.render(
            tokenizer,
            sample,
            question=question,
            chat_template=cfg["model"]["chat_template"],
            chat_kwargs=cfg["model"]["chat_kwargs"],
            eos_ids=eos_ids,
            max_length=limit,
        )
        for sample in samples
    }


def _open(job: Job, num_samples: int) -> store.Run:
    return store.Run.open(
        job.cfg["paths"]["outputs"] + "/runs",
        label=job.label,
        identity=job.identity,
        config=job.cfg,
        headline=job.benchmark.headline,
        num_samples=num_samples,
        versions=versions(),
        device=models.device(job.cfg["model"]),
        retry_oom=job.cfg["retry_oom"],
    )


def _generate(
    opened: Sequence[_Open], samples: Sequence[Sample], rendered: Mapping[str, Prompt], question: str
) -> None:
    """Every sample that some run misses: one prefill for all runs that miss it."""
    cfg = opened[0].job.cfg
    loaded = models.load(cfg["model"])
    total = sum(len(one.pending) for one in opened)
    with tqdm(total=total, disable=not cfg["progress"], unit="row", desc=opened[0].job.benchmark.name) as bar:
        for sample in samples:
            missing = [one for one in opened if one.error is None and sample.id in one.pending]
            if missing:
                bar.set_postfix_str(sample.id)
                _one_sample(missing, sample, rendered[sample.id], loaded, question)
                bar.update(len(missing))


def _impossible(variant: Variant, rendered: Iterable[Prompt], question: str) -> ValueError | None:
    """The error of a budget that leaves no room on some prompt, found before anything is computed."""
    try:
        for prompt in rendered:
            span = prompt.context_len if question == "agnostic" else len(prompt.ids)
            variant.method.tokens(variant.budget, span)
    except ValueError as error:
        return error
    return None


def _one_sample(missing: Sequence[_Open], sample: Sample, prompt: Prompt, loaded: models.Loaded, question: str) -> None:
    """Generate and record one sample for all runs that miss it. Out of memory: in halves, down to a single row."""
    error = None
    generations: Sequence[Generation | None] = [None] * len(missing)
    try:
        generations = generate(
            loaded.model,
            loaded.tokenizer,
            prompt,
            [one.job.variant for one in missing],
            max_new_tokens=sample.max_new_tokens,
            cache=missing[0].job.cfg["engine"]["cache"],
            question=question,
        )
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        error = str(problem).splitlines()[0]
    if error is not None:
        # outside the except block, where the traceback would keep the failed attempt's tensors alive
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(missing) > 1:
            log.warning("%s: out of memory with %d rows; trying half as many", sample.id, len(missing))
            for half in (missing[: len(missing) // 2], missing[len(missing) // 2 :]):
                _one_sample(half, sample, prompt, loaded, question)
            return
        log.warning("%s: out of memory with a single row; recorded", sample.id)
    for one, generation in zip(missing, generations, strict=True):
        record = _record(sample, generation, one.job.benchmark, error, loaded.device)
        if generation is not None:
            one.error = broken_promise(one.job.variant, generation)
        if one.error is None:
            one.run.append(record)
            one.pending.discard(sample.id)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    text = str(problem).lower()
    return (
        isinstance(problem, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def broken_promise(variant: Variant, generation: Generation) -> RuntimeError | None:
    """The error of a generation whose measured budget is not what was asked for; None if it is."""
    heads = sum(map(len, generation.kept))
    kept, span = generation.kept_total, generation.span
    tokens = generation.budget_tokens
    if tokens is None or tokens >= span:
        wanted = heads * span
    else:
        wanted = heads * tokens
        if not variant.method.exact and kept < heads * span:
            return None  # a reference's rounding: it drifts, and the record shows by how much
    if kept == wanted:
        return None
    return RuntimeError(f"{variant} kept {kept} tokens of {heads * span} over all layers and heads instead of {wanted}")


def _record(
    sample: Sample, generation: Generation | None, benchmark: Benchmark, error: str | None, device: str
) -> dict[str, Any]:
    common = {
        "id": sample.id,
        "status": "ok" if generation is not None else "oom",
        "error": error,
        "answers": list(sample.answers),
        "meta": dict(sample.meta),
        "device": device,
        "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    if generation is None:
        return common
    return common | {
        "prediction": generation.text,
        "token_ids": generation.token_ids,
        "scores": benchmark.score(sample.answers, generation.text, sample.meta),
        "prompt_tokens": generation.prompt_tokens,
        "span": generation.span,
        "new_tokens": len(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "budget_tokens": generation.budget_tokens,
        "kept": generation.kept,
        "kept_mean": generation.kept_mean,
        "kept_max_decode": generation.kept_max,
        "kv_bytes": generation.kv_bytes,
        "slack_bytes": generation.slack_bytes,
        "kv_bytes_full": generation.kv_bytes_full,
        "timings": dict(vars(generation.timings)),
        "rows": generation.rows,
    }
