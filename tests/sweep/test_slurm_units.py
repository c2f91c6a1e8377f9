"""The Slurm launcher without Slurm: its settings, the refusals of sbatch, and the units of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvbench.run.jobs import prepare
from kvbench.store.refusals import read_refusal
from kvbench.sweep.compose import Composed
from kvbench.sweep.slurm import launch as slurm
from kvbench.sweep.slurm import queue, task
from kvbench.sweep.slurm.queue import Queued
from kvbench.sweep.slurm.settings import SlurmSettings, checked, refusal
from kvbench.sweep.slurm.units import Unit, fresh_folder, remembered

FOLDER = {"folder": "outputs/slurm"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"shards": 0}, "hydra.launcher.shards=0: must be an integer of at least 1"),
        ({"gpus_per_node": "two"}, "hydra.launcher.gpus_per_node=two: must be an integer of at least 0 or null"),
        ({"array_parallelism": None}, "hydra.launcher.array_parallelism=None: must be an integer of at least 1"),
        ({"timeout_min": True}, "hydra.launcher.timeout_min=True: must be"),
        ({"mem_gb": "8G"}, "hydra.launcher.mem_gb=8G: must be a number above 0"),
        ({"poll_s": 0}, "hydra.launcher.poll_s=0: must be a number above 0"),
        ({"wait": "no"}, "hydra.launcher.wait=no: must be true or false"),
        ({"extra": "reservation"}, "hydra.launcher.extra=reservation: must name options of sbatch"),
        ({"extra": {"job_name": "mine"}}, "hydra.launcher.extra.job_name: kvbench sets this itself"),
    ],
)
def test_the_message_names_a_wrong_setting(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        checked(FOLDER | setting)
    assert str(caught.value).startswith(message)


def test_parameters_that_sbatch_gets() -> None:
    some = {"account": 12, "setup": "module load cuda", "mem_gb": 1.5, "gpus_per_node": 0, "max_requeues": 0}
    parameters = slurm._parameters(checked(FOLDER | some | {"extra": {"reservation": "x"}, "cpus_per_task": 3}))
    assert parameters["account"] == "12"
    assert parameters["setup"] == ["module load cuda"]
    assert parameters["mem"] == "1536MB"
    assert "gpus_per_node" not in parameters and "partition" not in parameters
    assert parameters["additional_parameters"] == {"no-requeue": True, "reservation": "x"}
    assert parameters["srun_args"] == ["--cpus-per-task=3"], "steps do not inherit it"
    assert slurm._parameters(checked(FOLDER))["additional_parameters"] == {"requeue": True}


@pytest.mark.parametrize(
    ("refused", "names"),
    [
        ("sbatch: error: invalid partition specified: nope", ["partition=nope"]),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", ["account=a"]),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", ["qos=null"]),
        ("sbatch: error: Requested time limit is invalid (missing or exceeds some limit)", ["timeout_min=9"]),
        ("sbatch: error: Memory specification can not be satisfied\nsbatch: error: ...", ["mem_gb=900"]),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", ["constraint=null"]),
        ("sbatch: error: Invalid generic resource (gres) specification", ["gpus_per_node=9"]),
        (
            "sbatch: error: Requested node configuration is not available",
            ["gpus_per_node=9", "cpus_per_task=2", "mem_gb"],
        ),
        ("sbatch: unrecognized option '--foo=1'", ["extra={'foo': 1}"]),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", ["account=a"]),
    ],
)
def test_a_refusal_names_the_settings_that_caused_it(refused: str, names: list[str]) -> None:
    some = SlurmSettings(
        **FOLDER,
        partition="nope",
        account="a",
        timeout_min=9,
        mem_gb=900,
        gpus_per_node=9,
        cpus_per_task=2,
        extra={"foo": 1},
    )
    text = str(refusal(refused, some))
    assert all(f"hydra.launcher.{name}" in text for name in names), text
    assert "Slurm refuses: " in text and "\n" not in text and "sbatch:" not in text


def test_another_refusal_is_repeated_unchanged() -> None:
    text = str(refusal("sbatch: error: Unable to contact slurm controller", SlurmSettings(**FOLDER)))
    assert text == "hydra/launcher=fused_slurm: Slurm refuses: Unable to contact slurm controller"


def units(folder: Path, number: int) -> list[Unit]:
    return [Unit(str(folder / f"group-{k}.json"), (f"/o/runs/needle/tiny/run{k}",)) for k in range(number)]


class FakeExecutor:
    """An executor that records the sizes of arrays, and refuses the one with index `refuse`."""

    arrays: list[int]
    refuse = -1

    def __init__(self, folder: str) -> None:
        type(self).arrays = []

    def update_parameters(self, **parameters: Any) -> None:
        self.job_name = parameters["job_name"]

    def map_array(self, function: Any, some: list[Unit], requeues: list[Any]) -> list[Any]:
        from submitit.core.utils import FailedJobError

        if len(self.arrays) == self.refuse:
            raise FailedJobError("sbatch: error: Job violates accounting/QOS policy")
        self.arrays.append(len(some))
        return [type("Job", (), {"job_id": f"{len(self.arrays)}_{k}"})() for k in range(len(some))]


def test_more_tasks_than_fit_into_one_array_become_several_arrays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("submitit.SlurmExecutor", FakeExecutor)
    monkeypatch.setattr(queue, "largest_array", lambda: 3)
    some = units(tmp_path / "now", 7)
    (tmp_path / "now").mkdir()
    submitted = slurm.submit(some, SlurmSettings(folder=str(tmp_path)))
    assert FakeExecutor.arrays == [3, 3, 1]
    assert list(submitted.values()) == some
    queued = dict.fromkeys(["2_1", "3_0", "4_0"], Queued("PENDING", "Priority", "kvbench-now"))
    assert remembered(tmp_path, queued) == {"2_1": some[4], "3_0": some[6]}


def test_a_job_of_another_cluster_with_the_same_number_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A new controller begins again at 1. What counts as queued is not submitted, and `scancel` would end another's."""
    monkeypatch.setattr("submitit.SlurmExecutor", FakeExecutor)
    monkeypatch.setattr(queue, "largest_array", lambda: 9)
    folders = [fresh_folder(tmp_path / name) for name in ("a", "b")]
    (unit,), (other,) = (units(folder, 1) for folder in folders)
    for each in (unit, other):
        slurm.submit([each], SlurmSettings(folder=str(tmp_path)))  # both are task 1_0
    lines = [f"1_0|PENDING|{queue.job_name(folders[1])}|Priority", "2|RUNNING|theirs|None", "3|RUNNING|kvbench|None"]
    asked: list[str] = []
    monkeypatch.setattr(queue, "_ask", lambda *words, quiet: asked.extend(words) or "\n".join(lines) + "\n")
    queued = queue.queue()
    assert queued == {"1_0": Queued("PENDING", "Priority", f"kvbench-{folders[1].name}")}
    assert "%i|%T|%j|%r" in asked
    assert remembered(tmp_path / "b", queued) == {"1_0": other}
    assert remembered(tmp_path / "a", queued) == {}
    runs = [Path(run) for run in unit.runs]
    assert slurm._queued(SlurmSettings(folder=str(tmp_path / "a")), runs) == {}


def test_jobs_have_the_name_of_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named: list[str] = []
    monkeypatch.setattr(FakeExecutor, "update_parameters", lambda self, **more: named.append(more["job_name"]))
    monkeypatch.setattr("submitit.SlurmExecutor", FakeExecutor)
    monkeypatch.setattr(queue, "largest_array", lambda: 9)
    folder = fresh_folder(tmp_path)
    slurm.submit(units(folder, 1), SlurmSettings(folder=str(tmp_path)))
    assert named == [f"kvbench-{folder.name}"]


def test_a_refused_array_cancels_the_earlier_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cancelled: list[list[str]] = []
    monkeypatch.setattr("submitit.SlurmExecutor", FakeExecutor)
    monkeypatch.setattr(FakeExecutor, "refuse", 2)
    monkeypatch.setattr(queue, "largest_array", lambda: 3)
    monkeypatch.setattr(queue, "cancel", cancelled.append)
    (tmp_path / "now").mkdir()
    with pytest.raises(ValueError, match="hydra.launcher.qos=lab: Slurm refuses: Job violates"):
        slurm.submit(units(tmp_path / "now", 7), SlurmSettings(folder=str(tmp_path), qos="lab"))
    assert cancelled == [["1", "2"]]


def test_nothing_is_submitted_while_slurm_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the queue, tasks could be submitted twice."""
    monkeypatch.setattr(queue, "queue", lambda quiet: None)
    with pytest.raises(ValueError, match="Slurm does not answer, so nothing is submitted"):
        slurm._queued(SlurmSettings(folder=str(tmp_path)), [tmp_path])


class Numbered(FakeExecutor):
    """An executor whose tasks have an array each, over all submissions."""

    tasks: dict[str, Queued] = {}  # noqa: RUF012

    def map_array(self, function: Any, some: list[Unit], requeues: list[Any]) -> list[Any]:
        ids = [f"{len(self.tasks) + k + 1}_0" for k in range(len(some))]
        self.tasks.update(dict.fromkeys(ids, Queued("PENDING", "Priority", self.job_name)))
        return [type("Job", (), {"job_id": name})() for name in ids]


@pytest.mark.parametrize(
    ("earlier", "now", "is_submitted"),
    [
        ([], [], False),
        (["limit=2"], ["limit=2"], False),
        ([], ["limit=2"], False),
        (["retry_oom=true"], [], False),
        (["save.kept=true"], [], False),
        (["limit=2"], [], True),
        (["limit=2"], ["limit=3"], True),
        ([], ["retry_oom=true"], True),
        (["retry_oom=true"], ["retry_failed=true"], True),
        ([], ["save.kept=true"], True),
    ],
)
def test_a_task_in_the_queue_counts_only_if_it_computes_all_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compose: Any,
    tmp_path: Path,
    earlier: list[str],
    now: list[str],
    is_submitted: bool,
) -> None:
    monkeypatch.setattr("submitit.SlurmExecutor", Numbered)
    monkeypatch.setattr(Numbered, "tasks", {})
    monkeypatch.setattr(queue, "largest_array", lambda: 9)
    monkeypatch.setattr(queue, "queue", lambda quiet: dict(Numbered.tasks))
    monkeypatch.setattr(Composed, "choices", {})
    settings = SlurmSettings(folder=str(tmp_path / "slurm"), wait=False)

    def submitted(words: list[str]) -> int:
        before = len(Numbered.tasks)
        part = Composed(words, compose("model=tiny", "method=h2o", "budget=100", f"paths.outputs={tmp_path}", *words))
        part.jobs = prepare(part.config)
        assert slurm.compute([part], settings) is None
        return len(Numbered.tasks) - before

    assert submitted(earlier) == 1
    assert submitted(now) == is_submitted
    assert ("1 task(s) in the queue compute less than is asked for" in caplog.text) == is_submitted
    caplog.clear()
    assert submitted(now) == submitted(earlier) == 0, "the larger task computes both"
    assert "compute less" not in caplog.text


def test_a_run_that_would_be_refused_is_not_submitted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compose: Any, tmp_path: Path
) -> None:
    """Neither what can be told without samples, nor what a task has refused: each time it would take a GPU."""
    monkeypatch.setattr("submitit.SlurmExecutor", Numbered)
    monkeypatch.setattr(Numbered, "tasks", {})
    monkeypatch.setattr(queue, "largest_array", lambda: 9)
    monkeypatch.setattr(queue, "queue", lambda quiet: {})
    monkeypatch.setattr(Composed, "choices", {})

    def submitted(*sweep: list[str], wait: bool = False) -> tuple[list[tuple[str, ...]], Exception | None]:
        """Return the runs of each new task, and the error."""
        settings = SlurmSettings(folder=str(tmp_path / "slurm"), wait=wait)
        parts = []
        for words in sweep:
            parts.append(Composed(words, compose("model=tiny", "limit=1", f"paths.outputs={tmp_path}", *words)))
            parts[-1].jobs = prepare(parts[-1].config)
        before, error = len(Numbered.tasks), None
        try:
            outcomes = slurm.compute(parts, settings)
            error = next((outcome.error for outcome in outcomes or () if outcome.error is not None), None)
        except ValueError as problem:
            error = problem
        tasks = dict(list(Numbered.tasks.items())[before:])
        return [unit.runs for unit in remembered(tmp_path / "slurm", tasks).values()], error

    fine, small = ["method=h2o", "budget=100"], ["method=snapkv", "budget=0.01"]
    wrong = ["method=kivi", "method.group_size=64", "method.residual=64"]
    (runs,), error = submitted(fine, wrong)
    assert [Path(run).name.split("-")[0] for run in runs] == ["h2o"]
    assert str(error).startswith("method.group_size=64: must divide the head") and "not submitted: kivi" in caplog.text
    assert submitted(wrong, wait=True)[0] == [], "nothing to wait for"
    assert str(submitted(wrong, wait=True)[1]) == str(error)

    tasks, error = submitted(small)
    assert len(tasks) == 1 and error is None, "whether a budget is too small, only samples tell"
    unit = remembered(tmp_path / "slurm", Numbered.tasks)[list(Numbered.tasks)[-1]]
    assert task._compute(unit) == 1
    for wait in (False, True):
        tasks, error = submitted(small, wait=wait)
        assert tasks == [] and "method.window=32" in str(error)
    monkeypatch.setattr("kvbench.run.refused.versions", lambda method: {"code": "another"})
    assert len(submitted(small)[0]) == 1, "it may have been a fault of the code"
    assert read_refusal(Path(unit.runs[0])) is None
