"""The runner: what is recorded, and what is never computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvbench import store
from kvbench.run import batching, runner
from kvbench.run.jobs import Job
from tests.helpers.runs import answers, records, status

Jobs = Callable[..., list[Job]]
SNAP, H2O = ["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]
CALM = "paths.outputs=${oc.env:KVBENCH_CALM}"


def test_records_say_what_was_kept(jobs: Jobs) -> None:
    (outcome,) = runner.run_jobs(jobs(["method=ada_snapkv", "budget=100"]))
    assert status(outcome)["status"] == "done"
    assert (outcome.samples, len(records(outcome))) == (6, 6)
    for record in records(outcome):
        assert record["status"] == "ok"
        assert record["budget_tokens"] == 100 and record["kept_mean"] == 100
        assert sum(map(sum, record["kept"])) == 100 * 4 * 2
        assert record["kv_bytes"] == 100 * 4 * 2 * 2 * 32 * 4, "tokens x layers x heads x (K, V) x D x float32"
        assert record["kv_bytes_full"] == record["prompt_tokens"] * 4 * 2 * 2 * 32 * 4
        assert record["timings"]["ttft_s"] >= record["timings"]["prefill_s"] > 0


def test_methods_read_the_chat_template_as_it_is_set(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVzip puts the beginning of an answer into its own passes."""
    templates, real = [], batching.stream

    def stream(model: Any, tokenizer: Any, *args: Any, **settings: Any) -> Any:
        templates.append(tokenizer.chat_template)
        return real(model, tokenizer, *args, **settings)

    monkeypatch.setattr(batching, "stream", stream)
    (outcome,) = runner.run_jobs(jobs(["method=kvzip", "budget=100", "limit=1", "model.chat_template=never"]))
    assert outcome.error is None and templates == [None]


def test_nothing_is_computed_twice(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runner.run_jobs(jobs(SNAP, H2O))

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a finished run must load nothing")

    for name in ("load", "load_tokenizer", "shape"):
        monkeypatch.setattr(runner.models, name, forbidden)
    second = runner.run_jobs(jobs(SNAP, H2O))
    assert [o.score for o in first] == [o.score for o in second]


def test_a_finished_run_is_read_once(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    runner.run_jobs(jobs(SNAP))
    reads = []
    real = store.load_run
    monkeypatch.setattr(store, "load_run", lambda *args, **kwargs: reads.append(args) or real(*args, **kwargs))
    (outcome,) = runner.run_jobs(jobs(SNAP))
    assert len(reads) == 1 and outcome.stored is not None and len(outcome.stored.samples) == 6


def test_a_full_cache_is_one_run_under_any_budget(jobs: Jobs) -> None:
    outcomes = runner.run_jobs(jobs(["method=fullkv", "budget=100"], ["method=fullkv", "budget=0.5"]))
    assert outcomes[0].folder == outcomes[1].folder
    assert outcomes[0].folder.name.startswith("fullkv-bfull-")


def test_jobs_group_by_everything_but_method_and_budget(jobs: Jobs) -> None:
    a, b, c = jobs(SNAP, ["method=h2o", "budget=0.5"], ["seed=1"])
    assert a.group == b.group != c.group
    assert len({a.folder, b.folder, c.folder}) == 3


def test_resume_continues_where_it_stopped(jobs: Jobs) -> None:
    """Torn line, missing lines: only what is missing is computed, once."""
    whole = [answers(o) for o in runner.run_jobs(jobs(SNAP, H2O))]
    outcomes = runner.run_jobs(jobs(SNAP, H2O))
    lines = (outcomes[0].folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (outcomes[0].folder / "samples.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    (outcomes[0].folder / "status.json").write_text('{"status": "running"}')
    untouched = (outcomes[1].folder / "samples.jsonl").stat().st_mtime_ns
    again = runner.run_jobs(jobs(SNAP, H2O))
    assert [answers(o) for o in again] == whole
    assert (again[1].folder / "samples.jsonl").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("kept", [0, 2])
def test_samples_that_a_finished_run_lost_are_computed_again(jobs: Jobs, kept: int, limit: int | None) -> None:
    """The status says done, or partial with its limit; the records say otherwise."""
    overrides = [*SNAP, f"limit={'null' if limit is None else limit}"]
    (whole,) = runner.run_jobs(jobs(overrides))
    expected = answers(whole)
    file = whole.folder / "samples.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:kept]))
    (job,) = jobs(overrides)
    assert runner.finished(job) is None
    (again,) = runner.run_jobs([job])
    assert again.error is None and answers(again) == expected
    assert status(again)["status"] == ("done" if limit is None else "partial")
    file.unlink()
    (again,) = runner.run_jobs(jobs(overrides))
    assert answers(again) == expected


def test_a_folder_that_holds_another_run_is_not_taken_for_this_one(jobs: Jobs) -> None:
    snap, h2o = runner.run_jobs(jobs(SNAP, H2O))
    for name in ("manifest.json", "samples.jsonl", "status.json"):
        (h2o.folder / name).write_bytes((snap.folder / name).read_bytes())
    again = runner.run_jobs(jobs(SNAP, H2O))
    assert again[0].error is None
    assert isinstance(again[1].error, ValueError) and str(h2o.folder) in str(again[1].error)
    assert "\n" not in str(again[1].error)


def test_a_limit_is_a_beginning_of_the_same_run(jobs: Jobs) -> None:
    (some,) = runner.run_jobs(jobs([*SNAP, "limit=2"]))
    for limit, settled in ((1, True), (2, True), (3, False)):
        (job,) = jobs([*SNAP, f"limit={limit}"])
        assert (runner.finished(job) is not None) == settled, "a shorter beginning needs no tokenizer"
    assert some.samples == 2
    assert status(some)["status"] == "partial" and status(some)["recorded"] == 2
    (whole,) = runner.run_jobs(jobs(SNAP))
    assert whole.folder == some.folder and whole.samples == 6
    assert len(records(whole)) == 6


def test_a_limit_is_about_the_first_samples_whatever_else_is_recorded(jobs: Jobs) -> None:
    runner.run_jobs(jobs([*SNAP, "shard=2/2"]))
    (some,) = runner.run_jobs(jobs([*SNAP, "limit=3"]))
    (whole,) = runner.run_jobs(jobs([*SNAP, CALM]))
    order = [record["id"] for record in records(whole)]
    assert {r["id"] for r in store.load_run(some.folder).samples} == {*order[1::2], *order[:3]}


def test_samples_share_a_batch(jobs: Jobs, tmp_path: Path) -> None:
    """Batches are as large as max_rows and max_prompts allow. The tokens are those of samples computed one by one."""
    grid = [SNAP, ["method=h2o_decode", "budget=100"], ["method=kivi"]]

    def run(name: str, setting: str) -> list[runner.Outcome]:
        return runner.run_jobs(jobs(*[[*o, setting, f"paths.outputs={tmp_path / name}"] for o in grid]))

    alone, some, few = run("a", "engine.max_prompts=1"), run("b", "engine.max_rows=7"), run("c", "engine.max_rows=2")
    assert {r["rows"] for o in alone for r in records(o)} == {3}
    assert {r["rows"] for o in some for r in records(o)} == {6}
    assert {r["rows"] for o in few for r in records(o)} == {1, 2}
    assert [answers(o) for o in alone] == [answers(o) for o in some] == [answers(o) for o in few]
    assert len({o.folder.name for o in (alone[0], some[0], few[0])}) == 1, "a batch size is not part of the identity"


def test_shards_share_a_run(jobs: Jobs) -> None:
    (whole,) = runner.run_jobs(jobs([*SNAP, CALM]))
    for shard, expected in (("2/4", "partial"), ("1/4", "partial"), ("4/4", "partial"), ("3/4", "done")):
        (outcome,) = runner.run_jobs(jobs([*SNAP, f"shard={shard}"]))
        stored = store.load_run(outcome.folder)
        assert outcome.error is None and stored.status["status"] == expected
    assert outcome.folder.name == whole.folder.name
    assert answers(stored.samples) == answers(whole)  # type: ignore[arg-type]
    (again,) = runner.run_jobs(jobs(SNAP))
    assert (again.score, again.samples) == (whole.score, 6)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b"])
def test_an_impossible_shard_is_one_line(jobs: Jobs, shard: str) -> None:
    with pytest.raises(ValueError, match=f"shard={shard}: must be i/n"):
        jobs([f"shard={shard}"])


def test_changed_code_does_not_pass_as_the_recorded_code(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    (outcome,) = runner.run_jobs(jobs(SNAP))
    with caplog.at_level("INFO"):
        runner.run_jobs(jobs(SNAP))
    assert "6 of 6 samples recorded, nothing to compute" in caplog.text
    assert "another version" not in caplog.text
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    manifest["versions"] |= {"code": "0" * 12, "method": "0" * 12}
    (outcome.folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level("INFO"):
        runner.run_jobs(jobs(SNAP))
    assert "recorded with another version of code, method" in caplog.text
    assert f"move {outcome.folder} away or choose another paths.outputs" in caplog.text
