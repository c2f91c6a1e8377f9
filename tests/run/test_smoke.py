"""The smoke benchmark on the real model: every LongBench dataset, every method there is, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from kvbench import config, store
from kvbench.benchmarks.longbench_datasets import DATASETS
from kvbench.run import runner
from kvbench.run.jobs import prepare
from kvbench.run.runner import present_outcomes
from tests.helpers.longbench_made_up import write_bundle
from tests.helpers.methods import test_overrides
from tests.helpers.outside import DATA

SHARED = DATA / "longbench"
LENGTH = 200  # tokens of a prompt


@pytest.mark.slow
@pytest.mark.smollm2
def test_every_dataset_and_every_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], compose: Callable[..., DictConfig]
) -> None:
    """Three methods on all datasets, each of the others on three of them, which change from method to method."""
    path = SHARED if (SHARED / "dev").is_dir() else write_bundle(tmp_path / "bundle", rows=6, more=20)
    shared = [
        "benchmark=smoke",
        f"benchmark.path={path}",
        f"benchmark.max_length={LENGTH}",
        "benchmark.max_new_tokens=2",
    ]
    shared += [f"paths.outputs={tmp_path}/out", "progress=false", "budget=0.6"]
    methods = sorted(config.options("method"))
    names = {name: list(DATASETS)[at % 7 :: 7] for at, name in enumerate(methods)}
    names |= {name: list(DATASETS) for name in ("fullkv", "snapkv", "ada_pyramidkv")}
    words = {name: [f"method={name}", *test_overrides(name, layers=30, query_heads=9)] for name in methods}
    words = {name: [*words[name], f"benchmark.datasets=[{','.join(names[name])}]"] for name in methods}
    jobs = [job for name in methods for job in prepare(compose(*shared, *words[name]))]
    outcomes = runner.run_jobs(jobs)
    assert len(outcomes) == 3 * 21 + 3 * (len(methods) - 3) and not [
        outcome.error for outcome in outcomes if outcome.error
    ]
    for outcome in outcomes:
        run = store.load_run(outcome.folder)
        (sample,) = run.samples
        assert run.status["status"] == "done" and 0 <= sample["scores"][run.manifest["headline"]] <= 1
        assert len(sample["token_ids"]) <= 2 and sample["prompt_tokens"] <= LENGTH + 40  # the chat wrapper on top
        if outcome.job.variant.method.promises == "kept":
            assert sample["kept_mean"] == int(0.6 * sample["span"] + 1e-9)
    present_outcomes(outcomes)
    assert "avg-21" in capsys.readouterr().out
    table = next((tmp_path / "out" / "reports").glob("*/table.md")).read_text()
    assert [n for n in (*DATASETS, *methods, "avg-16", "avg-21", "macro-en") if n not in table] == []
