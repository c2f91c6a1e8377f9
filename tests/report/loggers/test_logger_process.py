"""The process of the loggers never blocks, slows or fails a run: hanging, raising, a full disk, a kill."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvbench.report.loggers import live
from kvbench.report.loggers.live import Process, following
from kvbench.report.loggers.order import Order
from kvbench.store import load_runs, run_folder
from tests.helpers.fake_runs import FakeRun, make_run, store_run
from tests.helpers.logged_stores import ROOT, clean, order, run_order, stand_in
from tests.helpers.wandb_log import read_logged

RUN = make_run("snapkv", "0.2", 1.0, lengths=[500], depths=[0, 50, 100])
HANGS = "time.sleep(1000)"
RAISES = "raise RuntimeError('no\\nW&B today')"
FULL = "raise OSError(errno.ENOSPC, 'No space left on device')"
DIES = "os.kill(os.getpid(), 9)"


def folder_of(outputs: Path, run: FakeRun = RUN) -> Path:
    return run_folder(outputs / "runs", run.manifest["label"], run.manifest["identity"])


def environment(monkeypatch: pytest.MonkeyPatch, *first: Path) -> None:
    """Set the environment for the process: no key, and some folders to import from first."""
    for name, value in clean({"WANDB_MODE": "offline"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, first), os.environ["PYTHONPATH"]]))


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("init", [HANGS, RAISES, FULL, DIES], ids=["hangs", "raises", "disk full", "dies"])
def test_a_run_does_not_feel_its_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, init: str
) -> None:
    """The results are complete, the command says in a line how to repair, and it does; nothing waits for a hang."""
    environment(monkeypatch, stand_in(tmp_path, init))
    monkeypatch.setattr(live, "PATIENCE", 1.0)
    processes: list[Process] = []
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    monkeypatch.setattr(live, "Order", partial(Order, pause=0.1))
    monkeypatch.setattr(
        live, "Process", lambda *given, **more: processes.append(Process(*given, **more)) or processes[0]
    )
    with caplog.at_level("INFO"), following(tmp_path, [folder_of(tmp_path)], {"wandb": {}}):
        store_run(tmp_path / "runs", RUN)
        assert naps == [], "the run itself waits for nothing"
        end = time.monotonic() + 300
        while not any("needle" in str(event.get("begin")) for event in processes[0].events):
            assert time.monotonic() < end, processes[0].lines()
            time.sleep(0.05)
        time.sleep(1.2 if init == HANGS else 0)
    assert init != HANGS or naps == [], "it hung before the runs ended, and nobody waits for it"
    (stored,) = load_runs(tmp_path)
    assert stored.progress.is_done
    assert f"kvbench log {tmp_path} logger=wandb" in caplog.text and "Traceback" not in caplog.text
    if init == HANGS:
        os.kill(processes[0].pid, signal.SIGKILL)
    done = run_order(order(tmp_path, wandb=True), PYTHONPATH=str(ROOT))  # with the real W&B
    assert done.returncode == 0, done.stderr
    (run,) = read_logged(tmp_path).values()
    assert len(run.tables["samples"]["data"]) == 3


def test_a_live_run_is_followed_killed_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed while it writes; `kvbench log` replaces what it left, and nothing is there twice."""
    environment(monkeypatch)
    given = Order(str(tmp_path), str(tmp_path), [str(folder_of(tmp_path))], {"wandb": {}}, live=True, pause=0.1)
    process = Process(given)
    store_run(tmp_path / "runs", RUN, samples=2)
    end = time.monotonic() + 300
    while not list(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        assert time.monotonic() < end and process.status is None, process.lines()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.told()
    store_run(tmp_path / "runs", RUN_REST)
    assert run_order(order(tmp_path, wandb=True)).returncode == 0
    (run,) = read_logged(tmp_path).values()
    assert [row["recorded"] for row in run.history if "recorded" in row] == [1, 2, 3]
    assert len(run.tables["samples"]["data"]) == 3


RUN_REST = FakeRun(RUN.manifest, RUN.samples[2:])


def test_the_process_survives_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is killed closes its end of the pipe: what it has recorded is logged."""
    environment(monkeypatch)
    store_run(tmp_path / "runs", RUN)
    process = Process(Order(str(tmp_path), str(tmp_path), [str(folder_of(tmp_path))], {"wandb": {}}, live=True))
    process.hang_up()
    (line,) = process.told()
    assert line.startswith("W&B: offline in")
    assert process.status == 0 and len(read_logged(tmp_path)) == 1
    assert ended(process.pid)


def test_a_missing_package_is_a_line_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda name: None)
    with following(tmp_path, [folder_of(tmp_path)], {"wandb": {}}):
        store_run(tmp_path / "runs", RUN)
    assert "pip install 'kvbench[wandb]', then: kvbench log" in caplog.text
    assert load_runs(tmp_path)[0].progress.is_done


def test_an_error_of_the_run_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, stand_in(tmp_path, RAISES))
    monkeypatch.setattr(live, "PATIENCE", 0.0)
    with pytest.raises(ZeroDivisionError), following(tmp_path, [folder_of(tmp_path)], {"wandb": {}}):
        _ = 1 / 0
