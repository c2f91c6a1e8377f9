"""Launchers and signals, without a cluster: the short form of overrides, plans, and a sweep that gets a signal."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvbench.cli import signals
from kvbench.cli.arguments import check_mode, parse, shell_command
from kvbench.cli.signals import Preempted, preemptible
from kvbench.store import load_run
from tests.helpers import forked

TINY = ["model=tiny", "benchmark.lengths=[300]", "benchmark.max_new_tokens=4", "budget=100", "engine.max_rows=2"]


def kvbench(*args: str, cwd: Path, python: str | None = None, **more: str) -> subprocess.Popen[str]:
    """Issue the command, forked where no `python` is given."""
    words = [python or forked.python(), "-m", "kvbench", *args]
    env = os.environ | more
    return subprocess.Popen(words, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_short_form_of_launchers() -> None:
    assert parse(["launcher=basic", "+launcher.x=1", "launcher.wait=false"]).overrides == [
        "hydra/launcher=basic",
        "+hydra.launcher.x=1",
        "hydra.launcher.wait=false",
    ]
    others = ["model=tiny", "hydra/launcher=fused", "launchers=1", "experiment=launcher=x"]
    parsed = parse([*others, "-m"])
    assert (parsed.flags, parsed.overrides) == (["-m"], others)


def test_the_command_in_a_plan_is_quoted_for_a_shell() -> None:
    assert shell_command(["-m", "benchmark.lengths=[1, 2]"]) == "python -m kvbench -m 'benchmark.lengths=[1, 2]'"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["launcher=fused_slrum"], "hydra/launcher=fused_slrum: no such hydra/launcher. Did you mean 'fused_slurm'?"),
        (
            ["launcher=fused_slurm", "launcher.waits=1"],
            "hydra.launcher.waits=1: launcher=fused_slurm has no setting 'waits'.",
        ),
        (["launcher=basic", "launcher.wait=1"], "hydra.launcher.wait=1: launcher=basic has no setting 'wait'."),
        (["launcher.wait=1"], "hydra.launcher.wait=1: launcher=fused has no setting 'wait'."),
        (["launcher=fused_slurm", "launcher.shards=0"], "hydra.launcher.shards=0: must be an integer of at least 1"),
    ],
)
def test_a_mistake_about_the_launcher_is_one_line(args: list[str], message: str, tmp_path: Path) -> None:
    _, err = (process := kvbench("-m", *TINY, *args, cwd=tmp_path)).communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith(f"kvbench: {message}") and err.count("\n") == 1


def test_a_launcher_for_a_single_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hydra/launcher=basic: launchers are for sweeps; add -m"):
        check_mode(False, ["hydra/launcher=basic"])
    check_mode(True, ["hydra/launcher=basic"])
    check_mode(False, ["hydra.run.dir=x"])
    _, err = (process := kvbench(*TINY, "launcher=basic", cwd=tmp_path)).communicate(timeout=300)
    assert process.returncode == 2
    assert err == "kvbench: hydra/launcher=basic: launchers are for sweeps; add -m (a sweep of one job is fine)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_raises_one_exception(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted) as caught, preemptible():
        try:
            signal.raise_signal(number)
        except Exception:
            pytest.fail("an error handler must not swallow it")
        finally:
            signal.raise_signal(number)  # a second signal while runs are closed
    assert caught.value.code == 128 + number
    assert str(caught.value) == f"ended by {signal.Signals(number).name}"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("seconds", "ends"), [(300, True), (0, False)])
def test_an_import_may_end_before_the_exception(
    seconds: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C++ of torch ends the process if what it imports raises; an import that never ends is left all the same."""
    monkeypatch.setattr(signals, "_IMPORT", float(seconds))
    monkeypatch.setattr(signals, "_AGAIN", 0.05)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "signalled.py").write_text(
        "import signal\nseen = []\nsignal.raise_signal(signal.SIGTERM)\nseen.append('the end')\n"
    )
    done = []
    with pytest.raises(Preempted), preemptible():
        module = importlib.import_module("signalled")
        done += module.seen
        threading.Event().wait(300)
    assert done == (["the end"] if ends else [])
    sys.modules.pop("signalled", None)


def test_signal_handlers_stay_unchanged_outside_the_main_thread() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def within() -> None:
        with preemptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_sweep_that_gets_a_signal_reports_it_and_resumes(tmp_path: Path) -> None:
    """After SIGTERM, the plan is kept and open runs are preempted; the same command resumes them."""
    args = ["-m", *TINY, "method=snapkv,h2o", "benchmark.num_seeds=4"]
    process = kvbench(*args, cwd=tmp_path, python=sys.executable)
    limit = time.monotonic() + 300
    while not all(len(load_run(f).samples) > 1 for f in folders(tmp_path)) or len(folders(tmp_path)) < 2:
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "kvbench: preempted, ended by SIGTERM; issue the same command again to resume"
    assert "Traceback" not in err
    assert {load_run(folder).status["status"] for folder in folders(tmp_path)} == {"preempted"}
    (plan,) = (tmp_path / "outputs" / "plans").glob("*.json")
    content = json.loads(plan.read_text())
    assert content["command"] == shell_command(args)
    assert sorted((tmp_path / "outputs" / run["folder"]).resolve() for run in content["runs"]) == folders(tmp_path)
    part = {folder: [record["id"] for record in load_run(folder).samples] for folder in folders(tmp_path)}
    assert all(len(ids) < 28 for ids in part.values())

    process = kvbench(*args, cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for folder, ids in part.items():
        lines = [json.loads(line)["id"] for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert set(lines[: len(ids)]) == set(ids)
        assert len(lines) == len(set(lines)) == 28
        assert load_run(folder).status["status"] == "done"
    assert plan.exists() and len(list(plan.parent.glob("*.json"))) == 1


def folders(root: Path) -> list[Path]:
    return sorted(file.parent.resolve() for file in root.glob("outputs/runs/*/*/*/manifest.json"))


def test_a_mistake_in_the_last_job_leaves_no_plan(tmp_path: Path) -> None:
    process = kvbench("-m", *TINY[:-2], "budget=64,2.5", cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith("kvbench: budget=2.5: a share must lie in (0, 1]") and err.count("\n") == 1
    assert not (tmp_path / "outputs" / "plans").exists()


def test_without_slurm_its_launcher_says_where_to_submit(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("python3", "env"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    process = kvbench("-m", *TINY, "launcher=fused_slurm", cwd=tmp_path, PATH=str(tmp_path / "bin"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith("kvbench: hydra/launcher=fused_slurm: there is no sbatch on this machine; submit on a login")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
def test_a_large_group_needs_more_open_files_than_shells_allow(tmp_path: Path, hard: bool) -> None:
    """The soft limit is raised. Where the hard one is too low, the message is about it, and not about the folder."""
    limit = "ulimit -n 40" if hard else "ulimit -S -n 40"
    words = ["-m", *TINY[:-2], "limit=1", "benchmark.depths=[50]", "method=h2o", "'budget=range(64,88)'"]
    command = f"{limit}; exec {forked.python()} -m kvbench {' '.join(words)}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == (2 if hard else 0), done.stderr
    assert ("kvbench: too many open files: a sweep holds at least two per run, and 40 are" in done.stderr) == hard
    assert "cannot write" not in done.stderr and "move the folder away" not in done.stderr
