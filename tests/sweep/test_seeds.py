"""Seeds of a sweep in which some methods draw and others do not."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kvbench.store import load_runs
from tests.helpers import forked

FIXED = ["model=tiny", "benchmark.lengths=[300]", "benchmark.depths=[50]", "benchmark.max_new_tokens=4", "budget=100"]
FIXED += ["benchmark.seed=3", "seed=0,1,2"]  # the samples are fixed, so only a method may draw by `seed`


def sweep(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    words = [forked.python(), "-m", "kvbench", "-m", *FIXED, *args]
    return subprocess.run(words, cwd=cwd, text=True, capture_output=True, timeout=300)


def test_a_method_that_draws_nothing_runs_once_beside_one_that_draws(tmp_path: Path) -> None:
    done = sweep(tmp_path, "method=snapkv,cam")
    assert done.returncode == 0, done.stderr
    assert "snapkv: nothing draws by seed=1,2, so it runs with seed=0 alone" in done.stderr
    runs = load_runs(tmp_path / "outputs")
    asked = sorted((run.manifest["label"]["method"], run.manifest["identity"]["seed"]) for run in runs)
    assert asked == [("cam", 0), ("cam", 1), ("cam", 2), ("snapkv", 0)]
    assert all(len(run.samples) == 1 for run in runs)


def test_the_seed_is_the_default_one_where_the_sweep_has_others_alone(tmp_path: Path) -> None:
    done = sweep(tmp_path, "method=snapkv,cam", "seed=1", "limit=1")
    assert done.returncode == 0, done.stderr
    assert {run.manifest["identity"]["seed"] for run in load_runs(tmp_path / "outputs")} == {0, 1}


def test_a_sweep_in_which_nothing_draws_is_refused(tmp_path: Path) -> None:
    done = sweep(tmp_path, "method=snapkv,h2o")
    assert done.returncode != 0 and not load_runs(tmp_path / "outputs")
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("kvbench: seed=1: neither benchmark=needle nor method=snapkv draws by it")
