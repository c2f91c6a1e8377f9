"""Run folders are for others to read: they hold no secrets, and tell nothing about the machine they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kvbench import store
from kvbench.store.identity import identity_hash, scrub, scrub_text, without_paths, without_places
from tests.helpers.store_runs import OPEN, open_run, record

KWARGS = {"api_key": "S3CRET", "nested": {"hf_token": "S3CRET", "clientSecrets": ["S3CRET"]}, "style": "short"}


def everything(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.rglob("*") if file.is_file())


def test_a_secret_among_the_chat_arguments_is_stored_nowhere_and_does_not_change_the_identity(tmp_path: Path) -> None:
    identity = {**OPEN["identity"], "protocol": {"name": "needle", "chat_kwargs": KWARGS}}
    config = {"model": {"name": "tiny", "chat_kwargs": KWARGS}}
    with open_run(tmp_path, identity=identity, config=config) as run:
        run.append(record("a", "failed", error="login with api_key=S3CRET failed"))
    command = "kvbench '+model.chat_kwargs={api_key: \"S3CRET x\", style: short}' +model.chat_kwargs.hf_token=S3CRET"
    store.write_plan(tmp_path, command, [(run.path, None)])
    assert "S3CRET" not in everything(tmp_path) and "short" in everything(tmp_path)
    without = {**identity, "protocol": {"name": "needle", "chat_kwargs": scrub(KWARGS)}}
    assert identity_hash(identity) == identity_hash(without) == store.load_run(run.path).manifest["hash"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("api_key=abc:def==", "api_key=..."),
        ("{apiKey: 'S 3', b: 1}", "{apiKey: ..., b: 1}"),
        ('password="a \\" b" c', "password=... c"),
        ("WANDB_API_KEY=x,A=b", "WANDB_API_KEY=...,A=b"),
        ("max_new_tokens=32 eos_token=</s> sink_tokens: 4", "max_new_tokens=32 eos_token=</s> sink_tokens: 4"),
        ("https://host/x?access_key=S&y=1", "https://host/x?access_key=..."),
        ("passphrase: S3, secret_name: S", "passphrase: ..., secret_name: ..."),
    ],
)
def test_values_of_secrets_are_cut_out_of_a_text(text: str, clean: str) -> None:
    assert scrub_text(text) == clean


def test_a_run_folder_holds_no_absolute_path(tmp_path: Path) -> None:
    home = "/home/alice/work"
    config = {
        "paths": {"outputs": f"{home}/outputs"},
        "model": {"name": "local", "path": f"{home}/my models/Llama-3/"},
        "benchmark": {"haystack": "~/texts/essays", "preamble": "/no_think", "files": [f"{home}/a.jsonl"]},
    }
    with pytest.raises(OSError), open_run(tmp_path, config=config, shard=(1, 2)) as run:
        run.append(record("a", "oom", error=f"{home}/kernels/x.so: out of memory"))
        raise OSError(2, "No such file", f"{home}/my-model/config.json")
    assert "alice" not in everything(run.path) and str(tmp_path) not in everything(run.path)
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    assert written == {
        "paths": {"outputs": ".../outputs"},
        "model": {"name": "local", "path": ".../Llama-3"},
        "benchmark": {"haystack": ".../essays", "preamble": "/no_think", "files": [".../a.jsonl"]},
    }
    status = json.loads((run.path / "status-1of2.json").read_text())
    assert status["error"].endswith("'.../config.json'")


def test_paths_are_cut_and_other_slashes_are_not() -> None:
    assert without_paths("see https://host/a/b, 3/4 and /a/b/c.txt: x") == "see https://host/a/b, 3/4 and .../c.txt: x"
    assert without_places(["a/b/c", "/x", "/a/b\nc", 3, None]) == ["a/b/c", "/x", "/a/b\nc", 3, None]
