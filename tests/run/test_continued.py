"""A run that goes on, or is asked for again, after its code or its machine has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench import store
from kvbench.run import hardware as hardware_module
from kvbench.run import open_run, runner
from kvbench.run.hardware import hardware
from kvbench.run.jobs import Job
from kvbench.status.runs import look
from kvbench.store.environment import is_mixed

Jobs = Callable[..., list[Job]]
SNAP = ["method=snapkv", "budget=100"]


def changed(folder: Path, **entries: Any) -> None:
    """Change entries of a manifest."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def computed_on(folder: Path, device: str) -> None:
    """Let a run look as if another device had computed it."""
    changed(folder, device=device)
    file = folder / "samples.jsonl"
    lines = [json.loads(line) | {"device": device} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_records_and_manifest_name_the_hardware(jobs: Jobs) -> None:
    (outcome,) = runner.run_jobs(jobs(SNAP))
    stored = store.load_run(outcome.folder)
    facts = stored.manifest["hardware"]
    assert facts == hardware("cpu") and facts["threads"] == torch.get_num_threads()
    assert {record["hardware"] for record in stored.samples} == {facts["name"]}
    assert str(facts["name"]).endswith("threads" if facts["threads"] != 1 else "1 thread")
    assert "continued_with" not in stored.manifest and not is_mixed([stored.manifest])


def test_gpus_are_named_with_their_number_and_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Release Build\nGCC version: 12.3.0\n")
    monkeypatch.setattr(hardware_module, "_DRIVER", file)
    hardware_module._driver.cache_clear()
    names = ["NVIDIA H200", "NVIDIA H200", "NVIDIA A100"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: type("P", (), {"name": names[getattr(gpu, "index", gpu) or 0]})
    )
    assert hardware("cuda:2")["name"] == "NVIDIA A100" and hardware("cuda")["gpus"] == 1
    every = hardware("cuda", all_gpus=True)
    assert (every["name"], every["gpus"], every["driver"]) == ("NVIDIA A100 + 2 × NVIDIA H200", 3, "570.86.15")
    hardware_module._driver.cache_clear()


def test_a_part_that_was_changed_after_two_samples_is_told(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """The steps of docs/slurm.md: a small limit, then, with other code, the same command without it."""
    runner.run_jobs(jobs([*SNAP, "limit=2"]))
    real = open_run.versions
    monkeypatch.setattr(open_run, "versions", lambda method: real(method) | {"method": "0" * 12})
    (whole,) = runner.run_jobs(jobs(SNAP))
    assert whole.error is None and whole.samples == 6
    stored = store.load_run(whole.folder)
    (more,) = stored.manifest["continued_with"]
    assert (more["recorded"], more["versions"]["method"]) == (2, "0" * 12) and is_mixed([stored.manifest])
    assert "2 sample(s) were recorded with something else (method" in caplog.text
    assert "choose another paths.outputs" in caplog.text
    runner.present_outcomes([whole])
    assert "snapkv †" in capsys.readouterr().out
    assert look(whole.folder).note == "other versions or hardware after 2 samples"
    caplog.clear()
    runner.run_jobs(jobs(SNAP))  # complete, and a part of it of other code than now
    assert f"to compute it again, move {whole.folder} away or choose another paths.outputs" in caplog.text


def test_a_complete_run_is_not_taken_for_one_of_another_device(
    jobs: Jobs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outcome,) = runner.run_jobs(jobs([*SNAP, "model.device=cpu"]))
    (other,) = runner.run_jobs(jobs([*SNAP, "model.device=cuda"]))
    assert isinstance(other.error, ValueError) and "\n" not in str(other.error)
    for words in ("model.device=cuda", str(outcome.folder), "computed on cpu", "another paths.outputs"):
        assert words in str(other.error)
    computed_on(outcome.folder, "cuda:1")
    for asked, is_fine in (("auto", True), ("cuda", True), ("cpu", False)):
        (again,) = runner.run_jobs(jobs([*SNAP, f"model.device={asked}"]))
        assert (again.error is None) == is_fine, asked


def test_a_run_of_a_gpu_does_not_go_on_with_a_cpu(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (some,) = runner.run_jobs(jobs([*SNAP, "limit=2"]))
    computed_on(some.folder, "cuda")
    before = (some.folder / "samples.jsonl").read_bytes()
    (job,) = jobs(SNAP)
    assert runner.finished(job) is None, "a login node without a GPU submits what is missing"
    (whole, h2o) = runner.run_jobs(jobs(SNAP, ["method=h2o", "budget=100"]))
    assert isinstance(whole.error, ValueError) and h2o.error is None
    for words in ("model.device=auto", "2 samples computed on cuda", "on cpu", "another paths.outputs"):
        assert words in str(whole.error)
    assert (some.folder / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["again", "without"])
def test_answers_of_two_rules_are_scored_again(jobs: Jobs, command: str) -> None:
    """The rule changed after two samples, and the scores that were given again were deleted."""
    (some,) = runner.run_jobs(jobs([*SNAP, "limit=2"]))
    file = some.folder / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["scoring"] = {"metrics": {"recall": 0}}
    changed(some.folder, scoring={"metrics": {"recall": 0}})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (whole,) = runner.run_jobs(jobs(SNAP))
    assert whole.error is None and (whole.folder / "scores.json").is_file()
    (whole.folder / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"4 answer\(s\) were scored by another rule than the others; .*kvbench score"):
        store.load_run(whole.folder)
    if command == "again":
        (again,) = runner.run_jobs(jobs(SNAP))
        assert again.error is None and again.samples == 6
    else:
        from kvbench.run.score import main

        assert main([str(whole.folder), "--quiet", "--workers", "1"]) == 0
    assert store.load_run(whole.folder).manifest["scoring"]["metrics"]["recall"] != 0
