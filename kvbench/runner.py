"""The runner: jobs that share model and benchmark become one plan; every record is on disk before the next sample.

The model is loaded only if a sample is missing, and once for all plans that follow each other with the same model.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from kvbench import models, prompts, store
from kvbench.benchmarks.base import Sample
from kvbench.engine.decode import run as generate
from kvbench.engine.variant import Generation
from kvbench.jobs import Job, versions
from kvbench.prompts import Prompt
from kvbench.records import broken_promise, record
from kvbench.score import rescore

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


def run_jobs(jobs: Sequence[Job], kept: models.Kept | None = None) -> list[Outcome]:
    """Run jobs, those of one group as one plan; outcomes in the order of the jobs.

    Jobs that are the same run (a full cache under several budgets) are run once. A job that fails does not take the
    others with it, if its budget is impossible or its method breaks the promise: its outcome holds the error. Any
    other exception ends everything; what was recorded stays.
    """
    kept = kept or models.Kept()
    groups: dict[str, dict[Path, Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, {})[job.folder] = job
    outcomes: dict[Path, Outcome] = {}
    for distinct in groups.values():
        finished = {folder: outcome for folder, job in distinct.items() if (outcome := _finished(job)) is not None}
        todo = {folder: job for folder, job in sorted(distinct.items()) if folder not in finished}
        outcomes |= finished | (_run(todo, kept) if todo else {})
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
    where = f"{job.label['benchmark']} {job.folder.name}"
    log.info("%s: %d of %d samples recorded, nothing to compute", where, len(stored.samples), samples)
    found, now = stored.manifest["versions"], versions()
    changed = sorted(name for name in now if found.get(name) != now[name])
    if changed:
        log.warning(
            "%s: recorded with another version of %s; move the folder away to compute it anew",
            job.folder.name,
            ", ".join(changed),
        )
    rescore(stored, job.benchmark)
    return _outcome(job)


def _outcome(job: Job) -> Outcome:
    stored = store.load_run(job.folder)
    scores = [s["scores"][stored.manifest["headline"]] for s in stored.samples if s["status"] == "ok"]
    return Outcome(job, job.folder, sum(scores) / len(scores) if scores else None, len(stored.samples))


def _run(jobs: Mapping[Path, Job], kept: models.Kept) -> dict[Path, Outcome]:
    """Render the prompts, open the runs, load the model, work through the samples."""
    first = next(iter(jobs.values()))
    cfg, question = first.cfg, "agnostic" if prompts.span_of(first.benchmark) == "context" else "aware"
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    try:
        tokenizer = kept.tokenizer(cfg["model"])
        samples = first.benchmark.samples(tokenizer)
        render = prompts.renderer(cfg["model"], tokenizer, first.benchmark)
        wanted = _wanted(jobs.values(), samples[: cfg["limit"]])
        rendered = {sample.id: render(sample) for sample in wanted}
    except ValueError as error:  # a sample that does not fit: other benchmarks go on
        return {folder: Outcome(job, folder, error=error) for folder, job in jobs.items()}
    outcomes = {}
    for folder, job in jobs.items():
        spans = [_span(prompt, question) for prompt in rendered.values()]
        impossible = _impossible(job, spans, len(samples[: cfg["limit"]]))
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
            _generate(list(opened.values()), wanted, rendered, question, kept)
        for folder, one in opened.items():
            if one.error is None:
                complete = len(one.run.done_ids()) >= len(samples)
                one.run.set_status("done" if complete else "partial", samples=len(samples))
                outcomes[folder] = _outcome(one.job)
            else:
                one.run.set_status("failed", error=f"{type(one.error).__name__}: {one.error}")
                outcomes[folder] = Outcome(one.job, folder, error=one.error)
    return outcomes


def _wanted(jobs: Iterable[Job], samples: Sequence[Sample]) -> list[Sample]:
    """The samples that some job misses; prompts of tens of thousands of tokens are not rendered for nothing."""
    missing: set[str] = set()
    for job in jobs:
        recorded = store.load_run(job.folder).samples if (job.folder / "manifest.json").is_file() else []
        retry = job.cfg["retry_oom"]
        done = {record["id"] for record in recorded if not (retry and record["status"] == "oom")}
        missing |= {sample.id for sample in samples} - done
    return [sample for sample in samples if sample.id in missing]


def _open(job: Job, num_samples: int) -> store.Run:
    run = store.Run.open(
        job.cfg["paths"]["outputs"] + "/runs",
        label=job.label,
        identity=job.identity,
        config=job.cfg,
        headline=job.benchmark.headline,
        num_samples=num_samples,
        versions=versions(),
        device=models.device(job.cfg["model"]),
        part=None if job.benchmark.part is None else asdict(job.benchmark.part),
        scoring=job.benchmark.scoring(),
        retry_oom=job.cfg["retry_oom"],
    )
    rescore(store.load_run(run.path), job.benchmark)  # what is there and what comes shall be scored alike
    return run


def _generate(
    opened: Sequence[_Open], samples: Sequence[Sample], rendered: Mapping[str, Prompt], question: str, kept: models.Kept
) -> None:
    """Every sample that some run misses: one prefill for all runs that miss it."""
    cfg = opened[0].job.cfg
    loaded = kept.model(cfg["model"])
    total = sum(len(one.pending) for one in opened)
    with tqdm(total=total, disable=not cfg["progress"], unit="row", desc=opened[0].job.benchmark.name) as bar:
        for sample in samples:
            missing = [one for one in opened if one.error is None and sample.id in one.pending]
            if missing:
                bar.set_postfix_str(sample.id)
                _one_sample(missing, sample, rendered[sample.id], loaded, question)
                bar.update(len(missing))


def _span(prompt: Prompt, question: str) -> int:
    """Tokens of what is compressed."""
    return prompt.context_len if question == "agnostic" else len(prompt.ids)


def _impossible(job: Job, spans: Sequence[int], total: int) -> ValueError | None:
    """The error of a budget that leaves the method no room on any of `total` prompts, before anything is computed.

    On some only: those are answered from the most recent tokens, see `Job.variant_for`.
    """
    errors = []
    for span in spans:
        try:
            job.variant.method.tokens(job.variant.budget, span)
        except ValueError as error:
            errors.append(error)
    if errors and len(errors) == total:
        return errors[-1]
    try:
        made = [job.variant_for(span) for span in spans]
    except ValueError as error:
        return error
    if errors:
        count = sum(variant is not job.variant for variant in made)
        log.warning(
            "%s: on %d of %d prompts the budget is below what the method always keeps; there it keeps the most "
            "recent tokens alone",
            job.folder.name,
            count,
            len(spans),
        )
    return None


def _one_sample(missing: Sequence[_Open], sample: Sample, prompt: Prompt, loaded: models.Loaded, question: str) -> None:
    """Generate and record one sample for all runs that miss it. Out of memory: in halves, down to a single row."""
    error = None
    variants = [one.job.variant_for(_span(prompt, question)) for one in missing]
    generations: Sequence[Generation | None] = [None] * len(missing)
    try:
        generations = generate(
            loaded.model,
            loaded.tokenizer,
            prompt,
            variants,
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
    for one, variant, generation in zip(missing, variants, generations, strict=True):
        made = record(sample, generation, one.job.benchmark, error, loaded.device)
        if generation is not None:
            made["fallback"] = None if variant is one.job.variant else "recent"
            one.error = broken_promise(variant, generation)
        if one.error is None:
            one.run.append(made)
            one.pending.discard(sample.id)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host."""
    text = str(problem).lower()
    return (
        isinstance(problem, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
