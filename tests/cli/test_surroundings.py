"""The command in odd surroundings: it works, or it is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

WORDS = [
    "model=tiny",
    "method=snapkv",
    "budget=100",
    "progress=false",
    "benchmark.lengths=[300]",
    "benchmark.depths=[0,100]",
    "benchmark.max_new_tokens=5",
]


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment with changes; None takes a variable out."""
    merged = {**os.environ, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Case:
    """Surroundings, and what the command does in them."""

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    outputs: str = "out"
    folder: str = "out"  # where the records are
    code: int = 0
    message: str = ""

    def __str__(self) -> str:
        return self.name


ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
NOTHING_THERE = {"HOME": None, "KVBENCH_CACHE": None, "TMPDIR": "/no/such/folder", "MPLBACKEND": "nope"}
WORKS = [
    Case("no HOME, no folder for temporary files, and a backend of matplotlib that does not exist", NOTHING_THERE),
    Case(
        "ascii, and a folder with spaces, percent signs and letters that are not",
        ASCII,
        "'ü ñ 100%s %d'",
        "ü ñ 100%s %d",
    ),
]
REFUSED = [
    Case("no docstrings", {"PYTHONOPTIMIZE": "2"}, code=2, message="PYTHONOPTIMIZE=2: "),
    Case("a reference to nothing", outputs="${x}", code=2, message="paths.outputs=${x}: refers to ${x}, which is no"),
    Case("a folder like a reference", outputs='"\\${x}"', code=2, message="paths.outputs=${x}: a folder with ${"),
    Case("an outputs folder below a file", outputs="/dev/null/x", code=2, message="paths.outputs: cannot write"),
]


def run(case: Case, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "kvbench", *WORDS, f"paths.outputs={case.outputs}"]
    return subprocess.run(
        words, cwd=cwd, env=environment(case.variables), capture_output=True, encoding="utf-8", timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", WORKS, ids=str)
def test_a_run_works(case: Case, tmp_path: Path) -> None:
    done = run(case, tmp_path)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / case.folder).glob("runs/*/*/*/samples.jsonl")
    assert len(file.read_text().splitlines()) == 2
    for verb in ("status", "report"):
        words = [sys.executable, "-m", "kvbench", verb, str(tmp_path / case.folder)]
        shown = subprocess.run(
            words, cwd=tmp_path, env=environment(case.variables), capture_output=True, encoding="utf-8", timeout=300
        )
        assert shown.returncode == 0 and "Traceback" not in shown.stderr, shown.stderr


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_run_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    done = run(case, tmp_path)
    assert done.returncode == case.code
    [line] = done.stderr.splitlines()
    assert line.startswith(f"kvbench: {case.message}")


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 8])
def test_a_limit_on_the_size_of_files_is_one_line(blocks: int, tmp_path: Path) -> None:
    """The first limit is too small for the records, the second for the figures alone: the records are kept."""
    command = f'ulimit -f {blocks}; exec "$0" -m kvbench "$@"'
    words = ["bash", "-c", command, sys.executable, *WORDS, "paths.outputs=out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("kvbench: paths.outputs") and last.endswith("(File too large)")
    records = [line for file in tmp_path.rglob("samples.jsonl") for line in file.read_text().splitlines()]
    assert len(records) == (0 if blocks == 1 else 2)


@pytest.mark.slow
def test_a_sweep_of_single_jobs_leaves_a_plan_that_status_reads(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "kvbench"]
    sweep = [*words, "-m", *WORDS, "method=snapkv,h2o", "launcher=basic", "paths.outputs=out"]
    subprocess.run(sweep, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    shown = subprocess.run([*words, "status", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0 and "2 runs, 2 done" in shown.stdout and "launcher=basic" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sigterm_at_a_random_moment_is_said_last(seed: int, tmp_path: Path) -> None:
    """A signal that comes before Python has loaded the command, or after all is done, just ends the process."""
    words = [sys.executable, "-m", "kvbench", "-m", *WORDS, "budget=50,100", "paths.outputs=out"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        process.wait(random.Random(seed).uniform(0.5, 6))
    except subprocess.TimeoutExpired:
        process.terminate()
    stderr = process.communicate(timeout=300)[1]
    assert "Traceback" not in stderr and process.returncode in (0, 143, -15), stderr
    if process.returncode == 143:
        last = stderr.splitlines()[-1]
        assert last == "kvbench: preempted, ended by SIGTERM; issue the same command again to resume"
    elif process.returncode == -15 and stderr:
        status = [sys.executable, "-m", "kvbench", "status", "out"]
        shown = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert "2 runs, 2 done" in shown.stdout, stderr
