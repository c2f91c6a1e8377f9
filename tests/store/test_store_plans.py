"""Plans: what a command is about to make, in a file that survives everything."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kvbench.store import write_plan
from kvbench.store.plans import read_plan

COMMAND = "python -m kvbench -m method=snapkv,h2o 'benchmark.lengths=[300]'"


def test_a_plan_names_its_runs_from_where_it_lies(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    runs = [outputs / "runs" / "needle" / "tiny" / name for name in ("b", "a", "b")]
    path = write_plan(outputs, COMMAND, runs)
    assert path.parent == outputs / "plans" and len(path.stem) == 8
    content = json.loads(path.read_text())
    assert content["schema"] == 1 and content["command"] == COMMAND and content["created"].endswith("Z")
    assert content["runs"] == ["runs/needle/tiny/b", "runs/needle/tiny/a"]
    assert content["cwd"] == os.getcwd()
    shutil.move(outputs, tmp_path / "moved")
    plan = read_plan(tmp_path / "moved" / "plans" / path.name)
    assert plan.runs == [tmp_path / "moved" / "runs" / "needle" / "tiny" / name for name in ("b", "a")]


def test_the_same_command_finds_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a"
    path = write_plan(tmp_path, COMMAND, [run])
    monkeypatch.chdir("/")  # relative folders in the command now mean others: that is noted
    write_plan(tmp_path, COMMAND, [run])
    assert read_plan(path).cwd == "/"
    before = path.stat()
    assert write_plan(tmp_path, COMMAND, [run]) == path
    assert path.stat().st_ino == before.st_ino, "not written again"
    assert path.stat().st_mtime_ns > before.st_mtime_ns, "but the newest of its command"
    others = {write_plan(tmp_path, COMMAND + " seed=1", [run]), write_plan(tmp_path, COMMAND, [run, tmp_path / "b"])}
    assert len(others | {path}) == 3 == len(list(path.parent.iterdir()))
    path.write_text("{torn")
    assert write_plan(tmp_path, COMMAND, [run]) == path and read_plan(path).command == COMMAND


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (COMMAND, COMMAND),
        ("python -m kvbench logger.api_key=S3CRET budget=0.2", "python -m kvbench budget=0.2"),
        ("HF_TOKEN=S3CRET kvbench +token=S3CRET ++hf_token='S3CRET x'", "kvbench"),
        ("kvbench a=https://me:S3CRET@host/x 'b=[1, 2]'", "kvbench a=https://host/x 'b=[1, 2]'"),
        (
            """kvbench 'launcher.setup=["export HF_TOKEN=S3CRET"]'""",
            """kvbench 'launcher.setup=["export HF_TOKEN=..."]'""",
        ),
        (
            "kvbench '+hydra.job.env_set={WANDB_API_KEY:S3CRET,A:b}'",
            "kvbench '+hydra.job.env_set={WANDB_API_KEY:...,A:b}'",
        ),
        ("kvbench 'open quote a=https://me:S3CRET@host", "kvbench 'open quote a=https://host"),
    ],
)
def test_secrets_stay_out(tmp_path: Path, command: str, kept: str) -> None:
    path = write_plan(tmp_path, command, [])
    assert "S3CRET" not in path.read_text()
    assert read_plan(path).command == kept


@pytest.mark.parametrize("text", ["{", "[]", '{"command": 1, "runs": []}', '{"command": "a", "runs": [1]}'])
def test_what_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plans" / "a.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: not .*; delete this file$"):
        read_plan(path)
