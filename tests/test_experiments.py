"""The files and commands of docs/experiments.md, in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import forked
from tests.test_adding import apply

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^<!-- (.+?) -->\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of the page."""
    folder = tmp_path_factory.mktemp("experiments") / "kvbench"
    for name in ("conf", "hydra_plugins", "kernels", "kvbench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for what, body in BLOCKS:
        if what != "run":
            apply(folder, what, body)
    return folder


def kvbench(repository: Path, *words: str, python: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(repository), str(repository / "kernels")])
    return subprocess.run(
        [python, "-m", "kvbench", *words], cwd=repository, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip


@pytest.mark.slow
def test_the_experiment_runs_with_the_settings_of_the_machine(repository: Path) -> None:
    [command] = [body.strip() for what, body in BLOCKS if what == "run"]
    done = kvbench(repository, *command.removeprefix("python -m kvbench ").split(), python=sys.executable)
    assert done.returncode == 0, done.stderr
    runs = [yaml.safe_load(file.read_text()) for file in repository.glob("results/runs/*/*/*/config.yaml")]
    swept = {(run["method"]["name"], run["method"]["window"], run["budget"]) for run in runs}
    assert len(swept) == len(runs) == 8 and {run["threads"] for run in runs} == {1}
    stored = [json.loads(file.read_text())["status"] for file in repository.glob("results/runs/*/*/*/status.json")]
    assert len(stored) == 8 and len(set(stored)) == 1, stored


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["experiment=mine", "budget=2.5"], "budget=2.5"),
        (["experiment=mine", "hydra.sweeper.params.method=nope"], "method=nope: no such method"),
    ],
)
def test_the_command_line_wins(repository: Path, words: list[str], line: str) -> None:
    done = kvbench(repository, *words, python=forked.python())
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
