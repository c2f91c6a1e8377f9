"""The tasks of the Slurm launcher without Slurm: what they compute, when they begin again, and the waiting for them."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kvbench import models, prompts
from kvbench.cli.signals import Preempted
from kvbench.run.jobs import prepare
from kvbench.sweep.compose import Composed
from kvbench.sweep.slurm import queue, submit, task, watch
from kvbench.sweep.slurm.queue import Queued
from kvbench.sweep.slurm.units import Unit, fresh_folder, write_payload
from tests.helpers.tokenizers_for_tests import tiny_tokenizer


@pytest.mark.parametrize(
    ("template", "day", "budget", "cause"),
    [
        (
            "{{ strftime_now('%d %b %Y') }}",
            datetime(2024, 7, 26),
            100,
            "its chat template writes the date, so on another",
        ),
        ("", None, 99, "its YAML, data or model changed since; submit again"),
    ],
)
def test_a_task_that_would_compute_another_run_says_why(
    monkeypatch: pytest.MonkeyPatch,
    compose: Any,
    tmp_path: Path,
    template: str,
    day: datetime | None,
    budget: int,
    cause: str,
) -> None:
    """A task may begin, or begin again, on another day than it was submitted."""
    turns = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_tokenizer", lambda spec: tiny_tokenizer(template + turns))
    monkeypatch.setattr(prompts, "_frames", {})
    monkeypatch.setattr(Composed, "choices", {})
    part = Composed([], compose("model=tiny", "method=h2o", "budget=100"))
    part.jobs = prepare(part.config)
    part.config.budget = budget  # as if its YAML were another now
    runs = write_payload(tmp_path / "group-0.json", [(part, part.jobs)])
    monkeypatch.setattr(prompts, "_frames", {})
    if day is not None:
        monkeypatch.setattr("kvbench.encoding.template._STARTED", day)
    with pytest.raises(ValueError, match="no longer what was submitted: ") as caught:
        task._compute(Unit(str(tmp_path / "group-0.json"), runs))
    assert cause in str(caught.value) and "\n" not in str(caught.value)


def test_folders_of_submissions_are_never_shared(tmp_path: Path) -> None:
    assert len({fresh_folder(tmp_path) for _ in range(3)}) == 3
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="hydra.launcher.folder=.*file: cannot write there"):
        fresh_folder(tmp_path / "file")


@pytest.mark.parametrize(
    ("state", "restarts", "most", "requeued"),
    [("RUNNING", 0, 3, True), ("RUNNING", 3, 3, False), ("RUNNING", 99, None, True), ("COMPLETING", 0, 3, False)],
)
def test_a_task_is_requeued_unless_slurm_is_ending_it(
    monkeypatch: pytest.MonkeyPatch, state: str, restarts: int, most: int | None, requeued: bool
) -> None:
    requests: list[str] = []
    for key, value in {
        "ARRAY_JOB_ID": "7",
        "ARRAY_TASK_ID": "2",
        "JOB_ID": "9",
        "RESTART_COUNT": str(restarts),
    }.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setattr(queue, "state", lambda name: state)
    monkeypatch.setattr(queue, "requeue", requests.append)
    task._again(most)
    assert requests == ["7_2"] * requeued


def waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: Iterable[Any], ended: str = "CANCELLED"
) -> tuple[Unit, watch.Watch]:
    """Return a watch over one task whose run never completes; `answers` are those of squeue, in order."""
    looks = iter(answers)
    monkeypatch.setattr(queue, "queue", lambda: next(looks, {}))
    monkeypatch.setattr(queue, "ending", lambda name: ended)
    monkeypatch.setattr(watch, "finished", lambda job, say: None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    unit = Unit(str(tmp_path / "group-0.json"), (str(tmp_path / "runs/needle/tiny/run0"),))
    return unit, watch.Watch({"5_0": unit}, {Path(unit.runs[0]): object()}, poll_s=1e-6)  # type: ignore[dict-item]


def test_a_controller_that_does_not_answer_ends_no_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    running = {"5_0": Queued("RUNNING", "None", queue.job_name(tmp_path))}
    stranger = {"5_0": Queued("RUNNING", "None", "kvbench-another")}
    _, watched = waiting(monkeypatch, tmp_path, [running, None, None, running, stranger])
    (outcome,) = watched.outcomes().values()
    assert str(outcome.error) == "1 of 1 runs are not complete, see above; issue the same command again to resume"
    assert caplog.text.count("ended early: CANCELLED") == 1
    assert "(it printed nothing)" in caplog.text


def test_an_error_that_a_task_reports_is_the_error_of_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unit, watched = waiting(monkeypatch, tmp_path, [{}])
    unit.report.write_text(json.dumps({"errors": {unit.runs[0]: ["ValueError", "method.window=32: no room"]}}))
    (outcome,) = watched.outcomes().values()
    assert isinstance(outcome.error, ValueError) and str(outcome.error) == "method.window=32: no room"
    assert "ended early" not in caplog.text
    unit.report.write_text(json.dumps({"errors": {unit.runs[0]: ["RuntimeError", "broken promise"]}}))
    (outcome,) = waiting(monkeypatch, tmp_path, [{}])[1].outcomes().values()
    assert str(outcome.error) == "RuntimeError: broken promise"


def test_an_interrupted_wait_says_that_the_tasks_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        raise Preempted(15)

    _, watched = waiting(monkeypatch, tmp_path, [])
    monkeypatch.setattr(queue, "queue", interrupted)
    with pytest.raises(Preempted):
        watched.outcomes()
    assert "the tasks go on" in caplog.text and "scancel 5" in caplog.text


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90m", 90), ("8h", 480), ("1.5h", 90), ("2d", 2880), ("12:00:00", 720), ("1-00:00:30", 1441)],
)
def test_time_limits_in_several_forms(text: str, minutes: int) -> None:
    assert submit.minutes(text) == minutes


def test_the_script_prints_the_command_of_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--partition", "gpu", "--gpus", "4", "--time", "8h", "--shards", "2", "--no-wait", "--dry-run"]
    submit.main([*options, "--", "method=snapkv,h2o", "budget=64"])
    printed = capsys.readouterr().err
    assert printed == (
        "python -m kvbench -m launcher=fused_slurm launcher.partition=gpu launcher.gpus_per_node=4 "
        "launcher.timeout_min=480 launcher.shards=2 launcher.wait=false method=snapkv,h2o budget=64\n"
    )
    submit.main(
        ["--partition", "gpu,gpu2", "--constraint", "a100&ib", "--account", "1e5", "--dry-run", "--", "budget=64"]
    )
    words = shlex.split(capsys.readouterr().err)
    parsed = OverridesParser.create().parse_overrides([word for word in words if word.startswith("launcher.")])
    assert [override.value() for override in parsed] == ["gpu,gpu2", "1e5", "a100&ib"]
    assert all(isinstance(override.value(), str) for override in parsed), "neither a sweep nor a number"
    for wrong in (["--time", "soon", "--", "x=1"], ["--partition", "gpu"]):
        assert submit.main(wrong) == 2


def test_a_task_handles_signals_before_it_imports_torch() -> None:
    """Submitit unpickles the function and the unit. Until then a signal would end the task without a requeue."""
    code = (
        "import sys, kvbench.sweep.slurm.task, kvbench.sweep.slurm.units; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
