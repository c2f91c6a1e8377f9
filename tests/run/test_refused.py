"""Jobs that are refused: the reason stays in the outputs until the run begins, and a plan with them is not resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench import store
from kvbench.common.files import write_atomic
from kvbench.models.cache import ModelCache
from kvbench.run import preflight, refused, runner
from kvbench.run.jobs import Job
from kvbench.run.plan import write_plans
from kvbench.status.__main__ import main as status
from kvbench.store.refusals import delete_refusal, read_refusal, write_refusal
from kvbench.store.schema import Refusal

Jobs = Callable[..., list[Job]]
WINDOW = ["method=snapkv", "budget=0.01"]  # fewer tokens than the window, on every prompt


def asked(jobs: list[Job]) -> list[runner.Outcome]:
    """Run jobs as a command does: with a plan. A refusal of all of them is an outcome, too."""
    write_plans(jobs, "kvbench x")
    try:
        return runner.run_jobs(jobs)
    except ValueError as error:
        return [runner.Outcome(job, job.folder, error=error) for job in jobs]


@pytest.mark.parametrize(
    ("overrides", "final"),
    [
        (WINDOW, True),
        (["method=snapkv", "budget=0.01B"], True),
        (["method=snapkv+kivi", "budget=64"], True),
        (["method=kivi", "method.group_size=64", "method.residual=64"], True),
        (["method=streaming_llm_true", "budget=64", "save.kept=true"], True),
        (["method=snapkv", "budget=64", "kernel=cuda"], False),
        (["method=snapkv", "budget=64", "engine.graph=true"], False),
    ],
)
def test_status_says_why_a_run_was_refused(
    jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture, overrides: list[str], final: bool
) -> None:
    """In place of "missing" and of the command that was refused. There is no run folder."""
    (outcome,) = asked(jobs(overrides))
    refusal = read_refusal(outcome.folder)
    assert refusal is not None and refusal["final"] == final and refusal["reason"] == str(outcome.error)
    assert not outcome.folder.exists()
    assert status([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if outcome.folder.name in line]
    assert line.split()[0] == "refused" and line.endswith(str(outcome.error))
    assert "Nothing to resume: change what the refusals name" in out and "Resume with" not in out
    assert status([str(tmp_path), "--json"]) == 1
    (run,) = json.loads(capsys.readouterr().out)["plans"][0]["runs"]
    assert (run["state"], run["error"]) == ("refused", str(outcome.error))


def test_samples_that_cannot_be_read_are_a_reason_too(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They may be mended: nothing keeps a task from trying again."""

    def damaged(group: list[Job], model_cache: ModelCache) -> None:
        raise ValueError("qasper.jsonl, line 3: not valid JSON")

    monkeypatch.setattr(runner, "read_samples", damaged)
    (outcome,) = asked(jobs(["method=snapkv", "budget=64"]))
    assert status([str(tmp_path)]) == 1
    assert "qasper.jsonl, line 3: not valid JSON\n" in capsys.readouterr().out
    assert refused.refused_without_samples([outcome.job]) == {}


def test_other_runs_of_the_plan_are_resumed(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    both = jobs(WINDOW, ["method=snapkv", "budget=64"])
    write_plans(both, "kvbench x")
    runner.run_jobs(both[:1])
    assert status([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "2 runs, 1 missing, 1 refused" in out and "Resume with\n    kvbench x" in out


def test_a_run_that_begins_forgets_its_refusal(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A refusal, such as one of older code, never keeps a command from trying."""
    (job,) = jobs(["method=snapkv", "budget=64", "limit=1"])
    with monkeypatch.context() as older:
        older.setattr(preflight, "_no_room", lambda job, size: ValueError("budget=64: no room"))
        assert asked([job])[0].error is not None and read_refusal(job.folder) is not None
    assert asked([job])[0].error is None
    assert read_refusal(job.folder) is None
    assert status([str(tmp_path)]) == 0
    (kept,) = asked(jobs(["method=streaming_llm_true", "budget=64", "limit=1", "save.kept=true"]))
    assert "save.kept=true" in str(kept.error)
    (plain,) = asked(jobs(["method=streaming_llm_true", "budget=64", "limit=1"]))
    assert plain.folder == kept.folder and plain.error is None and read_refusal(plain.folder) is None


def test_a_refusal_is_one_of_what_was_asked_for(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A plan that asks for another number of samples may well be computed."""
    asked(jobs([*WINDOW, "limit=2"]))
    write_plans(jobs(WINDOW), "kvbench all")
    assert status([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 run, 1 refused" in out and "1 run, 1 missing" in out and "Resume with\n    kvbench all" in out


def test_a_complete_run_is_never_refused(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its folder counts, whatever was asked for in between."""
    (done,) = asked(jobs(["method=streaming_llm_true", "budget=64", "limit=1"]))
    (more,) = asked(jobs(["method=streaming_llm_true", "budget=64", "limit=2", "save.kept=true"]))
    assert done.error is None and more.error is not None
    plans = [path for path in (tmp_path / "plans").glob("*.json") if '"limit": 2' in path.read_text()]
    assert status([str(tmp_path)]) == 1
    assert "refused" in capsys.readouterr().out
    for plan in plans:
        plan.unlink()
    write_plans(jobs(["method=streaming_llm_true", "budget=64", "limit=1"]), "kvbench x")
    assert status([str(tmp_path)]) == 0


def test_a_full_disk_does_not_hide_the_reason(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kvbench.store.refusals.write_atomic", full)
    (outcome,) = runner.run_jobs(jobs(WINDOW))
    assert "method.window=32" in str(outcome.error)
    assert "its refusal could not be written (No space left on device)" in caplog.text


# ---- what the launcher on a login node asks ----


def test_what_needs_no_samples_is_refused_at_once(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelCache, "tokenizer", lambda *_: pytest.fail("no tokenizer is needed"))
    wrong = jobs(
        ["method=kivi", "method.group_size=64", "method.residual=64"],
        ["method=streaming_llm_true", "budget=64", "save.kept=true"],
    )
    fine = jobs(["method=snapkv", "budget=64"], ["method=snapkv", "budget=64", "kernel=cuda"], WINDOW)
    errors = refused.refused_without_samples([*wrong, *fine])
    assert list(errors) == [job.folder for job in wrong]
    assert [read_refusal(job.folder) is not None for job in [*wrong, *fine]] == [True, True, False, False, False]


def test_samples_of_another_kind_of_device_are_seen_at_once(jobs: Jobs) -> None:
    runner.run_jobs(jobs(["method=snapkv", "budget=64", "limit=1"]))
    (auto,) = jobs(["method=snapkv", "budget=64"])
    assert refused.refused_without_samples([auto]) == {}, "nobody knows where that will be"
    object.__setattr__(auto.model, "device", "cuda")  # this machine may have none, which is no mistake here
    (error,) = refused.refused_without_samples([auto]).values()
    assert "has 1 samples computed on cpu, and the others would be on cuda; choose another paths.outputs" in str(error)


def test_what_a_task_refused_is_not_asked_for_twice(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same request and the same versions. Anything else may be computed."""
    (task,) = jobs([*WINDOW, "shard=2/2"])
    runner.run_jobs([task])
    (job,) = jobs(WINDOW)
    (error,) = refused.refused_without_samples([job]).values()
    assert "method.window=32" in str(error)
    for changed in (["limit=2"], ["retry_oom=true"], ["save.kept=true"]):
        assert refused.refused_without_samples(jobs([*WINDOW, *changed])) == {}
    old = read_refusal(job.folder)
    assert old is not None
    write_refusal(job.folder, {**old, "final": False})
    assert refused.refused_without_samples([job]) == {}
    write_refusal(job.folder, old)
    with monkeypatch.context() as newer:
        newer.setattr(refused, "_checks_hash", lambda: "another")
        assert refused.refused_without_samples([job]) == {}
    with monkeypatch.context() as newer:
        newer.setattr(refused, "versions", lambda method: {"code": "another"})
        assert refused.refused_without_samples([job]) == {}
    assert refused.refused_without_samples([job])


# ---- the file ----

REFUSAL: Refusal = {
    "reason": "budget=1: no room in /home/someone/x",
    "final": True,
    "limit": None,
    "retry": [],
    "kept": False,
    "shard": None,
    "versions": {},
    "time": "",
}


@pytest.mark.parametrize(
    ("refused_one", "begins", "stays"),
    [
        (None, None, False),
        (None, "1/2", False),
        ("1/2", None, False),
        ("1/2", "1/2", False),
        ("1/2", "2/2", True),
        ("1/2", "2/4", False),
    ],
)
def test_the_refusal_of_another_shard_stays(
    tmp_path: Path, refused_one: str | None, begins: str | None, stays: bool
) -> None:
    folder = tmp_path / "runs" / "needle" / "tiny" / "h2o-b0.1-00000000"
    write_refusal(folder, {**REFUSAL, "shard": refused_one})
    delete_refusal(folder, begins)
    assert (read_refusal(folder) is not None) == stays


def test_a_damaged_refusal_is_told_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "runs" / "needle" / "tiny" / "h2o-b0.1-00000000"
    store.write_plan(tmp_path, "kvbench x", [(folder, None)])
    write_refusal(folder, REFUSAL)
    refusal = read_refusal(folder)
    assert refusal is not None and refusal["reason"] == "budget=1: no room in .../x", "no path of this machine"
    (file,) = (tmp_path / "refused").rglob("*.json")
    write_atomic(file, "{")
    assert status([str(tmp_path)]) == 1
    assert "damaged" in (out := capsys.readouterr().out) and f"refused/needle/tiny/{file.name}: not valid JSON" in out
    delete_refusal(folder, None)
    assert not file.exists()
