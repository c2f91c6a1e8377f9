"""The runner: what is recorded, what is never computed twice, what ends a run and what does not."""

from __future__ import annotations

import json

import pytest
import torch

from kvbench import store
from kvbench.methods.method import Method
from kvbench.run import batching as plan
from kvbench.run import runner
from kvbench.run.jobs import Job, prepare

GRID = ["model=tiny", "benchmark.lengths=[280,320]", "benchmark.depths=[0,50,100]", "benchmark.max_new_tokens=6"]


@pytest.fixture
def jobs(tmp_path, monkeypatch, compose):
    """Prepared jobs from lists of overrides, stored below tmp_path."""
    monkeypatch.setenv("KVBENCH_CALM", str(tmp_path / "calm"))

    def make(*all_overrides: list[str]) -> list[Job]:
        shared = [*GRID, f"paths.outputs={tmp_path}", "progress=false"]
        return [job for overrides in all_overrides for job in prepare(compose(*shared, *overrides))]

    return make


def rows(outcome: runner.Outcome) -> list[dict]:
    return [json.loads(line) for line in (outcome.folder / "samples.jsonl").read_text().splitlines()]


def status(outcome: runner.Outcome) -> dict:
    return json.loads((outcome.folder / "status.json").read_text())


def work(outcome: runner.Outcome) -> list[tuple]:
    return work_of(rows(outcome))


def work_of(records) -> list[tuple]:
    return sorted((r["id"], tuple(r["token_ids"]), str(r["kept"]), str(r["scores"])) for r in records)


def test_records_say_what_was_kept(jobs):
    (outcome,) = runner.run_jobs(jobs(["method=ada_snapkv", "budget=100"]))
    assert status(outcome)["status"] == "done"
    assert (outcome.samples, len(rows(outcome))) == (6, 6)
    for row in rows(outcome):
        assert row["status"] == "ok"
        assert row["budget_tokens"] == 100 and row["kept_mean"] == 100
        assert sum(map(sum, row["kept"])) == 100 * 4 * 2
        assert row["kv_bytes"] == 100 * 4 * 2 * 2 * 32 * 4, "tokens x layers x heads x (K, V) x D x float32"
        assert row["kv_bytes_full"] == row["prompt_tokens"] * 4 * 2 * 2 * 32 * 4
        assert row["timings"]["ttft_s"] >= row["timings"]["prefill_s"] > 0


def test_nothing_is_computed_twice(jobs, monkeypatch):
    made = [["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]]
    first = runner.run_jobs(jobs(*made))

    def forbidden(*args, **kwargs):
        raise AssertionError("a finished run must load nothing")

    for name in ("load", "load_tokenizer", "shape"):
        monkeypatch.setattr(runner.models, name, forbidden)
    second = runner.run_jobs(jobs(*made))
    assert [o.score for o in first] == [o.score for o in second]


def test_a_full_cache_is_one_run_under_any_budget(jobs):
    outcomes = runner.run_jobs(jobs(["method=fullkv", "budget=100"], ["method=fullkv", "budget=0.5"]))
    assert outcomes[0].folder == outcomes[1].folder
    assert outcomes[0].folder.name.startswith("fullkv-bfull-")


def test_jobs_group_by_everything_but_method_and_budget(jobs):
    a, b, c = jobs(["method=snapkv", "budget=100"], ["method=h2o", "budget=0.5"], ["seed=1"])
    assert a.group == b.group != c.group
    assert len({a.folder, b.folder, c.folder}) == 3


def test_resume_takes_up_where_it_stopped(jobs):
    """Torn line, missing lines, a limit: only what is missing is computed, once."""
    overrides = [["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]]
    whole = [work(o) for o in runner.run_jobs(jobs(*overrides))]
    outcomes = runner.run_jobs(jobs(*overrides))
    lines = (outcomes[0].folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (outcomes[0].folder / "samples.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    (outcomes[0].folder / "status.json").write_text('{"status": "running"}')
    untouched = (outcomes[1].folder / "samples.jsonl").stat().st_mtime_ns
    again = runner.run_jobs(jobs(*overrides))
    assert [work(o) for o in again] == whole
    assert (again[1].folder / "samples.jsonl").stat().st_mtime_ns == untouched


def test_limit_is_a_beginning_of_the_same_run(jobs):
    (some,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "limit=2"]))
    for limit, settled in ((1, True), (2, True), (3, False)):
        (job,) = jobs(["method=snapkv", "budget=100", f"limit={limit}"])
        assert (runner.finished(job) is not None) == settled, "a shorter beginning needs no tokenizer"
    assert some.samples == 2
    assert status(some)["status"] == "partial" and status(some)["recorded"] == 2
    (all_,) = runner.run_jobs(jobs(["method=snapkv", "budget=100"]))
    assert all_.folder == some.folder and all_.samples == 6
    assert len(rows(all_)) == 6


def failing(monkeypatch, fails):
    """Let a batch of the engine fail: `fails` gets the requests in flight and returns an exception or None."""
    real = plan.stream

    def stream(model, tokenizer, draw, **kwargs):
        flying = []

        def watched(in_flight):
            request = draw(in_flight)
            if request is not None:
                flying.append(request)
                error = fails(flying)
                if error is not None:
                    raise error
            return request

        for request, generations in real(model, tokenizer, watched, **kwargs):
            flying.remove(request)
            yield request, generations

    monkeypatch.setattr(plan, "stream", stream)


def drawn_rows(requests) -> int:
    return sum(len(r.variants) for r in requests)


def test_a_limit_is_about_the_first_samples_whatever_else_is_there(jobs):
    runner.run_jobs(jobs(["method=snapkv", "budget=100", "shard=2/2"]))
    (some,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "limit=3"]))
    (whole,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "paths.outputs=${oc.env:KVBENCH_CALM}"]))
    order = [r["id"] for r in rows(whole)]
    assert {r["id"] for r in store.load_run(some.folder).samples} == {*order[1::2], *order[:3]}


def test_a_share_that_is_impossible_on_one_shard_only(jobs):
    grid = ["benchmark.lengths=[150,1200]", "benchmark.depths=[50]", "method=snapkv", "budget=0.05"]
    (short,) = runner.run_jobs(jobs([*grid, "shard=1/2"]))
    (long,) = runner.run_jobs(jobs([*grid, "shard=2/2"]))
    assert short.error is None and long.error is None
    assert [r["fallback"] for r in store.load_run(long.folder).samples] == ["recent", None]
    assert store.load_run(long.folder).status["status"] == "done"


def test_a_damaged_folder_takes_no_other_run_with_it(jobs):
    made = [["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]]
    first = runner.run_jobs(jobs(*[[*o, "limit=1"] for o in made]))
    file = first[0].folder / "samples.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    snap, h2o = runner.run_jobs(jobs(*made))
    assert "line 1: not valid JSON" in str(snap.error)
    assert h2o.error is None and h2o.samples == 6


def test_out_of_memory_without_a_word(jobs, monkeypatch):
    """Python's own MemoryError has no text; and a row is out of memory only when it is so by itself."""
    failing(monkeypatch, lambda requests: MemoryError())
    (outcome,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "limit=1"]))
    assert [(r["status"], r["error"]) for r in rows(outcome)] == [("oom", "MemoryError")]
    monkeypatch.undo()
    shared = []

    def in_company(requests):
        shared.append(len(requests))
        return MemoryError() if max(shared[-2:]) > 1 else None  # also the next one after it: memory left behind

    failing(monkeypatch, in_company)
    (outcome,) = runner.run_jobs(jobs(["method=h2o", "budget=100"]))
    assert {r["status"] for r in rows(outcome)} == {"ok"}
    assert max(shared) > 1


def test_out_of_memory_is_a_row(jobs, monkeypatch):
    """Only a sample that does not fit by itself is recorded so; those in flight with it are answered."""
    lengths = []

    def fails(requests):
        lengths.extend(len(r.prompt.ids) for r in requests)
        huge = max(set(lengths))
        return next((torch.OutOfMemoryError("CUDA out of memory") for r in requests if len(r.prompt.ids) == huge), None)

    overrides = ["method=snapkv", "budget=100"]
    (calm,) = runner.run_jobs(jobs([*overrides, "paths.outputs=${oc.env:KVBENCH_CALM}"]))
    longest = max(r["prompt_tokens"] for r in rows(calm))
    gone = {r["id"] for r in rows(calm) if r["prompt_tokens"] == longest}
    lengths.append(longest)
    failing(monkeypatch, fails)
    (outcome,) = runner.run_jobs(jobs(overrides))
    assert {r["id"] for r in rows(outcome) if r["status"] == "oom"} == gone
    assert [w for w in work(calm) if w[0] not in gone] == work_of(r for r in rows(outcome) if r["status"] == "ok")
    assert all("out of memory" in r["error"] for r in rows(outcome) if r["status"] == "oom")
    monkeypatch.undo()
    (again,) = runner.run_jobs(jobs(overrides))
    assert len(rows(again)) == 6, "an out-of-memory row is a result"
    (retried,) = runner.run_jobs(jobs([*overrides, "retry_oom=true"]))
    assert [r["status"] for r in rows(retried)].count("ok") == 6


def test_a_batch_out_of_memory_is_tried_in_halves(jobs, monkeypatch):
    """Only a row that does not fit by itself is out of memory: the record does not depend on the sweep it ran in."""
    sizes = []

    def fails(requests):
        sizes.append(drawn_rows(requests))
        full = any(v.method.name == "fullkv" for r in requests for v in r.variants)
        return torch.OutOfMemoryError("CUDA out of memory") if sizes[-1] > 2 or full else None

    failing(monkeypatch, fails)
    names = ["fullkv", "snapkv", "h2o", "ada_snapkv", "streaming_llm"]
    outcomes = runner.run_jobs(jobs(*[[f"method={name}", "budget=100"] for name in names]))
    for name, outcome in zip(names, outcomes, strict=True):
        assert {r["status"] for r in rows(outcome)} == {"oom" if name == "fullkv" else "ok"}
    assert max(sizes) > 2 and sum(size > 2 for size in sizes) < 12, "what did not fit once is not tried for ever"


def test_samples_share_a_batch(jobs, tmp_path):
    """As many as max_rows and max_prompts allow; the tokens are those of samples one by one."""
    grid = [["method=snapkv", "budget=100"], ["method=h2o_decode", "budget=100"], ["method=kivi"]]
    alone = runner.run_jobs(jobs(*[[*o, "engine.max_prompts=1", "paths.outputs=" + str(tmp_path / "a")] for o in grid]))
    some = runner.run_jobs(jobs(*[[*o, "engine.max_rows=7", "paths.outputs=" + str(tmp_path / "b")] for o in grid]))
    few = runner.run_jobs(jobs(*[[*o, "engine.max_rows=2", "paths.outputs=" + str(tmp_path / "c")] for o in grid]))
    assert {r["rows"] for o in alone for r in rows(o)} == {3}
    assert {r["rows"] for o in some for r in rows(o)} == {6}
    assert {r["rows"] for o in few for r in rows(o)} == {1, 2}
    assert [work(o) for o in alone] == [work(o) for o in some] == [work(o) for o in few]
    assert len({o.folder.name for o in (alone[0], some[0], few[0])}) == 1, "a batch size is no part of what a run is"


def test_shards_share_a_run(jobs):
    (whole,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "paths.outputs=${oc.env:KVBENCH_CALM}"]))
    for shard, expected in (("2/4", "partial"), ("1/4", "partial"), ("4/4", "partial"), ("3/4", "done")):
        (outcome,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", f"shard={shard}"]))
        stored = store.load_run(outcome.folder)
        assert outcome.error is None and stored.status["status"] == expected
    assert outcome.folder.name == whole.folder.name
    assert work_of(stored.samples) == work(whole)
    (again,) = runner.run_jobs(jobs(["method=snapkv", "budget=100"]))
    assert (again.score, again.samples) == (whole.score, 6)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b"])
def test_a_shard_that_is_none(jobs, shard):
    with pytest.raises(ValueError, match=f"shard={shard}: must be i/n"):
        jobs([f"shard={shard}"])


def test_changed_code_does_not_pass_as_the_recorded(jobs, caplog):
    overrides = ["method=snapkv", "budget=100"]
    (outcome,) = runner.run_jobs(jobs(overrides))
    with caplog.at_level("INFO"):
        runner.run_jobs(jobs(overrides))
    assert "6 of 6 samples recorded, nothing to compute" in caplog.text
    assert "another version" not in caplog.text
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    manifest["versions"]["code"] = "0" * 12
    (outcome.folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level("INFO"):
        runner.run_jobs(jobs(overrides))
    assert "recorded with another version of code" in caplog.text


def test_an_impossible_budget_leaves_nothing_behind(jobs):
    impossible, fine = runner.run_jobs(jobs(["method=snapkv", "budget=0.01"], ["method=snapkv", "budget=0.4"]))
    assert "method.window=32" in str(impossible.error)
    assert not impossible.folder.exists()
    assert fine.samples == 6


def test_a_share_below_the_window_on_some_prompts_keeps_the_most_recent_tokens(jobs, caplog):
    overrides = ["benchmark.lengths=[150,1200]", "benchmark.depths=[50]", "method=snapkv", "budget=0.05"]
    with caplog.at_level("WARNING"):
        (outcome,) = runner.run_jobs(jobs(overrides))
    short, long = rows(outcome)
    assert outcome.error is None and "on 1 of 2 prompts the budget is below" in caplog.text
    assert (short["fallback"], long["fallback"]) == ("recent", None)
    assert short["kept_mean"] == short["budget_tokens"] == int(0.05 * short["span"]) < 32
    with pytest.raises(ValueError, match="always keeps"):
        outcome.job.variant.method.tokens(0.05, short["span"])


def test_an_error_ends_the_run_and_keeps_what_is_done(jobs, monkeypatch, caplog):
    calls = []

    def sometimes(requests):
        calls.append(1)
        return RuntimeError("shape mismatch") if len(calls) >= 3 else None

    failing(monkeypatch, sometimes)
    (outcome,) = runner.run_jobs(jobs(["method=snapkv", "budget=100", "engine.max_prompts=1"]))
    assert "shape mismatch" in str(outcome.error)
    assert status(outcome)["status"] == "failed" and "shape mismatch" in status(outcome)["error"]
    assert len(rows(outcome)) == 2
    assert "Traceback" in caplog.text, "who develops a method wants to see where"
    monkeypatch.undo()
    (again,) = runner.run_jobs(jobs(["method=snapkv", "budget=100"]))
    assert len({r["id"] for r in rows(again)}) == len(rows(again)) == 6


@pytest.mark.parametrize("error", [RuntimeError("index out of range"), ValueError("method.window=9: too long")])
def test_a_variant_that_fails_takes_no_other_with_it(jobs, monkeypatch, error):
    """Even when it fails late, on one sample, in a batch with all others."""
    made = [["method=snapkv", "budget=100"], ["method=h2o", "budget=100"], ["method=kivi"], ["method=fullkv"]]
    calm = runner.run_jobs(jobs(*[[*o, "paths.outputs=${oc.env:KVBENCH_CALM}"] for o in made]))
    real = Method.mask
    spans = sorted({r["span"] for r in rows(calm[0])})

    def broken(self, ctx, tokens, total):
        if self.name == "h2o" and ctx.num_tokens == spans[-1] and ctx.layer == 2:
            raise error
        return real(self, ctx, tokens, total)

    monkeypatch.setattr(Method, "mask", broken)
    outcomes = runner.run_jobs(jobs(*made))
    assert [o.error for o in outcomes] == [None, error, None, None]
    assert [status(o)["status"] for o in outcomes] == ["done", "failed", "done", "done"]
    for before, after in zip(calm, outcomes, strict=True):
        if after.error is None:
            assert work(after) == work(before)
        else:
            assert set(work(after)) < set(work(before))
    monkeypatch.undo()
    again = runner.run_jobs(jobs(*made))
    assert [work(o) for o in again] == [work(o) for o in calm]


def test_a_broken_budget_stops_that_run(jobs, monkeypatch):
    """A method that silently keeps everything is caught on its first sample; the other run goes on."""
    made = jobs(["method=snapkv", "budget=100"], ["method=h2o", "budget=100"])
    real = Method.mask

    def broken(self, ctx, tokens, total):
        keep_UT = real(self, ctx, tokens, total)
        return torch.ones_like(keep_UT) if self.name == "snapkv" else keep_UT

    monkeypatch.setattr(Method, "mask", broken)
    snap, h2o = runner.run_jobs(made)
    assert "instead of 800" in str(snap.error)
    assert status(snap)["status"] == "failed" and rows(snap) == []
    assert h2o.error is None and h2o.samples == 6
