"""Entries on their way into a logger, with a logger that only remembers: once each, whatever else fails."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvbench.report.loggers import content
from kvbench.report.loggers.entries import entries_of, read_manifests
from kvbench.report.loggers.follower import Follower
from kvbench.report.loggers.ledger import Ledger, locked
from kvbench.report.loggers.order import Order
from kvbench.report.loggers.sinks import About, Content, HistoryRow, Overview
from kvbench.store import load_run, run_folders
from tests.helpers.fake_runs import FakeRun, make_part, make_run, make_suite, store_run
from tests.helpers.logged_stores import needle_runs, order, suite_runs, write_store


@dataclass
class MemorySink:
    """A logger that remembers what it gets; entries whose name holds `breaks` raise."""

    folder: Path
    name: str = "wandb"
    project: str = "p"
    group: str | None = None
    tags: tuple[str, ...] = ()
    breaks: str = "\0"
    opened: list[About] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, Content] = field(default_factory=dict)
    shared: list[Overview] = field(default_factory=list)

    def place(self, id: str) -> Path:
        return self.folder / "kvbench" / id

    def holds(self, ledger: Ledger) -> bool:
        return ledger.id in self.finished

    def open(self, about: About, before: Ledger) -> MemoryEntry:
        if self.breaks in about.name:
            raise OSError(28, "No space left on device")
        self.opened.append(about)
        self.rows[about.id] = []
        return MemoryEntry(self, about.id)

    def share(self, overview: Overview) -> None:
        self.shared.append(overview)

    def outcome(self) -> str:
        return "in memory"


@dataclass
class MemoryEntry:
    """An entry of a `MemorySink`."""

    sink: MemorySink
    id: str
    step: int = 0

    def log(self, rows: list[HistoryRow]) -> None:
        for row in rows:
            self.sink.rows[self.id].append(row.step)
            self.step = row.step

    def finish(self, content: Content) -> None:
        self.sink.finished[self.id] = content

    def abandon(self) -> None:
        pass

    def ledger(self) -> Ledger:
        return Ledger(id=self.id)


def follower(outputs: Path, sink: MemorySink, **changes: Any) -> Follower:
    given = order(outputs, wandb=True)
    given = Order(**{**given.__dict__, **changes})
    return Follower(given, [sink], lambda what: nullcontext(), lambda **event: None)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A store with two needle runs and a suite under two variants."""
    write_store(tmp_path, [*needle_runs(), *suite_runs()])
    return tmp_path


def test_everything_is_written_once(outputs: Path) -> None:
    sink = MemorySink(outputs / "wandb")
    follower(outputs, sink).finish()
    assert len(sink.finished) == 5 and sorted(about.job_type for about in sink.opened) == ["benchmark"] * 4 + ["sweep"]
    follower(outputs, sink).finish()
    assert len(sink.opened) == 5, "a second time, nothing is opened"
    sizes = {len(shown.tables["samples"].rows) for shown in sink.finished.values() if "samples" in shown.tables}
    assert sizes == {9, 28}, "all samples of a suite are in one table"


def test_what_has_changed_is_written_again(outputs: Path) -> None:
    sink = MemorySink(outputs / "wandb")
    follower(outputs, sink).finish()
    with (next(outputs.rglob("needle/*/snapkv*")) / "status.json").open("a") as file:
        file.write("\n")
    sink.opened.clear()
    follower(outputs, sink).finish()
    assert sorted(about.job_type for about in sink.opened) == ["benchmark", "sweep"]
    sink.tags = ("new",)
    follower(outputs, sink).finish()
    assert len(sink.opened) == 2 + 5, "with other tags, all is announced again"


def test_a_live_entry_gets_each_row_once(tmp_path: Path) -> None:
    sink, run = MemorySink(tmp_path / "wandb"), make_run("snapkv", "0.2", 1.0)
    store_run(tmp_path / "runs", run, samples=0)
    live = follower(tmp_path, sink, live=True)
    live.look()
    assert sink.opened == [], "nothing to show before the first sample"
    for number in (1, 4, 9):
        store_run(tmp_path / "runs", FakeRun(run.manifest, run.samples[sum(map(len, sink.rows.values())) : number]))
        live.look()
        live.look()
        assert [*sink.rows.values()] == [list(range(1, number + 1))]
    assert len(sink.finished) == 1 and len(sink.opened) == 1, "it is finished as soon as it is done"
    live.finish()
    assert len(sink.opened) == 1


def test_an_entry_that_fails_hides_no_other(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = MemorySink(outputs / "wandb", breaks="needle snapkv")
    broken = follower(outputs, sink)
    broken.finish()
    assert broken.failures == 1 and len(sink.finished) == 4
    assert "No space left on device" in caplog.text and "Traceback" not in caplog.text
    sink.breaks = "\0"
    sink.opened.clear()
    follower(outputs, sink).finish()
    assert [about.job_type for about in sink.opened] == ["benchmark", "sweep"]


def test_two_processes_never_write_one_entry(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.report.loggers.follower._AGAIN", 0.0)
    sink = MemorySink(outputs / "wandb")
    entry = entries_of(read_manifests(run_folders(outputs)), {})[0]
    with locked(sink.place(entry.id)) as is_ours:
        assert is_ours
        follower(outputs, sink).finish()
    assert entry.id not in sink.finished and len(sink.finished) == 4
    follower(outputs, sink).finish()
    assert entry.id in sink.finished


def test_datasets_of_other_commands_belong_to_the_entry(tmp_path: Path) -> None:
    """A command that computes a dataset of a suite shows those that were there before, and no other benchmark."""
    for run in [*make_suite("snapkv", "128", 0.25), *make_suite("snapkv", "256", 0.5), make_run("snapkv", "128", 1.0)]:
        store_run(tmp_path / "runs", run)
    sink = MemorySink(tmp_path / "wandb")
    (qasper,) = [folder for folder in run_folders(tmp_path) if "qasper" in str(folder) and "b128" in folder.name]
    follower(tmp_path, sink, folders=[str(qasper)], live=True).finish()
    (shown,) = sink.finished.values()
    assert shown.summary["datasets"] == 4


def test_an_agent_of_a_sweep_gives_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id stays when the results are logged again without the agent."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "agent7")
    store_run(tmp_path / "runs", make_run("snapkv", "0.2", 1.0))
    sink = MemorySink(tmp_path / "wandb")
    follower(tmp_path, sink, live=True).finish()
    monkeypatch.delenv("WANDB_SWEEP_ID")
    sink.tags = ("again",)
    follower(tmp_path, sink).finish()
    assert [about.id for about in sink.opened] == ["agent7", "agent7"]


def test_the_table_of_a_long_suite_is_complete() -> None:
    from kvbench.report.loggers import wandb_sink
    from kvbench.report.loggers.sinks import Table

    table = Table(["a"], [[number] for number in range(25_001)])
    parts = wandb_sink._parts(table)
    assert [len(part) for part in parts] == [10_000, 10_000, 5_001]
    assert [row for part in parts for row in part] == table.rows


def test_a_picture_that_cannot_be_drawn_costs_no_rows(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> dict[str, Path]:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(content, "_images", broken)
    sink = MemorySink(outputs / "wandb")
    follower(outputs, sink).finish()
    assert len(sink.finished) == 5


GPU = {"name": "GPU A", "gpus": 1}


def on(device: str, run: FakeRun, hardware: dict | None = GPU) -> FakeRun:
    run.manifest["device"] = device
    if hardware is not None:
        run.manifest["hardware"] = hardware
    return run


def test_the_same_configuration_on_two_devices_is_two_entries(tmp_path: Path) -> None:
    """Also from two stores into one project: the id holds the kind of device."""
    for device in ("cpu", "cuda:1"):
        store_run(tmp_path / device / "runs", on(device, make_run("snapkv", "0.2", 1.0)))
    sinks = {name: MemorySink(tmp_path / name / "wandb") for name in ("cpu", "cuda:1")}
    for name, sink in sinks.items():
        follower(tmp_path / name, sink).finish()
    opened = [about for sink in sinks.values() for about in sink.opened]
    digest = load_run(run_folders(tmp_path)[0]).manifest["hash"][:16]
    assert [about.id for about in opened] == [f"{digest}-cpu", f"{digest}-cuda"]
    assert len({about.name for about in opened}) == 2
    assert {about.config["hardware"] for about in opened} == {"GPU A"}

    both = MemorySink(tmp_path / "wandb")
    follower(tmp_path, both).finish()
    assert set(both.finished) == {f"{digest}-cpu", f"{digest}-cuda"}
    follower(tmp_path, both).finish()
    assert len(both.opened) == 2


def test_entries_of_earlier_versions_keep_their_id(tmp_path: Path) -> None:
    """Runs of an earlier version do not tell their hardware; those that it has logged are not logged a second time."""
    store_run(tmp_path / "runs", on("cuda", make_run("snapkv", "0.2", 1.0), hardware=None))
    old, *new = [make_part("snapkv", "0.2", name, 0.5) for name in ("qasper", "hotpotqa")]
    store_run(tmp_path / "runs", on("cuda", old, hardware=None))
    sink = MemorySink(tmp_path / "wandb")
    follower(tmp_path, sink).finish()
    former = sorted(sink.finished)
    assert len(former) == 2 and all(len(id) == 16 for id in former)
    for file in (tmp_path / "wandb").rglob("entry.json"):  # as an earlier version wrote it
        content = json.loads(file.read_text())
        assert content.pop("device") == "cuda"
        file.write_text(json.dumps(content))
    follower(tmp_path, sink).finish()
    assert len(sink.opened) == 2, "an upgrade writes nothing again"

    for run in new:  # the suite goes on with this version
        store_run(tmp_path / "runs", on("cuda", run))
    follower(tmp_path, sink).finish()
    assert sorted(sink.finished) == former and [about.id for about in sink.opened].count(sink.opened[2].id) == 2


def test_an_entry_of_another_device_does_not_take_the_id_of_an_earlier_one(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        store_run(tmp_path / device / "runs", on(device, make_run("snapkv", "0.2", 1.0), hardware=None))
    sink = MemorySink(tmp_path / "wandb")
    for _ in range(2):
        follower(tmp_path, sink).finish()
    assert len(sink.opened) == len(sink.finished) == 2
