"""`kvbench log` and `scripts/wandb_sync`: mistakes as one line, and what they ask W&B for; an agent's command runs."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kvbench.report.loggers import sync
from kvbench.run import log
from tests.helpers.logged_stores import ROOT, clean, needle_runs, order, run_order, write_store
from tests.helpers.wandb_log import read_logged


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{store}", "logger=none"], "logger=none: choose where to log, such as logger=wandb"),
        (["{store}", "logger=wand"], "logger=wand: no such logger. Did you mean 'wandb'?"),
        (["{store}", "budget=3"], "budget=3: kvbench log takes logger=… and logger.NAME.SETTING=… alone"),
        (["{store}", "logger=wandb", "logger.wandb.mode=on"], "logger.wandb.mode=on: must be one of"),
        (["{store}", "logger=wandb,trackio"], "logger=wandb,trackio: takes one value"),
        (["{store}/nothing", "logger=wandb"], "no runs there"),
        (["{store}"], "the following arguments are required"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    write_store(tmp_path, needle_runs()[:1])
    assert log.main([argument.format(store=tmp_path) for argument in arguments]) == 2
    (said_line,) = capsys.readouterr().err.splitlines()
    assert line in said_line


def test_a_missing_package_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_store(tmp_path, needle_runs()[:1])
    assert log.main([str(tmp_path), "logger=wandb"]) == 2
    assert capsys.readouterr().err == "kvbench: logger=wandb: wandb is not installed; pip install 'kvbench[wandb]'\n"


def test_outputs_that_cannot_be_written_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not a warning for each entry, after which the command would be recommended once more."""
    pytest.importorskip("wandb")
    write_store(tmp_path / "runs", needle_runs()[:1])
    (tmp_path / "file").touch()
    monkeypatch.setattr(log, "Process", lambda *_, **__: pytest.fail("nothing is logged"))
    with monkeypatch.context() as patch:
        patch.setattr(log, "TemporaryFile", _read_only)
        assert log.main([str(tmp_path), "logger=wandb"]) == 2
    line = f"kvbench: {tmp_path}: the files of the loggers cannot be written there (Read-only file system); "
    assert capsys.readouterr().err == line + "choose another folder with --out\n"
    assert log.main([str(tmp_path), "logger=wandb", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "/file/x: the files of the loggers cannot be written there (Not a directory)" in capsys.readouterr().err


def _read_only(dir: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(dir))


@pytest.mark.parametrize("below", ["", "runs", "runs/needle"])
def test_files_go_to_the_outputs_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "runs" / "needle").mkdir(parents=True)
    assert log._outputs(tmp_path / below) == tmp_path


def test_complete_runs_are_uploaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`wandb sync` gets each folder; later it may be deleted, and `kvbench log` does not write it again."""
    write_store(tmp_path, needle_runs()[:1])
    given = order(tmp_path, wandb={"mode": "offline"})
    assert run_order(given).returncode == 0
    calls: list[list[str]] = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sync.subprocess, "run", run)
    (logged,) = read_logged(tmp_path).values()
    assert sync.main([str(tmp_path), "--dry-run"]) == 0 and not calls
    assert sync.main([str(tmp_path)]) == 0 and sync.main([str(tmp_path)]) == 0
    assert calls == [[sys.executable, "-m", "wandb", "sync", str(logged.folder)]]
    assert "0 run(s) to upload" in capsys.readouterr().out
    for file in sorted(logged.folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    monkeypatch.undo()
    assert run_order(given).returncode == 0
    assert not list(logged.folder.rglob("*.wandb"))


def test_the_script_of_sync_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "wandb_sync"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no folder `wandb` there" in done.stderr


@pytest.mark.slow
def test_the_command_of_an_agent_runs(tmp_path: Path, wait_for: Callable[..., None]) -> None:
    """An agent of `scripts/wandb_sweep.yaml` would run it; on a tiny model, it gives one run with the agent's id."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    chosen = {
        key: {"value": node.get("value", node.get("values", [None])[0])} for key, node in sweep["parameters"].items()
    }
    chosen |= {"model": {"value": "tiny"}, "benchmark": {"value": "needle_1k"}}
    small = {"benchmark.lengths": "[200]", "benchmark.depths": "[0,100]", "paths.outputs": str(tmp_path)}
    macros = create_sweep_command_args({"args": chosen | {key: {"value": value} for key, value in small.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [sweep["program"]]}
    command: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        command += macros[word[2:-1]] if word.startswith("${") else [word]
    environment = clean({"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "agent7", "WANDB_MODE": "offline"})
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: [*tmp_path.glob("wandb/kvbench/*/*/entry.json")] and _is_complete(tmp_path))
    (run,) = read_logged(tmp_path).values()
    assert run.id == "agent7" and len(run.tables["samples"]["data"]) == 6, "two depths, three seeds"
    assert run.config["method"] == chosen["method"]["value"] and "score" in run.summary
    tails = [row[run.tables["samples"]["columns"].index("prompt_tail")] for row in run.tables["samples"]["data"]]
    assert all("magic number" in tail for tail in tails)


def _is_complete(outputs: Path) -> bool:
    files = outputs.glob("wandb/kvbench/*/*/entry.json")
    return all(json.loads(file.read_text())["complete"] for file in files)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until a condition holds; the process of the loggers may outlive its command on a busy machine."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    return wait
