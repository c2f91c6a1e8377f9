"""`python -m kvbench` when disks are full, folders taken or read-only: one clear line, and the next attempt goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvbench.store import load_runs
from kvbench.store.locks import opening
from tests.helpers import forked

pytestmark = pytest.mark.slow

SWEEP = [
    "-m", "model=tiny", "benchmark.lengths=[280,300]", "benchmark.depths=[0,25,50,75,100]",
    "benchmark.max_new_tokens=5", "method=snapkv,h2o", "budget=100", "progress=false",
]  # fmt: skip


def start(
    cwd: Path, *more: str, file_size: int | None = None, python: str | None = None, **env: str
) -> subprocess.Popen[str]:
    """Issue the command, forked where no `python` is given.

    `file_size` bytes are the most that a file may have, as if the disk were full.
    """

    def limit() -> None:
        assert file_size is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))

    return subprocess.Popen(
        [python or forked.python(), "-m", "kvbench", *SWEEP, *more],
        cwd=cwd, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=limit if file_size else None,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err.splitlines()


def work(outputs: Path) -> dict[str, Any]:
    """Return the records without clock times and the batch that a row was in."""
    lines = [(file.parent.name, json.loads(line)) for file in samples(outputs) for line in file.open()]
    assert len({(run, record["id"]) for run, record in lines}) == len(lines), "a sample is recorded twice"
    volatile = {"time", "timings", "rows", "slack_bytes"}
    return {f"{run} {r['id']}": {k: v for k, v in r.items() if k not in volatile} for run, r in lines}


def samples(outputs: Path) -> list[Path]:
    return sorted(outputs.glob("runs/*/*/*/samples*.jsonl"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sweep without trouble, started and not forked."""
    folder = tmp_path_factory.mktemp("calm")
    status, _, err = end(start(folder, python=sys.executable))
    assert status == 0, err
    records = work(folder / "outputs")
    assert len(records) == 2 * 10
    return records


def test_a_full_disk(tmp_path: Path, calm: dict[str, Any]) -> None:
    """First no record fits any more, then no picture; with space, the same command ends well."""
    outputs = tmp_path / "outputs"
    status, _, err = end(start(tmp_path, file_size=7000))
    assert status == 2
    assert err[-1].startswith(f"kvbench: paths.outputs: cannot write {outputs}/runs/needle/tiny/")
    assert "/samples.jsonl (File too large; the sample len00" in err[-1] and err[-1].endswith("is not recorded)")
    kept = work(outputs)
    assert 0 < len(kept) < len(calm) and kept.items() <= calm.items()
    assert {run.status["status"] for run in load_runs(outputs)} <= {"failed", "preempted"}
    status, out, err = end(start(tmp_path, file_size=16_000))
    assert work(outputs) == calm and "| snapkv" in out
    assert (
        status == 2
        and "outputs/reports/" in err[-1]
        and err[-1].endswith((".pdf (File too large)", ".png (File too large)"))
    )
    status, out, err = end(start(tmp_path))
    assert status == 0, err
    assert work(outputs) == calm and not list(outputs.rglob("*.tmp"))
    assert {run.status["status"] for run in load_runs(outputs)} == {"done"}


def test_two_processes_on_the_same_runs(tmp_path: Path, calm: dict[str, Any]) -> None:
    """Both wait for a third, then one computes and the other finds everything done. A torn line is in the way, too."""
    outputs = tmp_path / "outputs"
    status, _, err = end(start(tmp_path, "limit=1"))
    assert status == 0, err
    files = samples(outputs)
    for file in files:
        file.write_bytes(file.read_bytes() + b'{"id": "len00280-depth050-se')
    with opening(files[0].parent, None, wait=False, timeout=None) as held:
        pass  # held from here on, until it is released
    pair = [start(tmp_path), start(tmp_path)]
    for process in pair:
        assert process.stderr is not None
        while "waiting for another process that is writing" not in (line := process.stderr.readline()):
            assert line, "ended without waiting"
    held.release()
    ended = [end(process) for process in pair]
    assert [status for status, _, _ in ended] == [0, 0]
    assert ended[0][1] == ended[1][1] and "| snapkv" in ended[0][1]
    assert sum("dropped a torn last line of 28 bytes" in line for _, _, err in ended for line in err) == len(files)
    assert work(outputs) == calm


def test_two_shards_share_the_runs(tmp_path: Path, calm: dict[str, Any]) -> None:
    pair = [start(tmp_path, f"shard={i}/2") for i in (1, 2)]
    for process in pair:
        status, _, err = end(process)
        assert status == 0, err
    assert work(tmp_path / "outputs") == calm
    names = {file.name for file in samples(tmp_path / "outputs")}
    assert names == {"samples-1of2.jsonl", "samples-2of2.jsonl"}
    for run in load_runs(tmp_path / "outputs"):
        assert run.status["status"] == "done" and run.status["recorded"] == 10
        counts = [file.read_text().count("\n") for file in sorted(run.path.glob("samples-*"))]
        assert counts == [5, 5]
    before = {file: file.stat().st_mtime_ns for file in samples(tmp_path / "outputs")}
    status, _, err = end(start(tmp_path))
    assert status == 0 and sum("10 of 10 samples recorded, nothing to compute" in line for line in err) == 2
    assert before == {file: file.stat().st_mtime_ns for file in samples(tmp_path / "outputs")}


def test_an_unwritable_cache_is_one_line(tmp_path: Path) -> None:
    status, _, err = end(start(tmp_path, "model=smollm2_135m", KVBENCH_CACHE="/proc/kvbench"))
    assert status == 2
    assert err[-1].startswith("kvbench: KVBENCH_CACHE=/proc/kvbench: this folder cannot be written (")
    assert err[-1].endswith("set it to another one")
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.mark.parametrize("root", ["/proc/kvbench", "file/outputs"])
def test_outputs_that_cannot_be_written_are_one_line(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    status, _, err = end(start(tmp_path, f"paths.outputs={root}"))
    assert status == 2
    assert err[-1].startswith(f"kvbench: paths.outputs: cannot write {root}") and len(err) == 1, err
