"""`kvbench status`: the states of runs and plans, and the commands that resume plans."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvbench import store
from kvbench.status import runs as status_runs
from kvbench.status.__main__ import main
from kvbench.status.runs import look
from kvbench.status.survey import survey
from kvbench.status.text import age
from tests.helpers.store_runs import child, every, make

COMMAND = "python -m kvbench -m method=snapkv budget=1,2,3"


def killed(outputs: Path, budget: str, wait: bool = False) -> tuple[Path, Any]:
    """Start a run whose process was killed, or still is at work."""
    code = """
        import time
        run = open_run(Path(sys.argv[1]), **budgeted(sys.argv[2]), info={"slurm": "12_3"})
        run.append(record("a"))
        print(run.path, flush=True)
        time.sleep(600)
    """
    process = child(code, outputs / "runs", budget)
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    if not wait:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return path, process


def folders(outputs: Path, state: str) -> Path:
    """Return one run in a state."""
    if state == "done":
        return make(outputs, "1", "abc")
    if state == "partial":
        return make(outputs, "1", "a")
    if state == "preempted":
        return make(outputs, "1", "a", SystemExit(143))
    if state == "failed":
        return make(outputs, "1", "a", RuntimeError("boom\nbang"))
    if state == "stopped":
        return killed(outputs, "1")[0]
    if state == "missing":
        return outputs / "runs" / "needle" / "tiny" / "none"
    path = make(outputs, "1", "abc")
    (path / "samples.jsonl").write_bytes(b"rubbish\n" + (path / "samples.jsonl").read_bytes())
    return path


@pytest.mark.parametrize("state", ["done", "partial", "preempted", "failed", "stopped", "missing", "damaged"])
def test_states(tmp_path: Path, state: str, capsys: pytest.CaptureFixture) -> None:
    """The state, what is said of it, the exit status; and looking leaves no trace."""
    path = folders(tmp_path, state)
    store.write_plan(tmp_path, COMMAND, every([path]))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()}
    run = look(path)
    assert run.state == state
    recorded = {"done": 3, "missing": 0, "damaged": 0}.get(state, 1)
    assert (run.recorded, run.total) == (recorded, None if state in ("missing", "damaged") else 3)
    assert main([str(tmp_path)]) == (0 if state == "done" else 1)
    out = capsys.readouterr().out
    assert f"1 run, 1 {state}\n  $ {COMMAND}" in out
    assert ("Resume with" in out) == (state != "done")
    [line] = [line for line in out.splitlines() if path.name in line and not line.startswith("Plan")]
    assert line.split()[:2] == [state, f"needle/tiny/{path.name}"]
    wanted = {
        "failed": "RuntimeError: boom bang", "stopped": "12_3", "damaged": "line 1: not valid JSON",
        "preempted": "SystemExit: 143", "partial": "1/3", "done": "3/3", "missing": "",
    }  # fmt: skip
    assert wanted[state] in line
    assert main([str(tmp_path), "--json"]) == (0 if state == "done" else 1)
    [plan] = json.loads(capsys.readouterr().out)["plans"]
    assert plan["command"] == COMMAND and plan["complete"] == (state == "done")
    assert plan["runs"][0]["state"] == state and plan["runs"][0]["folder"] == str(path)
    assert before == {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in tmp_path.rglob("*") if f.is_file()}


def test_a_running_plan_waits_and_then_misses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, process = killed(tmp_path, "2", wait=True)
    plan = [make(tmp_path, "1", "abc"), path, tmp_path / "runs" / "needle" / "tiny" / "later"]
    store.write_plan(tmp_path, COMMAND, every(plan))
    try:
        assert main([str(tmp_path)]) == 1
        out = capsys.readouterr().out
        assert "3 runs, 1 done, 1 running, 1 waiting" in out
        assert "At work; should it stop, resume with\n    " + COMMAND in out
    finally:
        process.kill()
        process.communicate()
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "3 runs, 1 done, 1 missing, 1 stopped" in out and "Resume with\n    " + COMMAND in out


def test_a_limit_is_what_its_plan_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A part of the samples completes the plan with limit=, not the one without."""
    path = make(tmp_path, "1", "ab", 2)
    assert look(path).state == "limited" and main([str(tmp_path)]) == 0, "in no plan"
    store.write_plan(tmp_path, "kvbench +experiment=short", every([path], 2))
    assert main([str(tmp_path)]) == 0
    store.write_plan(tmp_path, "kvbench limit=3 budget=1", every([path], 3))
    assert main([str(tmp_path)]) == 1
    assert "limit=2, the plan asks for 3 samples" in capsys.readouterr().out
    for plan in (tmp_path / "plans").iterdir():
        plan.unlink()
    store.write_plan(tmp_path, "kvbench budget=1", every([path]))
    assert main([str(tmp_path)]) == 1


def test_of_one_command_the_newest_plan_counts(tmp_path: Path) -> None:
    """A changed YAML makes other runs of the same command: it no longer makes those of the older plan."""
    done = make(tmp_path, "1", "abc")
    old = store.write_plan(tmp_path, COMMAND, every([done, tmp_path / "runs" / "needle" / "tiny" / "never"]))
    os.utime(old, (1, 1))
    again = make(tmp_path, "2", "abc")
    store.write_plan(tmp_path, COMMAND, every([again]))
    state = survey([tmp_path])
    assert [[run.folder for run in plan.runs] for plan in state.plans] == [[again]]
    assert [run.folder for run in state.others] == [done] and state.complete
    os.utime(old)
    assert [plan.plan.path for plan in survey([tmp_path]).plans] == [old], "issued again, with the YAML of then"


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusals are state here."""
    make(tmp_path, "1", "abc")
    closed = make(tmp_path, "2", "abc")
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    state = survey([tmp_path])
    assert state.damaged == [f"{closed}: Permission denied"] and not state.complete
    assert len(state.others) == 1


def test_shards_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = make(tmp_path, "1", "a", shard=(1, 3))
    make(tmp_path, "1", "b", RuntimeError("boom"), shard=(2, 3))
    run = look(path)
    assert (run.state, run.recorded, run.shards) == ("failed", 2, {"1of3": "partial", "2of3": "failed"})
    assert main([str(path)]) == 1
    assert "1of3 partial, 2of3 failed; 2of3: RuntimeError: boom" in capsys.readouterr().out
    make(tmp_path, "1", "", shard=(2, 3))
    assert look(path).state == "partial"
    make(tmp_path, "1", "c", shard=(3, 3))
    assert look(path).state == "done"


def test_a_done_run_without_its_samples_is_not_done(tmp_path: Path) -> None:
    path = make(tmp_path, "1", "abc")
    lines = (path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (path / "samples.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:9])
    run = look(path)
    assert (run.state, run.recorded, run.note) == ("partial", 2, "1 samples of a finished run are gone")


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (f"{COMMAND} paths.outputs=old", COMMAND),
        (f"{COMMAND} ++paths.outputs=/some/old", COMMAND),
        (COMMAND, COMMAND),
        (f"{COMMAND} 'method.name=a b'", f"{COMMAND} 'method.name=a b'"),
    ],
)
def test_outputs_elsewhere_are_resumed_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, typed: str, kept: str, moved: bool
) -> None:
    """Moved or copied. The command as it was typed would compute everything again in the old place."""
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old", tmp_path / "new, place"
    store.write_plan("old", typed, every([make(old, "1", "a")]))
    assert main(["old"]) == 1
    assert f"Resume with\n    {typed}\n" in capsys.readouterr().out
    (tmp_path / "link").symlink_to(old)
    assert main(["link"]) == 1
    assert f"Resume with\n    {typed}\n" in capsys.readouterr().out, "the same folder by another name"
    shutil.move(old, new) if moved else shutil.copytree(old, new)
    assert main([str(new)]) == 1
    out = capsys.readouterr().out
    resume = f"""{kept} 'paths.outputs="{new}"'"""
    assert f"  $ {typed}\n" in out and f"Resume with\n    {resume}\n" in out
    assert main([str(new), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["plans"][0]["command"] == resume
    words = shlex.split(resume)
    (override,) = OverridesParser.create().parse_overrides(words[-1:])
    assert override.value() == str(new)


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plan = store.write_plan(tmp_path, COMMAND, every([make(tmp_path, "1", "a")]))
    content = json.loads(plan.read_text())
    for cwd, words in ((str(tmp_path), f"(in {tmp_path})"), ("/gone", "(issued in /gone, which is not here)")):
        plan.write_text(json.dumps(content | {"cwd": cwd}))
        main([str(tmp_path)])
        assert f"    {COMMAND}   {words}\n" in capsys.readouterr().out


def test_a_line_that_another_program_wrote_counts(tmp_path: Path) -> None:
    path = make(tmp_path, "1", "a")
    with (path / "samples.jsonl").open("a") as file:
        file.write('{"status":"oom","id":"\\u0062","meta":{}}\n{"id": "b", "status": "oom", "meta": {}}\n')
    assert look(path).recorded == 2


def test_where_locks_cannot_be_asked_the_time_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path, "1")[0]
    monkeypatch.setattr(status_runs, "writers", lambda _: None)
    run = look(path)
    assert run.state == "running" and run.note == "judged by its time stamps; its lock cannot be asked"
    for file in path.iterdir():
        os.utime(file, (0, time.time() - 2 * status_runs.FRESH))
    assert look(path).state == "stopped"
    assert age(look(path)) == "20 min ago"


def test_one_damaged_thing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good, bad = make(tmp_path, "1", "abc"), make(tmp_path, "2", "abc")
    (bad / "manifest.json").write_text("{")
    lost = make(tmp_path, "3", "abc")
    (lost / "manifest.json").unlink()
    torn = make(tmp_path, "4", "abc")
    (torn / "status.json").write_text("[]")
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "x.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith(("  done", "  damaged"))}
    assert set(lines) == {f"needle/tiny/{path.name}" for path in (good, bad, lost, torn)}
    assert "manifest.json: not valid JSON" in lines[f"needle/tiny/{bad.name}"]
    assert "samples but no manifest.json" in lines[f"needle/tiny/{lost.name}"]
    assert "status.json: [] is not an object" in lines[f"needle/tiny/{torn.name}"]
    assert f"Skipped: {tmp_path}/plans/x.json: not valid JSON" in out
    assert main([str(tmp_path), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["damaged"]) == 1


def test_only_some_states_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    done, failed = make(tmp_path, "1", "abc"), make(tmp_path, "2", "", RuntimeError("boom"))
    alone = make(tmp_path, "3", "a")
    store.write_plan(tmp_path, COMMAND, every([done, failed]))
    assert main([str(tmp_path), "--only", "failed"]) == 1
    out = capsys.readouterr().out
    assert failed.name in out and done.name not in out and "2 runs, 1 done, 1 failed" in out
    assert "Runs in no plan: 1 run, 1 partial" in out and alone.name not in out
    assert main([str(done)]) == 0
    out = capsys.readouterr().out
    assert COMMAND in out and done.name in out and failed.name not in out and "no plan" not in out
    assert main([str(done), str(alone), str(tmp_path)]) == 1
    assert capsys.readouterr().out.count(COMMAND) == 1  # each plan once
    assert main([str(tmp_path), "--only", "failed,lost"]) == 2
    assert capsys.readouterr().err.startswith("kvbench: --only lost: choose from done, limited, running")
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"kvbench: {tmp_path}/none: no such folder; name the one of paths.")
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1


def test_watching_ends_when_all_is_done(tmp_path: Path) -> None:
    path = make(tmp_path, "1", "ab")
    command = [sys.executable, "-m", "kvbench.status", str(tmp_path), "--watch", "0.05"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None and watcher.stdout.readline() == "Runs: 1 run, 1 partial\n"
    make(tmp_path, "1", "c")
    assert "1 run, 1 done" in watcher.communicate(timeout=300)[0]
    assert watcher.returncode == 0 and look(path).state == "done"
