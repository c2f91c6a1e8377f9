"""Plans: what a command is about to make, in a file that survives everything."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvbench.store import write_plan
from kvbench.store.plans import Plan, read_plan

COMMAND = "python -m kvbench -m method=snapkv,h2o 'benchmark.lengths=[300]'"


def every(folders: list[Path], limit: int | None = None) -> list[tuple[Path, int | None]]:
    return [(folder, limit) for folder in folders]


def readable(path: Path) -> Plan:
    plan = read_plan(path)
    assert plan is not None
    return plan


def test_a_plan_names_its_runs_from_where_it_lies(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    runs = [outputs / "runs" / "needle" / "tiny" / name for name in ("b", "a", "b")]
    path = write_plan(outputs, COMMAND, every(runs))
    assert path.parent == outputs / "plans" and len(path.stem) == 8
    content = json.loads(path.read_text())
    assert content["schema"] == 2 and content["command"] == COMMAND and content["created"].endswith("Z")
    assert content["runs"] == [{"folder": f"runs/needle/tiny/{name}", "limit": None} for name in ("b", "a")]
    assert content["cwd"] == os.getcwd() and content["outputs"] == str(outputs)
    assert readable(path).outputs is None
    shutil.move(outputs, tmp_path / "moved")
    plan = readable(tmp_path / "moved" / "plans" / path.name)
    assert plan.runs == [tmp_path / "moved" / "runs" / "needle" / "tiny" / name for name in ("b", "a")]
    assert plan.outputs == tmp_path / "moved"
    del content["outputs"]  # as earlier versions wrote it
    (tmp_path / "moved" / "plans" / path.name).write_text(json.dumps(content))
    assert readable(tmp_path / "moved" / "plans" / path.name).outputs is None


def test_the_same_command_finds_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a"
    path = write_plan(tmp_path, COMMAND, every([run]))
    monkeypatch.chdir("/")  # relative folders in the command now mean others: that is noted
    write_plan(tmp_path, COMMAND, every([run]))
    assert readable(path).cwd == "/"
    before = path.stat()
    assert write_plan(tmp_path, COMMAND, every([run])) == path
    assert path.stat().st_ino == before.st_ino, "not written again"
    assert path.stat().st_mtime_ns > before.st_mtime_ns, "but the newest of its command"
    others = {
        write_plan(tmp_path, COMMAND + " seed=1", every([run])),
        write_plan(tmp_path, COMMAND, every([run, tmp_path / "b"])),
    }
    assert len(others | {path}) == 3 == len(list(path.parent.iterdir()))
    path.write_text("{torn")
    assert write_plan(tmp_path, COMMAND, every([run])) == path and readable(path).command == COMMAND


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
    assert readable(path).command == kept


WRONG: list[dict[str, Any]] = [
    {},
    {"command": 1, "runs": [], "cwd": "/", "created": ""},
    {"command": "a", "runs": [1], "cwd": "/", "created": ""},
    {"command": "a", "runs": [{"folder": "b"}], "cwd": "/", "created": ""},
    {"command": "a", "runs": [{"folder": "b", "limit": 0}], "cwd": "/", "created": ""},
]


@pytest.mark.parametrize("text", ["{", "[]", *(json.dumps({"schema": 2, **wrong}) for wrong in WRONG)])
def test_what_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plans" / "a.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: .*; delete this file$"):
        read_plan(path)


def test_a_run_under_several_limits_counts_with_the_largest(tmp_path: Path) -> None:
    run, other = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    path = write_plan(tmp_path, COMMAND, [(run, 2), (other, 3), (run, 4), (other, None)])
    assert readable(path).limits == {run: 4, other: None}


def test_a_plan_of_another_version_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "a.json"
    path.parent.mkdir()
    path.write_text('{"schema": 1, "command": "a", "runs": ["runs/a"]}')
    assert read_plan(path) is None
