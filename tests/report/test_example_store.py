"""The example store in docs/: it can be read, is small, and what its README says about it is true."""

from __future__ import annotations

from pathlib import Path

from kvbench.store import load_runs

STORE = Path(__file__).resolve().parents[2] / "docs" / "example_store"


def test_the_example_store_is_small_and_whole() -> None:
    runs = load_runs(STORE)
    assert {run.manifest["label"]["benchmark"].partition("_")[0] for run in runs} == {"needle", "ruler"}
    assert len(runs) == len(list(STORE.rglob("manifest.json"))) and all(run.answered for run in runs)
    assert {run.status["status"] for run in runs} <= {"done", "partial"}
    size = sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file())
    assert size < 1_000_000
    assert not list(STORE.rglob(".lock*"))


def test_every_benchmark_has_the_full_cache_and_two_budgets() -> None:
    labels = [run.manifest["label"] for run in load_runs(STORE, bulky=False)]
    for benchmark in {label["benchmark"] for label in labels}:
        inside = [label for label in labels if label["benchmark"] == benchmark]
        assert "fullkv" in {label["method"] for label in inside}
        assert len({label["budget"] for label in inside} - {"full"}) >= 2
