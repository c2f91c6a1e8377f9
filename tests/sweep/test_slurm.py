"""Sweeps on a real Slurm: their records, also after tasks were killed, cancelled, timed out or preempted.

These tests run only on the Slurm that `.ci/slurm-up` starts on one machine. They never submit jobs to a cluster.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvbench.store import load_run

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

TINY = ["model=tiny", "benchmark.max_new_tokens=4", "budget=64,100"]
SHORT = [*TINY, "benchmark.lengths=[300]", "benchmark.depths=[0,100]", "method=snapkv,h2o", "seed=0,1"]
LONG = [*TINY, "benchmark.lengths=[1000]", "method=snapkv,h2o", "engine.max_rows=4"]  # one sample after the other
ON_SLURM = ["launcher=fused_slurm", "launcher.gpus_per_node=0", "launcher.cpus_per_task=1", "launcher.poll_s=0.5"]


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvbench", "-m", *args]
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*args: str, cwd: Path, code: int = 0) -> tuple[str, str]:
    """Run a command to its end; return stdout and stderr."""
    return end(start(*args, cwd=cwd), code)


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def until(condition: Callable[[], Any], event: str, seconds: float = 120) -> Any:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {event}")


def tasks(outputs: Path) -> dict[str, list[Path]]:
    """Return the run folders of each Slurm task, over all submissions."""
    folders: dict[str, list[Path]] = {}
    for file in sorted(outputs.glob("slurm/*/tasks-*.json")):
        folders |= {task: [Path(run) for run in unit["runs"]] for task, unit in json.loads(file.read_text()).items()}
    return folders


def records(outputs: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each run, without the fields that differ between two computations."""
    runs = {folder.name: load_run(folder).samples for folder in sorted(outputs.glob("runs/*/*/*"))}
    timed = ("timings", "time", "rows", "slack_bytes")
    return {name: [{k: v for k, v in row.items() if k not in timed} for row in rows] for name, rows in runs.items()}


def lines(folder: Path) -> list[str]:
    """Return the ids of all lines in the files of a run, duplicates included."""
    files = folder.glob("samples*.jsonl")
    return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines() if line.endswith("}")]


def status(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["status"])


def state(task: str) -> str:
    return slurm("squeue", "-h", "-j", task, "-o", "%T")


def python_of(task: str) -> int:
    """Return the process id of a task's Python."""
    array, _, number = task.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={number}", "SLURM_STEP_ID=0"}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = set((process / "environ").read_text(errors="replace").split("\0"))
            words = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if wanted <= environment and "submitit.core._submit" in words:
            return int(process.name)
    raise AssertionError(f"no Python of {task}")


def test_a_sweep_in_shards_writes_the_same_records_as_other_launchers(tmp_path: Path) -> None:
    """8 jobs form 2 groups of 2 shards; when all are done, the same command submits nothing."""
    command = [*SHORT, *ON_SLURM, "launcher.shards=2", "paths.outputs=a"]
    out, _ = run(*command, cwd=tmp_path)
    assert "Submitted 4 task(s) for 8 run(s)" in out
    assert out.count("| snapkv") == 4, "the tables"
    basic, fused = (
        start(*SHORT, f"launcher={name}", f"paths.outputs={name}", cwd=tmp_path) for name in ("basic", "fused")
    )
    end(basic), end(fused)
    assert len(records(tmp_path / "a")) == 8
    assert records(tmp_path / "a") == records(tmp_path / "fused") == records(tmp_path / "basic")
    folders = sorted((tmp_path / "a").glob("runs/*/*/*"))
    assert all(
        sorted(file.name for file in f.glob("samples*")) == ["samples-1of2.jsonl", "samples-2of2.jsonl"]
        for f in folders
    )
    assert {len(lines(folder)) for folder in folders} == {2}
    assert {status(folder) for folder in folders} == {"done"}

    again, log = run(*command, cwd=tmp_path)
    assert "Submitted" not in again
    assert "nothing to compute" in log
    assert again == out[out.index("##") :], "the same tables"
    assert len(tasks(tmp_path / "a")) == 4


def test_killed_timed_out_and_cancelled_tasks_lose_nothing(tmp_path: Path) -> None:
    """One of 3 tasks is killed, one gets the signal before its time limit, and one is cancelled."""
    command = [*LONG, "benchmark.num_seeds=4", "seed=0,100,200", "paths.outputs=a", *ON_SLURM]
    sweep = start(*command, cwd=tmp_path)
    known = until(lambda: tasks(tmp_path / "a"), "tasks are submitted")
    assert len(known) == 3
    killed, late, cancelled = sorted(known)
    ends = {
        killed: lambda: os.kill(python_of(killed), signal.SIGKILL),
        late: lambda: slurm("scancel", "--signal=USR2", late),
        cancelled: lambda: slurm("scancel", cancelled),
    }
    while ends:
        task = until(
            lambda: next((t for t in ends if all(len(lines(run)) > 1 for run in known[t])), ""), "a task records"
        )
        ends.pop(task)()
    until(lambda: state(late) == "PENDING", "requeued")
    assert {status(run) for run in known[killed]} == {"running"}, "a killed process cannot update its status"
    assert {status(run) for run in known[late]} == {"preempted"}
    until(lambda: state(cancelled) == "", "cancelled")
    assert {status(run) for run in known[cancelled]} == {"preempted"}
    slurm("scontrol", "update", f"jobid={late}", "StartTime=now")  # Slurm waits for two minutes
    _, log = end(sweep, code=1)
    assert f"Slurm task {killed} (4 runs of needle/tiny) ended early: FAILED" in log
    assert f"Slurm task {cancelled} (4 runs of needle/tiny) ended early: CANCELLED" in log
    assert f"Slurm task {late}" not in log
    assert re.search(r"\n    \| .*ended by SIGTERM: what is recorded stays", log), "the tail of the log"
    assert "kvbench: 8 of 12 runs are not complete, see above; issue the same command again to resume" in log
    survey = subprocess.run([sys.executable, "-m", "kvbench.status", "a", "--json"], cwd=tmp_path, capture_output=True)
    assert survey.returncode == 1
    ((plan,), states) = json.loads(survey.stdout)["plans"], {"stopped": killed, "done": late, "preempted": cancelled}
    assert {(row["state"], row["slurm"]) for row in plan["runs"]} == set(states.items())

    undisturbed = start(*[word for word in command if "launcher" not in word], "paths.outputs=b", cwd=tmp_path)
    out, _ = run(*command, cwd=tmp_path)
    assert "Submitted 2 task(s) for 8 run(s)" in out
    end(undisturbed)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    for folder in (tmp_path / "a").glob("runs/*/*/*"):
        assert len(lines(folder)) == len(set(lines(folder))) == 28
        assert status(folder) == "done"


def test_a_preempted_task_resumes_and_a_later_command_waits_for_it(tmp_path: Path) -> None:
    """A task submitted without waiting is preempted by a job of a higher partition; the same command waits for it."""
    command = [*LONG, "benchmark.num_seeds=15", "paths.outputs=a", *ON_SLURM, "launcher.cpus_per_task=4"]
    began = time.monotonic()
    out, _ = run(*command, "launcher.wait=false", cwd=tmp_path)
    assert "Submitted 1 task(s) for 4 run(s) that are not complete; Slurm job(s): " in out
    ((task, runs),) = tasks(tmp_path / "a").items()
    assert f"Slurm job(s): {task}\n" in out
    (submission,) = (tmp_path / "a" / "slurm").iterdir()
    assert slurm("squeue", "-h", "-j", task, "-o", "%j") == f"kvbench-{submission.name}"
    assert "kvbench status a" in out
    assert not any((run / "status.json").is_file() and status(run) == "done" for run in runs), time.monotonic() - began
    until(lambda: all(len(lines(run)) > 1 for run in runs), "the task records")
    before = {run: lines(run) for run in runs}
    slurm("sbatch", "-p", "high", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: state(task) == "PENDING", "preempted and requeued")
    assert {status(run) for run in runs} == {"preempted"}
    waiting = start(*command, cwd=tmp_path)
    slurm("scontrol", "update", f"jobid={task}", "StartTime=now")
    out, _ = end(waiting)
    assert "Submitted 0 task(s)" in out
    for folder, earlier in before.items():
        assert lines(folder)[: len(earlier)] == earlier
        assert len(lines(folder)) == len(set(lines(folder))) == 105
        assert json.loads((folder / "status.json").read_text())["slurm"] == task
    assert "SIGUSR2" in (next(tmp_path.glob("a/slurm/*/*.out"))).read_text()


def test_records_on_disk_decide_and_not_the_state_of_slurm(tmp_path: Path) -> None:
    """A task that did nothing is COMPLETED for Slurm; a run that fails does not fail the others of its task."""
    nothing = start(*SHORT, *ON_SLURM, "launcher.setup=[exit 0]", "paths.outputs=a", cwd=tmp_path)
    args = [word for word in SHORT if not word.startswith(("budget", "method", "seed"))]
    _, log = run(*args, *ON_SLURM, "method=snapkv", "budget=0.01,0.4", "paths.outputs=b", cwd=tmp_path, code=2)
    assert log.splitlines()[-1].startswith("kvbench: budget=0.01 (of "), log
    again, log = run(*args, *ON_SLURM, "method=snapkv", "budget=0.01,0.4", "paths.outputs=b", cwd=tmp_path, code=2)
    assert "Submitted" not in again and "not submitted: snapkv-b0.01-" in log
    assert {run.split("-b")[1][:3]: len(rows) for run, rows in records(tmp_path / "b").items()} == {"0.4": 2}
    _, log = end(nothing, code=1)
    assert log.count("ended early: COMPLETED") == 2
    assert "kvbench: 8 of 8 runs are not complete" in log


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["launcher.partition=nope"], "kvbench: hydra.launcher.partition=nope: Slurm refuses: invalid partition"),
        (
            ["launcher.gpus_per_node=9"],
            "kvbench: hydra.launcher.gpus_per_node=9, hydra.launcher.cpus_per_task=1: Slurm",
        ),
    ],
)
def test_a_refusal_of_slurm_is_one_line(settings: list[str], message: str, tmp_path: Path) -> None:
    _, log = run(*SHORT, *ON_SLURM, *settings, cwd=tmp_path, code=2)
    assert log.splitlines()[-1].startswith(message)
    assert len(log.splitlines()) == 2, log  # the other line counts the jobs and groups
    assert not tasks(tmp_path / "outputs")
