"""A small `perf/crash_test.py`: a sweep killed at random moments ends as an undisturbed one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forked

FILE = Path(__file__).resolve().parents[2] / "perf" / "crash_test.py"


@pytest.fixture(scope="module")
def harness() -> Any:
    spec = importlib.util.spec_from_file_location("crash_test", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash_test"] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["crash_test"]


@pytest.mark.slow
def test_a_killed_sweep_ends_as_an_undisturbed_one(harness: Any, tmp_path: Path) -> None:
    """Two processes share the runs, and both are killed. What is killed is forked; what it is compared with is not."""
    kills = 2
    result = harness.crash(tmp_path, kills, samples=20, shards=2, seed=2, overrides=[], python=forked.python())
    assert result["passed"], result
    assert (result["lost"], result["doubled"]) == (0, 0)
    assert result["kills"]["total"] >= kills and result["records"]["compared"] == 20 * 7
    assert len(result["tables"]["compared"]) > 6


def test_the_harness_sees_what_went_wrong(harness: Any, tmp_path: Path) -> None:
    """A lost, a doubled and a changed record. Clock times may differ."""
    sweep = harness.Sweep(tmp_path, [], 1)
    file = tmp_path / "outputs" / "runs" / "needle" / "tiny" / "a" / "samples.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"id": "x", "time": 1, "n": 1}\n{"id": "y", "n": 2}\n{"id": "z", "n')
    before = sweep.recorded(), sweep.digest()
    assert before[0] == {("a", "x"): 1, ("a", "y"): 1}
    file.write_text('{"id": "y", "n": 2}\n{"id": "x", "time": 2, "n": 1}\n')
    assert (sweep.recorded(), sweep.digest()) == before
    for changed in ('{"id": "x", "n": 1}\n', '{"id": "x", "n": 3}\n{"id": "y", "n": 2}\n'):
        file.write_text(changed)
        assert sweep.digest() != before[1]
    file.write_text('{"id": "x", "n": 1}\n' * 2)
    assert sweep.recorded() == {("a", "x"): 2}
    lines = harness.Lines(tmp_path)
    assert lines.count() == 2
    file.write_text('{"id": "x", "n": 1}\n' * 3 + "{")
    assert lines.count() == 3
    file.write_text('{"id": "x", "n": 1}\n' * 3)  # the torn line was cut off
    assert lines.count() == 3
    record = {"id": "x", "time": 5, "timings": {"prefill_s": 0.3, "question_s": None}, "score": 0.25}
    still = harness.timeless(record)
    assert still["timings"] == {"prefill_s": 1.0, "question_s": None} and still["time"] != 5
    assert still["score"] == 0.25 and "rows" not in still
