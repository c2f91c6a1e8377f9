"""The store under torn lines, kills, rivals and full disks: no sample is lost and none is there twice."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvbench.common.files import write_atomic
from kvbench.common.line_file import LineFile
from kvbench.store import load_run, locks
from tests.helpers.store_runs import child, ids, open_run, record


def test_every_cut_of_the_file_loses_only_the_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(tmp_path)
    for name in ("a", "b", "c"):
        run.append(record(name, prediction="7"))
    run.close()
    file = run.path / "samples.jsonl"
    whole = file.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        caplog.clear()
        file.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert [sample["id"] for sample in load_run(run.path).samples] == ["a", "b", "c"][:kept]
        assert file.read_bytes() == whole[:cut]  # reading changes nothing
        with open_run(tmp_path) as again:
            assert again.done_ids() == set("abc"[:kept])
            assert file.read_bytes() == whole[: ([0, *ends])[kept]]
            assert ("dropped a torn last line" in caplog.text) == (cut not in (0, *ends))
            for name in "abc"[kept:]:
                again.append(record(name, prediction="7"))
        assert file.read_bytes() == whole


def test_a_last_line_of_rubbish_is_torn_but_not_one_in_the_middle(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    run.close()
    file = run.path / "samples.jsonl"
    good = file.read_bytes()
    file.write_bytes(good + b'{"id": "b", "st\0\0\n')
    with open_run(tmp_path) as again:
        assert again.done_ids() == {"a"} and file.read_bytes() == good
    for bad in (b"{rubbish\n" + good, good + b"\n" + good, good + b"{rubbish\n{unfinished"):
        file.write_bytes(bad)
        number = 1 if bad.startswith(b"{r") else 2
        for use in (lambda: open_run(tmp_path), lambda: load_run(run.path)):
            with pytest.raises(ValueError, match=rf"samples\.jsonl, line {number}: not valid JSON"):
                use()
        assert file.read_bytes() == bad
    file.write_bytes(good + b"[1]\n")
    with pytest.raises(ValueError, match=r"line 2: \[1\] is not an object"):
        open_run(tmp_path, wait=False)  # the failed openings above released the lock


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"status": "ok"}, "needs an id"),
        ({"id": "a"}, "a status: ok, oom, failed"),
        ({"id": "a", "status": "ok", "scores": {"recall": float("nan")}}, r"a\.scores\.recall: nan"),
    ],
)
def test_a_record_that_cannot_be_stored_leaves_no_trace(tmp_path: Path, bad: dict, message: str) -> None:
    with open_run(tmp_path) as run:
        with pytest.raises(ValueError, match=message):
            run.append(bad)
        assert (run.path / "samples.jsonl").read_bytes() == b""
        run.append(record("a"))
    with pytest.raises(ValueError, match="the run is closed"):
        run.append(record("b"))


def test_killed_again_and_again_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """SIGKILL a writer at ten moments; every id whose append returned must be on file, once."""
    code = """
        with open_run(Path(sys.argv[1])) as run:
            done = run.done_ids()
            for i in range(int(sys.argv[2])):
                if f"s{i}" not in done:
                    run.append(record(f"s{i}", filler="x" * (i % 7) * 10_000))
                    print(f"s{i}", flush=True)
            run.set_status("done")
    """
    returned: set[str] = set()
    for attempt in range(10):
        writer = child(code, tmp_path, 1_000_000)  # more than it will ever write
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(1 + 3 * attempt)]
        time.sleep(0.001 * attempt)
        writer.kill()
        rest, errors = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, errors
        returned |= {line.strip() for line in [*lines, *rest.splitlines(True)] if line.endswith("\n")}
        [path] = (tmp_path / "needle" / "tiny").iterdir()
        assert returned <= {sample["id"] for sample in load_run(path).samples}
    assert len(returned) >= sum(1 + 3 * attempt for attempt in range(10))
    total = len(load_run(path).samples) + 20
    finisher = child(code, tmp_path, total)
    output, errors = finisher.communicate(timeout=300)
    assert finisher.returncode == 0, errors
    assert output.split() == [f"s{i}" for i in range(total - 20, total)]
    assert ids(path) == [f"s{i}" for i in range(total)]
    assert load_run(path).status["status"] == "done"


def test_two_processes_share_the_work_of_one_run(tmp_path: Path) -> None:
    code = """
        import logging
        logging.basicConfig(format="%(message)s")
        with open_run(Path(sys.argv[1])) as run:
            for i in range(20):
                if f"s{i}" not in run.done_ids():
                    run.append(record(f"s{i}"))
            run.set_status("done")
    """
    held = open_run(tmp_path)
    for wait in (True, False):  # waiting for oneself would never end
        with pytest.raises(ValueError, match="this process is already writing this run"):
            open_run(tmp_path, wait=wait)
    refused = child("open_run(Path(sys.argv[1]), wait=False)", tmp_path)
    errors = refused.communicate(timeout=300)[1]
    assert errors.splitlines()[-1] == f"ValueError: {held.path}: another process is writing this run"
    writers = [child(code, tmp_path) for _ in range(2)]
    for writer in writers:
        assert writer.stderr is not None
        assert writer.stderr.readline() == f"waiting for another process that is writing {held.path}\n"
    held.append(record("s3"))
    held.close()
    outputs = [writer.communicate(timeout=300) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    assert sorted(ids(held.path)) == sorted(f"s{i}" for i in range(20))


def test_a_timeout_ends_the_wait(tmp_path: Path) -> None:
    holder = child(
        """
        run = open_run(Path(sys.argv[1]))
        print("open", flush=True)

        import time
        time.sleep(600)
        """,
        tmp_path,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "open\n"
    with pytest.raises(ValueError, match=r"still writes this run after 0\.2 s"):
        open_run(tmp_path, timeout=0.2)
    holder.kill()
    holder.communicate()
    open_run(tmp_path, timeout=5).close()  # a dead process holds no lock


def test_a_full_disk_keeps_whole_lines_and_names_the_folder(tmp_path: Path) -> None:
    """A file size limit takes a part of a line and refuses the remainder, as a full disk does."""
    writer = child(
        """
        import resource
        run = open_run(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        for i in range(10):
            try:
                run.append(record(f"s{i}", filler="x" * 900))
            except OSError as error:
                print(i, error)
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run.append(record("small"))  # space was made: the same process may go on
        """,
        tmp_path,
    )
    output, errors = writer.communicate(timeout=300)
    assert writer.returncode == 0, errors
    [path] = (tmp_path / "needle" / "tiny").iterdir()
    assert output == f"4 [Errno 27] File too large; the sample s4 is not recorded: '{path}/samples.jsonl'\n"
    assert ids(path) == ["s0", "s1", "s2", "s3", "small"]


def test_when_the_torn_line_cannot_be_cut_the_run_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(tmp_path)
    run.append(record("a"))
    whole = (run.path / "samples.jsonl").read_bytes()
    write, parts = os.write, []

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    def write_part(fd: int, data: bytes) -> int:
        if parts:
            fail()
        parts.append(data[:10])
        return write(fd, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        patch.setattr(os, "write", write_part)
        with pytest.raises(OSError, match="the sample b is not recorded"):
            run.append(record("b"))
    assert (run.path / "samples.jsonl").read_bytes() == whole + parts[0]
    assert "could not cut off a torn last line" in caplog.text
    with pytest.raises(ValueError, match="the run is closed"):
        run.append(record("c"))
    run.close()
    with caplog.at_level(logging.WARNING), open_run(tmp_path) as again:
        assert again.done_ids() == {"a"} and (run.path / "samples.jsonl").read_bytes() == whole


def test_an_interrupt_in_the_middle_of_a_line_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as run:
        run.append(record("a"))
        whole = (run.path / "samples.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            run.append(record("b"))
    assert (run.path / "samples.jsonl").read_bytes() == whole
    assert yaml.safe_load((run.path / "status.json").read_text())["status"] == "preempted"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets, in order, what is synced ("sync NAME") and renamed ("name NAME")."""
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def tell_fsync(fd: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def tell_replace(source: Any, target: Any) -> None:
        events.append(f"name {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    monkeypatch.setattr(os, "replace", tell_replace)
    return events


def test_a_loss_of_power_takes_nothing_that_was_written(tmp_path: Path, syncs: list[str]) -> None:
    """A file is on disk before it takes its name, its name after that; so is a cut, a new file's name, and a line."""
    write_atomic(tmp_path / "a.json", "{}")
    assert [event.partition(".json")[0] for event in syncs] == ["sync .a", "name a", f"sync {tmp_path.name}"]
    syncs.clear()
    lines = LineFile(tmp_path / "b.jsonl", 0, 0)
    assert syncs == [f"sync {tmp_path.name}"]
    lines.append(b"1\n")
    assert syncs[1:] == ["sync b.jsonl"]
    lines.close()
    (tmp_path / "b.jsonl").write_bytes(b"1\n2")
    syncs.clear()
    LineFile(tmp_path / "b.jsonl", 2, 1).close()
    assert syncs == ["sync b.jsonl", f"sync {tmp_path.name}"]


def test_a_read_only_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder on a file system that became read-only: reading goes on, opening says what is wrong."""
    with open_run(tmp_path) as run:
        run.append(record("a"))
    really_open = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return really_open(path, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(ValueError) as error:
            open_run(tmp_path)
        text = str(error.value)
        assert text.startswith(f"paths.outputs: cannot write {run.path}/") and text.endswith(" (Read-only file system)")
        assert [sample["id"] for sample in load_run(run.path).samples] == ["a"]
        assert locks.writers(run.path) == []
    open_run(tmp_path, wait=False).close()  # the failed opening holds no lock


def test_a_disk_that_is_full_at_the_opening_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file does not fit any more, the folder is free again and the next opening goes on."""
    real, names = os.replace, []
    for number in range(3):  # config.yaml, manifest.json, status.json

        def full(source: Any, target: Any, number: int = number) -> None:
            names.append(Path(target).name)
            if len(names) > number:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(ValueError, match=r"^paths.outputs: cannot write .*(json|yaml) \(No space left"):
                open_run(tmp_path / str(number))
        assert names == ["config.yaml", "manifest.json", "status.json"][: number + 1]
        names.clear()
        assert not list(tmp_path.rglob("*.tmp"))
        with open_run(tmp_path / str(number), wait=False) as run:
            run.append(record("a"))
        assert [sample["id"] for sample in load_run(run.path).samples] == ["a"]


def test_a_forked_child_does_not_hold_a_folder_that_was_released(tmp_path: Path) -> None:
    """A data loader that was forked while a run was open has the same open files, and may outlive the run."""
    run = open_run(tmp_path)
    done, hold = os.pipe()
    child_id = os.fork()
    if child_id == 0:
        os.close(hold)
        os.read(done, 1)  # until the parent has closed its end
        os._exit(0)
    os.close(done)
    try:
        run.close()
        open_run(tmp_path, wait=False).close()
    finally:
        os.close(hold)
        os.waitpid(child_id, 0)
