"""Locks of run folders: which writers may work at the same time, and what happens to the others."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kvbench.store import load_runs, locks
from kvbench.store.locks import writers
from tests.helpers.store_runs import child, open_run

KINDS = [None, (1, 2), (2, 2), (1, 3)]


def may_share(first: Any, second: Any) -> bool:
    return first is not None and second is not None and first[1] == second[1] and first != second


@pytest.mark.parametrize("held", KINDS)
def test_which_writers_may_share_a_folder(tmp_path: Path, held: tuple[int, int] | None) -> None:
    run = open_run(tmp_path, shard=held)
    code = f"""
        for shard in {KINDS}:
            try:
                open_run(Path(sys.argv[1]), shard=shard, wait=False).close()
                print("opened")
            except ValueError as error:
                print(error)
    """
    for holding in (True, False):
        other = child(code, tmp_path)
        lines = other.communicate(timeout=300)[0].splitlines()
        refused = f"{run.path}: another process is writing this run"
        assert lines == ["opened" if may_share(held, kind) or not holding else refused for kind in KINDS]
        assert writers(run.path) == ([{None: "", (1, 2): "1of2", (2, 2): "2of2", (1, 3): "1of3"}[held]] * holding)
        run.close()


@pytest.mark.parametrize(("holder", "waiter"), [((1, 2), None), (None, (1, 2)), ((1, 2), (1, 3)), ((1, 2), (1, 2))])
def test_a_rival_waits_and_a_killed_one_blocks_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, holder: Any, waiter: Any
) -> None:
    code = f"""
        import time
        run = open_run(Path(sys.argv[1]), shard={holder})
        run.append(record("a"))
        print("open", flush=True)
        time.sleep(600)
    """
    process = child(code, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    with pytest.raises(ValueError, match=r"another process still writes this run after 0\.1 s"):
        open_run(tmp_path, shard=waiter, timeout=0.1)
    assert caplog.messages[-1].startswith("waiting for another process that is writing ")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open_run(tmp_path, shard=waiter, timeout=5) as run:
        assert run.done_ids() == {"a"}


def test_no_two_rivals_ever_work_at_the_same_time(tmp_path: Path) -> None:
    """Four processes open and close all kinds of shards; each leaves a mark while it is at work."""
    code = f"""
        import logging, random, time
        from kvbench.store import locks
        logging.disable(logging.WARNING)
        is_held = locks._is_held
        # time for rivals between the looks and the taking
        locks._is_held = lambda *a: (is_held(*a), time.sleep(0.005))[0]
        marks = Path(sys.argv[1]) / "marks"
        random.seed(int(sys.argv[2]))
        (marks.parent / f"ready {{sys.argv[2]}}").touch()  # all start together, however busy the machine is
        while len(list(marks.parent.glob("ready *"))) < 4:
            time.sleep(0.01)
        for turn in range(25):
            kind = random.choice({KINDS})
            partner = None
            if turn == 0 and sys.argv[2] in "01":  # these two meet, so that some work at the same time in every run
                kind, partner = (int(sys.argv[2]) + 1, 2), marks.parent / f"met {{1 - int(sys.argv[2])}}"
            with open_run(Path(sys.argv[1]), shard=kind):
                mark = marks / f"{{kind}} {{sys.argv[2]}}"
                mark.touch()
                time.sleep(random.random() / 20)
                (marks.parent / f"met {{sys.argv[2]}}").touch()
                while partner is not None and not partner.exists():
                    time.sleep(0.01)
                print(kind, "|", *(m.name.rpartition(" ")[0] for m in marks.iterdir() if m != mark), sep=";")
                mark.unlink()
    """
    (tmp_path / "marks").mkdir()
    workers = [child(code, tmp_path, seed) for seed in range(4)]
    seen = 0
    for worker in workers:
        output, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
        assert len(output.splitlines()) == 25
        for line in output.splitlines():
            own, _, *others = line.split(";")
            assert all(may_share(eval(own), eval(other)) for other in others), line
            seen += len(others)
    assert seen > 0, "no two worked at the same time"


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ValueError) as error:
        open_run(tmp_path)
    assert str(error.value).startswith("paths.outputs: ") and "has no file locks" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_looking_for_writers_disturbs_none_and_makes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert writers(empty) == [] and list(empty.iterdir()) == []
    assert writers(tmp_path / "none") == []
    run = open_run(tmp_path, shard=(2, 3))
    looker = child(
        """
        from kvbench.store.locks import writers
        print("look", flush=True)
        while True:
            writers(Path(sys.argv[1]))
        """,
        run.path,
    )
    run.close()
    try:
        assert looker.stdout is not None and looker.stdout.readline() == "look\n"
        for _ in range(100):  # never "another process is writing this run"
            open_run(tmp_path, shard=(2, 3), wait=False).close()
    finally:
        looker.kill()
        looker.communicate()


def test_two_shards_and_a_whole_on_two_folders_all_come_to_an_end(tmp_path: Path) -> None:
    """All three open both folders before they record, as the runner does; nothing is lost or recorded twice."""
    code = """
        import logging, random, time
        from contextlib import ExitStack
        logging.disable(logging.WARNING)
        root, shard = Path(sys.argv[1]), None if sys.argv[2] == "0" else (int(sys.argv[2]), 2)
        names = [f"s{i}" for i in range(6)][slice(None) if shard is None else slice(shard[0] - 1, None, 2)]
        with ExitStack() as stack:
            runs = [
                stack.enter_context(open_run(root, **budgeted(budget), shard=shard, num_samples=6))
                for budget in ("1", "2")
            ]
            for name in names:
                for run in runs:
                    if name not in run.done_ids():
                        run.append(record(name))
                time.sleep(random.random() / 100)
            for run in runs:
                run.finish()
    """
    for turn in range(3):
        workers = [child(code, tmp_path / str(turn), shard) for shard in (1, 2, 0)]
        assert [worker.communicate(timeout=300)[1] for worker in workers] == ["", "", ""]
        for run in load_runs(tmp_path / str(turn)):
            assert run.progress.is_done and run.progress.recorded == 6
            assert sum(file.read_bytes().count(b"\n") for file in run.path.glob("samples*.jsonl")) == 6


def test_a_process_suspended_while_it_opens_a_folder_makes_nobody_wait_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path)
    run.close()
    opener = child(
        """
        import time
        from kvbench.store import locks
        with locks._gate(Path(sys.argv[1]), None):
            print("inside", flush=True)
            time.sleep(600)
        """,
        run.path,
    )
    try:
        assert opener.stdout is not None and opener.stdout.readline() == "inside\n"
        opener.send_signal(signal.SIGSTOP)
        with pytest.raises(ValueError, match=r"another process still writes this run after 0\.2 s"):
            open_run(tmp_path, timeout=0.2)
        monkeypatch.setattr(locks, "_OPENING", 0.2)
        with pytest.raises(ValueError, match="another process is writing this run"):
            open_run(tmp_path, wait=False)
        monkeypatch.setattr(locks, "_LOOKING", 0.2)
        assert writers(run.path) is None, "unknown"
    finally:
        opener.kill()
        opener.communicate()
    open_run(tmp_path, timeout=5).close()


@pytest.mark.parametrize("name", [".lock-open", ".lock", ".lock-1of2"])
def test_what_is_no_lock_file_is_named(tmp_path: Path, name: str) -> None:
    """A pipe would block whoever opens it, and a link could point outside."""
    run = open_run(tmp_path)
    run.close()
    (run.path / name).unlink(missing_ok=True)
    for put in (os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)):
        put(run.path / name)
        with pytest.raises(ValueError, match=rf"{name}: not a lock file; delete it"):
            open_run(tmp_path, wait=False)
        assert writers(run.path) is None
        (run.path / name).rmdir() if (run.path / name).is_dir() else (run.path / name).unlink()
