"""Synthetic stores for the tests of the loggers, and their process with a stand-in for W&B."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbench import store
from kvbench.report.loggers.order import Order
from kvbench.store import run_folder, run_folders
from tests.helpers.fake_runs import FakeRun, make_run, make_suite, out_of_memory, store_run

ROOT = Path(__file__).resolve().parents[2]
TEXT = "prediction with \u2028, \u4e2d and half a character \ud800"


def needle_runs() -> list[FakeRun]:
    """Return two runs of the needle grid, one of them with a sample that ran out of memory."""
    runs = [
        make_run("fullkv", "full", 1.0, hash="f" * 64),
        out_of_memory(make_run("snapkv", "0.2", None, hash="5" * 64), 4),
    ]
    for run in runs:
        for position, sample in enumerate(run.samples):
            sample |= {"time": f"2026-01-31T09:30:{position:02d}Z", "prompt_tail": f"Question {position}?"}
            if sample["status"] == "ok":
                sample["prediction"] = f"{TEXT} {position}"
    return runs


def suite_runs() -> list[FakeRun]:
    """Return the four datasets of a suite under two variants."""
    return [*make_suite("fullkv", "full", 0.5), *make_suite("snapkv", "128", 0.25)]


def write_store(outputs: Path, runs: list[FakeRun], command: str = "python -m kvbench -m experiment=try") -> None:
    """Write runs into a store with the plan of one command."""
    for run in runs:
        store_run(outputs / "runs", run)
    folders = [run_folder(outputs / "runs", run.manifest["label"], run.manifest["identity"]) for run in runs]
    store.write_plan(outputs, command, [(folder, None) for folder in folders])


def order(outputs: Path, **loggers: Any) -> Order:
    """Return the order of `kvbench log` for everything in a store."""
    folders = [str(folder) for folder in run_folders(outputs)]
    nodes = {name: {} if node is True else node for name, node in loggers.items()}
    return Order(str(outputs), str(outputs), folders, nodes, live=False)


def run_order(given: Order, timeout: float = 300, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Let the process of the loggers execute an order. A variable of None is unset."""
    command = [sys.executable, "-m", "kvbench.report.loggers.follow"]
    return subprocess.run(
        command, input=given.line(), env=clean(environment), capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )


def clean(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return the environment without W&B's variables and without a key, with changes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_"))}
    kept |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "NETRC": "/none"}
    return {key: value for key, value in {**kept, **changes}.items() if value is not None}


def stand_in(folder: Path, init: str) -> Path:
    """Write a package `wandb` whose `init` runs some lines. Return the folder to put on PYTHONPATH."""
    package = folder / "stand_in" / "wandb"
    package.mkdir(parents=True)
    lines = "\n".join(f"    {line}" for line in init.splitlines())
    (package / "__init__.py").write_text(f"import errno, os, time\n\n\ndef init(**settings):\n{lines}\n")
    return package.parent
