"""Samples that share a context: one prefill for all of them, with the records of separate runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvbench.benchmarks.base import Sample
from kvbench.benchmarks.needle import Needle
from kvbench.engine.feed import FeedPass
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.variant import Request
from kvbench.run import memory, runner
from kvbench.run.jobs import Job
from tests.helpers.methods import shipped, test_overrides
from tests.helpers.runs import answers, count_rows, let_engine_fail, records

Jobs = Callable[..., list[Job]]
AGNOSTIC = ["benchmark.question=agnostic"]
SNAP, H2O = [*AGNOSTIC, "method=snapkv", "budget=100"], [*AGNOSTIC, "method=h2o", "budget=0.4"]
CALM = "paths.outputs=${oc.env:KVBENCH_CALM}"


@pytest.fixture(autouse=True)
def two_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the six samples ask about two contexts, alternately."""
    real = Needle.samples

    def samples(self: Needle, tokenizer: Any) -> list[Sample]:
        own = real(self, tokenizer)
        return [replace(sample, context=own[index % 2].context) for index, sample in enumerate(own)]

    monkeypatch.setattr(Needle, "samples", samples)


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of rows of every prefill of the engine's loop."""
    return count_rows(monkeypatch, PrefillPass)


@pytest.fixture
def feeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of rows of every prompt that is fed in chunks."""
    return count_rows(monkeypatch, FeedPass)


def alone(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, *overrides: list[str]) -> list[list[tuple[Any, ...]]]:
    """Return the answers of runs, in another folder, in which every row has a prefill of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(memory.Limits, "part", lambda self, request: request.part(1))
        outcomes = runner.run_jobs(jobs(*([*each, CALM] for each in overrides)))
    return [answers(outcome) for outcome in outcomes]


def test_a_context_is_prefilled_once(jobs: Jobs, prefills: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    together = [answers(o) for o in runner.run_jobs(jobs(SNAP, H2O))]
    assert prefills == [6, 6], "three questions under two variants on each of two contexts"
    assert [len(lines) for lines in together] == [6, 6]
    assert together == alone(jobs, monkeypatch, SNAP, H2O)


FED = [name for name, method in shipped().items() if method.feed is not None]


@pytest.mark.parametrize("names", [["snapkv", *FED], pytest.param(list(shipped()), marks=pytest.mark.slow)])
def test_every_method_takes_a_context_in_once(
    jobs: Jobs, prefills: list[int], feeds: list[int], monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """A context is prefilled once for all methods, and fed in once for those that feed it."""
    runs = []
    for name in names:
        method = shipped()[name]
        budget = [] if method.promises is None else ["budget=100"]
        runs.append([*AGNOSTIC, f"method={name}", *test_overrides(name), *budget, "engine.max_rows=100"])
    together = [answers(outcome) for outcome in runner.run_jobs(jobs(*runs))]
    assert prefills == [3 * (len(runs) - len(FED))] * 2, "three questions under every variant, on each of two contexts"
    assert feeds == [3 * len(FED)] * 2
    assert together == alone(jobs, monkeypatch, *runs)


def test_only_missing_answers_are_computed(jobs: Jobs, prefills: list[int]) -> None:
    """One run misses a question on a context, and another run misses two."""
    outcomes = runner.run_jobs(jobs(SNAP, H2O))
    whole = [answers(o) for o in outcomes]
    of_first = [r["id"] for r in records(outcomes[0])]
    gone = [{of_first[0]}, set(of_first[:2])]  # the first two records of a batch ask about the same context
    for outcome, ids in zip(outcomes, gone, strict=True):
        path = outcome.folder / "samples.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(x for x in lines if not any(f'"{i}"'.encode() in x for i in ids)))
        (outcome.folder / "status.json").write_text('{"status": "running"}')
    prefills.clear()
    assert [answers(o) for o in runner.run_jobs(jobs(SNAP, H2O))] == whole
    assert prefills == [3]


def test_rows_of_all_questions_count_against_the_limits(
    jobs: Jobs, prefills: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = alone(jobs, monkeypatch, SNAP, H2O)
    prefills.clear()
    four = "engine.max_rows=4"
    assert [answers(o) for o in runner.run_jobs(jobs([*SNAP, four], [*H2O, four]))] == whole
    assert sum(prefills) == 12 and max(prefills) <= 4


def test_out_of_memory_halves_the_questions(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch shrinks to single rows. No answer is lost or doubled."""
    whole = alone(jobs, monkeypatch, SNAP)

    def fails(requests: list[Request]) -> BaseException | None:
        rows = sum(len(request.rows) for request in requests)
        return MemoryError("out of memory") if rows > 1 else None

    let_engine_fail(monkeypatch, fails)
    assert [answers(o) for o in runner.run_jobs(jobs(SNAP))] == whole


def test_a_run_that_fails_leaves_the_other_questions_alone(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = alone(jobs, monkeypatch, SNAP)

    def fails(requests: list[Request]) -> BaseException | None:
        broken = any(variant.method.name == "h2o" for request in requests for variant in request.variants)
        return RuntimeError("this method fails") if broken else None

    let_engine_fail(monkeypatch, fails)
    snap, h2o = runner.run_jobs(jobs(SNAP, H2O))
    assert answers(snap) == whole[0] and snap.error is None
    assert "this method fails" in str(h2o.error)
