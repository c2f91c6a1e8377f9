"""The generator of synthetic stores writes what the store accepts, and always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvbench.report.present import present
from kvbench.store import load_runs
from tests.helpers.synthetic_store import write_store


def test_a_synthetic_store_is_valid_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_store(tmp_path / "a", runs=20, samples=10, needle=True, failures=0.1)
    runs = load_runs(tmp_path / "a")
    assert len(runs) == written >= 20
    assert {run.status["status"] for run in runs} == {"done"} and {len(run.samples) for run in runs} == {10}
    assert {record["status"] for run in runs for record in run.samples} == {"ok", "oom", "failed"}
    present(runs, None)
    out = capsys.readouterr().out
    assert out.count("## ") == 2 and "method000" in out


def test_a_synthetic_store_is_always_the_same(tmp_path: Path) -> None:
    stores = []
    for name in ("a", "b"):
        write_store(tmp_path / name, runs=8, samples=5)
        files = [file for file in sorted((tmp_path / name).rglob("*")) if file.is_file()]
        stores.append({str(file.relative_to(tmp_path / name)): file.read_bytes() for file in files})
    assert stores[0] == stores[1] and len(stores[0]) >= 4 * 8
