"""Failures: what ends a run, what is recorded as a failed sample, and that neither touches other runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from kvbench import models, store
from kvbench.engine.variant import Generation, Request
from kvbench.methods.eviction import Eviction
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench.run import batching, preflight, runner
from kvbench.run.jobs import Job
from tests.helpers.runs import answers, let_engine_fail, records, status

Jobs = Callable[..., list[Job]]
SNAP, H2O = ["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]
CALM = "paths.outputs=${oc.env:KVBENCH_CALM}"


# ---- budgets and settings that are impossible ----


def test_an_impossible_budget_leaves_nothing_behind(jobs: Jobs) -> None:
    impossible, fine = runner.run_jobs(jobs(["method=snapkv", "budget=0.01"], ["method=snapkv", "budget=0.4"]))
    assert "method.window=32" in str(impossible.error)
    assert not impossible.folder.exists()
    assert fine.samples == 6


def test_a_store_that_encodes_nothing_is_refused_or_told(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    """Before weights load, and without a run folder, if that is so on every prompt; else one line says on how many."""
    idle, fine = runner.run_jobs(jobs(["method=ada_snapkv+kivi", "budget=64"], ["method=snapkv", "budget=64"]))
    text = str(idle.error)
    assert text.startswith("budget=64: ada_snapkv+kivi encodes nothing of ") and "(method.residual=128);" in text
    assert not idle.folder.exists() and fine.error is None
    lengths = [
        "benchmark.lengths=[150,1200]",
        "benchmark.depths=[50]",
        "method.window=8",
        "method=snapkv+kivi",
        "budget=0.1",
    ]
    with caplog.at_level("WARNING"):
        (outcome,) = runner.run_jobs(jobs(lengths))
    assert outcome.error is None and "on 1 of 2 prompts snapkv+kivi encodes nothing of" in caplog.text


def test_a_share_below_the_window_on_some_prompts_keeps_the_most_recent_tokens(
    jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["benchmark.lengths=[150,1200]", "benchmark.depths=[50]", "method=snapkv", "budget=0.05"]
    with caplog.at_level("WARNING"):
        (outcome,) = runner.run_jobs(jobs(overrides))
    short, long = records(outcome)
    assert outcome.error is None and "on 1 of 2 prompts the budget is below" in caplog.text
    assert (short["fallback"], long["fallback"]) == ("recent", None)
    assert short["kept_mean"] == short["budget_tokens"] == int(0.05 * short["span"]) < 32
    with pytest.raises(ValueError, match="always keeps"):
        outcome.job.variant.method.tokens(0.05, short["span"])


def test_a_share_that_is_impossible_on_one_shard_only(jobs: Jobs) -> None:
    grid = ["benchmark.lengths=[150,1200]", "benchmark.depths=[50]", "method=snapkv", "budget=0.05"]
    (short,) = runner.run_jobs(jobs([*grid, "shard=1/2"]))
    (long,) = runner.run_jobs(jobs([*grid, "shard=2/2"]))
    assert short.error is None and long.error is None
    assert [r["fallback"] for r in store.load_run(long.folder).samples] == ["recent", None]  # type: ignore[typeddict-item]
    assert store.load_run(long.folder).status["status"] == "done"


def test_fused_steps_that_a_model_cannot_have_are_told_before_weights_load(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check builds the model without weights; a model of another class is refused as it would be later."""
    config = transformers.Phi3Config(hidden_size=32, num_attention_heads=2, intermediate_size=32, pad_token_id=None)
    monkeypatch.setattr(models, "load", lambda spec: pytest.fail("weights were loaded"))
    monkeypatch.setattr(preflight, "checked_config", lambda spec: config)
    (job,) = jobs(["engine.fused=true"])
    with pytest.raises(ValueError, match="^engine.fused=true: Phi3ForCausalLM is none of llama, mistral, qwen2, qwen3"):
        runner.run_jobs([job])
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=kivi", "method.group_size=64", "method.residual=64"], "method.group_size=64: must divide the head"),
        (["method=kivi", "engine.graph=true"], "engine.graph=true: CUDA graphs need a GPU"),
    ],
)
def test_a_setting_that_cannot_run_is_one_line_before_weights_load(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr(models, "load", lambda spec: pytest.fail("weights were loaded"))
    (job,) = jobs(overrides)
    try:
        (outcome,) = runner.run_jobs([job])
        error: Exception | None = outcome.error
    except ValueError as problem:
        error = problem
    assert isinstance(error, ValueError) and str(error).startswith(message) and "\n" not in str(error)
    assert not job.folder.exists()


def test_a_damaged_folder_ends_no_other_run(jobs: Jobs) -> None:
    first = runner.run_jobs(jobs([*SNAP, "limit=1"], [*H2O, "limit=1"]))
    file = first[0].folder / "samples.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    snap, h2o = runner.run_jobs(jobs(SNAP, H2O))
    assert "line 1: not valid JSON" in str(snap.error)
    assert h2o.error is None and h2o.samples == 6


# ---- out of memory ----


def test_out_of_memory_without_a_message(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own MemoryError has no text."""
    let_engine_fail(monkeypatch, lambda requests: MemoryError())
    (outcome,) = runner.run_jobs(jobs([*SNAP, "limit=1"]))
    assert [(r["status"], r["error"]) for r in records(outcome)] == [("oom", "MemoryError")]


def test_a_row_is_out_of_memory_only_if_it_is_so_by_itself(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def fails_after_company(requests: list[Request]) -> BaseException | None:
        sizes.append(len(requests))
        before = sizes[-2] if len(sizes) > 1 else 0
        return MemoryError() if sizes[-1] > 1 or before > 1 else None  # the batch before has not freed its memory yet

    let_engine_fail(monkeypatch, fails_after_company)
    (outcome,) = runner.run_jobs(jobs(H2O))
    assert {r["status"] for r in records(outcome)} == {"ok"}
    assert max(sizes) > 1


def test_out_of_memory_is_recorded_per_sample(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that does not fit by itself is recorded so; those in flight with it are answered."""
    (calm,) = runner.run_jobs(jobs([*SNAP, CALM]))
    longest = max(r["prompt_tokens"] for r in records(calm))
    gone = {r["id"] for r in records(calm) if r["prompt_tokens"] == longest}

    def fails(requests: list[Request]) -> BaseException | None:
        too_long = any(len(prompt.ids) == longest for request in requests for prompt in request.prompts)
        return torch.OutOfMemoryError("CUDA out of memory") if too_long else None

    let_engine_fail(monkeypatch, fails)
    (outcome,) = runner.run_jobs(jobs(SNAP))
    assert {r["id"] for r in records(outcome) if r["status"] == "oom"} == gone
    answered = [r for r in records(outcome) if r["status"] == "ok"]
    assert [a for a in answers(calm) if a[0] not in gone] == answers(answered)
    assert all("out of memory" in r["error"] for r in records(outcome) if r["status"] == "oom")
    monkeypatch.undo()
    (again,) = runner.run_jobs(jobs(SNAP))
    assert len(records(again)) == 6, "an out-of-memory row is a result"
    (again,) = runner.run_jobs(jobs([*SNAP, "retry_failed=true"]))
    assert len(records(again)) == 6, "out of memory is not failed"
    (retried,) = runner.run_jobs(jobs([*SNAP, "retry_oom=true"]))
    assert [r["status"] for r in records(retried)].count("ok") == 6


def test_a_batch_out_of_memory_is_tried_in_halves(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a row that does not fit by itself is out of memory: the record does not depend on the sweep it ran in."""
    sizes: list[int] = []

    def fails(requests: list[Request]) -> BaseException | None:
        sizes.append(sum(len(request.variants) for request in requests))
        full = any(variant.method.name == "fullkv" for request in requests for variant in request.variants)
        return torch.OutOfMemoryError("CUDA out of memory") if sizes[-1] > 2 or full else None

    let_engine_fail(monkeypatch, fails)
    names = ["fullkv", "snapkv", "h2o", "ada_snapkv", "streaming_llm"]
    outcomes = runner.run_jobs(jobs(*[[f"method={name}", "budget=100"] for name in names]))
    for name, outcome in zip(names, outcomes, strict=True):
        assert {r["status"] for r in records(outcome)} == {"oom" if name == "fullkv" else "ok"}
    assert max(sizes) > 2 and sum(size > 2 for size in sizes) < 12, "what did not fit once is not tried for ever"


# ---- samples that fail ----


def let_rows_fail(monkeypatch: pytest.MonkeyPatch, method: str, samples: int) -> None:
    """Let the first `samples` answers of a method end with an error, as logits that are not finite do."""
    real, failed = batching.stream, 0

    def stream(*args: Any, **settings: Any) -> Any:
        nonlocal failed
        for request, generations in real(*args, **settings):
            changed: list[Generation] = []
            for variant, generation in zip(request.variants, generations, strict=True):
                if variant.method.name == method and failed < samples:
                    failed += 1
                    generation = replace(
                        generation, error="a logit is not finite", finish_reason="failed", kept=[], token_ids=[]
                    )
                changed.append(generation)
            yield request, changed

    monkeypatch.setattr(batching, "stream", stream)


def test_a_failed_sample_is_recorded_counted_and_tried_again_only_when_asked(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = runner.run_jobs(jobs([*SNAP, CALM], [*H2O, CALM]))
    let_rows_fail(monkeypatch, "snapkv", 2)
    snap, h2o = runner.run_jobs(jobs(SNAP, H2O))
    assert snap.error is None and snap.samples == 6 and status(snap)["status"] == "done"
    failed = [r for r in records(snap) if r["status"] == "failed"]
    assert [r["error"] for r in failed] == ["a logit is not finite"] * 2
    assert all("prediction" not in r and "scores" not in r and r["answers"] for r in failed)
    assert answers(r for r in records(snap) if r["status"] == "ok") == [
        a for a in answers(calm[0]) if a[0] not in {r["id"] for r in failed}
    ]
    assert answers(h2o) == answers(calm[1])
    monkeypatch.undo()
    for again in ([], ["retry_oom=true"]):
        (job,) = jobs([*SNAP, *again])
        assert runner.finished(job) is not None, "a failed sample is a result"
    (retried,) = runner.run_jobs(jobs([*SNAP, "retry_failed=true"]))
    stored = store.load_run(retried.folder)
    assert answers(stored.samples) == answers(calm[0])  # type: ignore[arg-type]


# ---- runs that fail ----


def test_an_error_ends_the_run_and_keeps_what_is_recorded(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def fails(requests: list[Request]) -> BaseException | None:
        calls.append(1)
        return RuntimeError("shape mismatch") if len(calls) >= 3 else None

    let_engine_fail(monkeypatch, fails)
    (outcome,) = runner.run_jobs(jobs([*SNAP, "engine.max_prompts=1"]))
    assert "shape mismatch" in str(outcome.error)
    assert status(outcome)["status"] == "failed" and "shape mismatch" in status(outcome)["error"]
    assert len(records(outcome)) == 2
    assert "Traceback" in caplog.text, "whoever develops a method wants to see where"
    monkeypatch.undo()
    (again,) = runner.run_jobs(jobs(SNAP))
    assert len({r["id"] for r in records(again)}) == len(records(again)) == 6


@pytest.mark.parametrize("error", [RuntimeError("index out of range"), ValueError("method.window=9: too long")])
def test_a_variant_that_fails_ends_no_other(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Even when it fails late, on one sample, in a batch with all others."""
    grid = [SNAP, H2O, ["method=kivi"], ["method=fullkv"]]
    calm = runner.run_jobs(jobs(*[[*overrides, CALM] for overrides in grid]))
    real = Eviction.mask
    longest = max(r["span"] for r in records(calm[0]))

    def broken(self: Eviction, ctx: Any, tokens: int, total: int) -> torch.Tensor:
        if isinstance(self.score, ColumnSums) and ctx.num_tokens == longest and ctx.layer == 2:
            raise error
        return real(self, ctx, tokens, total)

    monkeypatch.setattr(Eviction, "mask", broken)
    outcomes = runner.run_jobs(jobs(*grid))
    assert [o.error for o in outcomes] == [None, error, None, None]
    assert [status(o)["status"] for o in outcomes] == ["done", "failed", "done", "done"]
    for before, after in zip(calm, outcomes, strict=True):
        if after.error is None:
            assert answers(after) == answers(before)
        else:
            assert set(answers(after)) < set(answers(before))
    monkeypatch.undo()
    again = runner.run_jobs(jobs(*grid))
    assert [answers(o) for o in again] == [answers(o) for o in calm]


def test_what_is_tried_by_itself_gets_no_company(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure, tasks that wait do not join one that is tried alone: their failure would count as its own."""
    real, company = batching.TaskQueue.draw, []

    def draw(self: batching.TaskQueue, in_flight: Any) -> Request | None:
        request = real(self, in_flight)
        if any(task.isolated for task in self.in_flight.values()):
            company.append(len(self.in_flight))
        return request

    def fails(requests: list[Request]) -> BaseException | None:
        broken = any(variant.method.name == "h2o" for request in requests for variant in request.variants)
        return RuntimeError("this method fails") if broken else None

    monkeypatch.setattr(batching.TaskQueue, "draw", draw)
    let_engine_fail(monkeypatch, fails)
    two = "engine.max_prompts=2"
    outcomes = runner.run_jobs(jobs([*SNAP, two], [*H2O, two]))
    assert [outcome.error is None for outcome in outcomes] == [True, False]
    assert len(company) > 2 and set(company) == {1}


def test_a_broken_budget_ends_that_run(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that silently keeps everything is caught on its first sample; the other run goes on."""
    prepared = jobs(SNAP, H2O)
    real = Eviction.mask

    def broken(self: Eviction, ctx: Any, tokens: int, total: int) -> torch.Tensor:
        keep_UT = real(self, ctx, tokens, total)
        return torch.ones_like(keep_UT) if isinstance(self.score, WindowAttention) else keep_UT

    monkeypatch.setattr(Eviction, "mask", broken)
    snap, h2o = runner.run_jobs(prepared)
    assert "instead of 800" in str(snap.error)
    assert status(snap)["status"] == "failed" and records(snap) == []
    assert h2o.error is None and h2o.samples == 6
