"""Prepared jobs on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from kvbench.run.jobs import Job, prepare

GRID = ["model=tiny", "benchmark.lengths=[280,320]", "benchmark.depths=[0,50,100]", "benchmark.max_new_tokens=6"]


@pytest.fixture
def jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: Callable[..., DictConfig]
) -> Callable[..., list[Job]]:
    """Prepare jobs of six samples from lists of overrides. They are stored below tmp_path.

    `paths.outputs=${oc.env:KVBENCH_CALM}` stores them in another folder, for runs to compare with.
    """
    monkeypatch.setenv("KVBENCH_CALM", str(tmp_path / "calm"))

    def prepared(*all_overrides: list[str]) -> list[Job]:
        shared = [*GRID, f"paths.outputs={tmp_path}", "progress=false"]
        return [job for overrides in all_overrides for job in prepare(compose(*shared, *overrides))]

    return prepared
