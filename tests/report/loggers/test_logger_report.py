"""The W&B report of a sweep: every filter finds its runs, every panel names what they have; it is saved once."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvbench import store
from kvbench.common.loggers import WandbSettings
from kvbench.report.loggers import wandb_report
from kvbench.report.loggers.follower import Follower
from kvbench.report.loggers.ledger import read_ledger, write_ledger
from kvbench.report.loggers.sinks import Overview, Section
from kvbench.report.loggers.wandb_sink import WandbSink
from kvbench.store import run_folder
from tests.helpers.fake_runs import FakeRun, make_run
from tests.helpers.logged_stores import needle_runs, order, run_order, suite_runs, write_store
from tests.helpers.wandb_log import LoggedRun, read_logged
from tests.helpers.wandb_server import report_server

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
KEY = "0123456789abcdef" * 2 + "deadbeef"


def log_offline(outputs: Path, **settings: Any) -> str:
    done = run_order(order(outputs, wandb={"mode": "offline", **settings}), WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with needle runs and a suite, logged offline."""
    outputs = tmp_path_factory.mktemp("logged")
    write_store(outputs, [*needle_runs(), *suite_runs()])
    assert log_offline(outputs).count("W&B: no report, as W&B is offline") == 1
    return outputs


def overviews(outputs: Path) -> list[Overview]:
    """Return what the reports of the sweeps of a logged store show."""
    shown: list[Overview] = []
    place = outputs / "wandb" / "kvbench" / "kvbench"
    sink = SimpleNamespace(name="wandb", place=lambda id: place / id, share=shown.append)
    follower = Follower(order(outputs, wandb=True), [], lambda what: nullcontext(), lambda **event: None)
    for sweep in follower._sweeps_to_show():
        follower._share(sink, sweep)  # type: ignore[arg-type]
    return shown


def write_plan(outputs: Path, command: str, runs: list[FakeRun]) -> None:
    folders = [run_folder(outputs / "runs", run.manifest["label"], run.manifest["identity"]) for run in runs]
    store.write_plan(outputs, command, [(folder, None) for folder in folders])


def test_an_overview_names_what_was_logged(outputs: Path) -> None:
    logged = read_logged(outputs)
    (overview,) = overviews(outputs)
    (sweep,) = [run for run in logged.values() if run.job_type == "sweep"]
    assert (overview.sweep_id, overview.group) == (sweep.id, sweep.group)
    assert set(overview.shown) == {"results", *sweep.images} and len(overview.shown) > 2
    assert [section.benchmark for section in overview.sections] == ["longbench", "needle"]
    for section in overview.sections:
        runs = [logged[id] for id in section.ids]
        assert len(runs) == 2 and {run.config["benchmark"] for run in runs} == {section.benchmark}
        assert set(section.shown) == {key for run in runs for key in (*run.tables, *run.images)}
        assert set(section.metrics) <= {key for run in runs for key in run.summary}
        assert any(note.startswith("Protocol: ") for note in section.notes)
    suite, needle = overview.sections
    assert "score/qasper" in suite.metrics and "category/summarisation" in suite.metrics
    assert "score/needle" not in needle.metrics, "it is the score itself"
    assert "oom" in needle.metrics and "oom" not in suite.metrics, "none of the suite's samples ran out of memory"


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    """Two protocols of a benchmark are two sections, whose runs are known by their ids."""
    runs = [make_run(method, "0.2", 0.5, question=question) for question in ("aware", "agnostic") for method in "ab"]
    write_store(tmp_path, runs)
    log_offline(tmp_path)
    (overview,) = overviews(tmp_path)
    assert [len(section.ids) for section in overview.sections] == [2, 2]
    assert not any(section.is_named for section in overview.sections)
    assert len({note for section in overview.sections for note in section.notes if "question=" in note}) == 2


@pytest.mark.workspaces
def test_every_filter_finds_its_runs_and_every_panel_its_keys(outputs: Path) -> None:
    logged = read_logged(outputs)
    (overview,) = overviews(outputs)
    check_report(overview, logged)
    check_report(replace(overview, group=None), logged)
    apart = tuple(replace(section, is_named=False) for section in overview.sections)
    check_report(replace(overview, sections=apart), logged)
    check_report(replace(overview, sections=overview.sections[:1]), {
        id: run for id, run in logged.items() if run.job_type == "sweep" or id in overview.sections[0].ids
    })  # fmt: skip


@pytest.mark.workspaces
def test_runs_of_other_groups_are_found_by_their_ids(tmp_path: Path) -> None:
    """A run of two sweeps is in the group of the larger one, and a group that the user names has all sweeps."""
    runs = [make_run(method, "0.2", 0.5) for method in "abcd"]
    write_store(tmp_path, runs[:3], "python -m kvbench -m experiment=large")
    write_store(tmp_path, runs[3:], "python -m kvbench experiment=none")
    write_plan(tmp_path, "python -m kvbench -m experiment=small", runs[2:])
    log_offline(tmp_path)
    by_title = {overview.title.partition("-")[0]: overview for overview in overviews(tmp_path)}
    assert by_title["large"].group is not None and by_title["small"].group is None
    for overview in by_title.values():
        check_report(overview, read_logged(tmp_path))
    log_offline(tmp_path, group='mine\'s = "<all>"')
    for overview in overviews(tmp_path):
        assert overview.group is None
        check_report(overview, read_logged(tmp_path))


@pytest.mark.workspaces
@pytest.mark.parametrize("name", ["a=b", "it's", '"', "a < b and c >= d", "within_last 5 days", "\\", "日本"])
def test_a_filter_takes_any_text(name: str) -> None:
    section = Section(name, name, ("1",), True, True, ("score",), (), ())
    overview = Overview("m", "t", "c", name, "s", (), (section, replace(section, benchmark="other")))
    (grid, _) = grids(wandb_report.build(overview, "p", ""))
    (runs,) = grid["metadata"]["runSets"]
    assert [item["value"] for item in runs["filters"]["filters"]] == [name, "benchmark", name, name]


def grids(report: Any) -> list[dict[str, Any]]:
    """Return the panel grids of a report as W&B's server would get them."""
    spec = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return [block for block in spec["blocks"] if block["type"] == "panel-grid"]


def check_report(overview: Overview, logged: Mapping[str, LoggedRun]) -> None:
    """Check each grid of a report against the runs of the project."""
    report = wandb_report.build(overview, "kvbench", "")
    assert (report.title, report.project) == (f"kvbench: {overview.title}", "kvbench")
    shown = [section.ids for section in overview.sections]
    expected = [(overview.sweep_id,), *shown] if overview.shown else shown
    assert len(grids(report)) == len(expected)
    for grid, ids in zip(grids(report), expected, strict=True):
        (runset,) = grid["metadata"]["runSets"]
        assert "project" not in runset, "the runs are those of the project of the report"
        runs = [run for run in logged.values() if _passes(run, runset["filters"]["filters"])]
        assert {run.id for run in runs} == set(ids)
        panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
        named = {key for panel in panels for key in _keys(panel)}
        there = {kind: {key for run in runs for key in getattr(run, kind)} for kind in ("tables", "images", "summary")}
        for kind, key in named:
            assert key in there[kind], f"no run has {key}"
        for kind in ("tables", "images"):
            assert {key for of, key in named if of == kind} == there[kind], "all that was logged is shown"
        columns = runset["runFeed"]["columnOrder"]
        columns += [f"config:{key}.value" for key in re.findall(r"\$\{config:(\w+)\}", json.dumps(panels))]
        for column in columns:
            kind, _, name = column.partition(":")
            assert any(name.removesuffix(".value") in getattr(run, kind) for run in runs), column
        _check_layout(panels)


def _passes(run: LoggedRun, items: list[dict[str, Any]]) -> bool:
    facts = {"name": run.id, "group": run.group, "jobType": run.job_type}
    assert items and all(item.get("connector", "AND") == "AND" and not item["disabled"] for item in items)
    for item in items:
        section, name = item["key"]["section"], item["key"]["name"]
        value = run.config.get(name) if section == "config" else facts[name]
        if value not in (item["value"] if item["op"] == "IN" else [item["value"]]):
            return False
    return True


def _keys(panel: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a panel names, with the part of a run that has it."""
    config, kind = panel["config"], panel["viewType"]
    if kind == "Bar Chart":
        return [("summary", key) for key in config["metrics"]]
    if kind == "Scatter Plot":
        axes = [config["xAxis"], config["yAxis"]]
        assert all(axis.startswith("summary:") for axis in axes)
        return [("summary", axis.removeprefix("summary:")) for axis in axes]
    if kind == "Media Browser":
        return [("images", key) for key in config["mediaKeys"]]
    assert kind == "Weave"
    return [("tables", config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])]


def _check_layout(panels: list[dict[str, Any]]) -> None:
    cells: set[tuple[int, int]] = set()
    for place in (panel["layout"] for panel in panels):
        across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        own = {(x, y) for x in across for y in down}
        assert across.stop <= 24 and not own & cells, "panels lie next to each other"
        cells |= own


@pytest.mark.slow
@pytest.mark.workspaces
def test_a_report_is_saved_once_and_updated(tmp_path: Path, outputs: Path) -> None:
    """After `scripts/wandb_sync`, as its ledgers say; the id is kept, also where only the server knows it."""
    copy = tmp_path / "copy"
    shutil.copytree(outputs, copy)
    places = [file.parent for file in (copy / "wandb" / "kvbench").glob("*/*/entry.json")]
    for place in places:
        write_ledger(place, replace(read_ledger(place), sent=True))
    with report_server() as server:
        there = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
        server.refuses = True
        done = run_order(order(copy, wandb=True), **there)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no room" in done.stderr
        server.refuses = False
        done = run_order(order(copy, wandb=True), **there)
        assert done.returncode == 0 and f"W&B: report {server.url}/team/kvbench/reports/" in done.stderr
        done = run_order(order(copy, wandb=True), **there)
        assert done.returncode == 0 and len(server.saved) == 1, "nothing has changed"
        (place,) = (copy / "wandb" / "kvbench" / "kvbench").glob("report-*")
        shutil.rmtree(place)
        for at in places:  # the server knows reports alone, so no run may be sent to the team
            write_ledger(at, replace(read_ledger(at), entity="team"))
        assert run_order(order(copy, wandb={"entity": "team"}), **there).returncode == 0
        assert len(server.saved) == 2 and len(server.reports) == 1
        shutil.rmtree(place)
        assert run_order(order(copy, wandb={"entity": "team", "report": False}), **there).returncode == 0
        assert len(server.saved) == 2
    (report,) = server.reports.values()
    assert report["displayName"].startswith("kvbench: try-") and "needle/needle" in report["spec"]


def test_without_the_package_a_line_says_how_to_get_it(
    tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", "")  # the sink sets it
    sink = WandbSink(WandbSettings(mode="offline"), tmp_path)
    sink.online = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    caplog.set_level("INFO")
    (overview,) = overviews(outputs)
    sink.share(overview)
    sink.share(overview)
    lines = [record.getMessage() for record in caplog.records if "report" in record.getMessage()]
    again = f"kvbench log {tmp_path} logger=wandb"
    assert lines == [
        f"W&B: no report, as wandb-workspaces is not installed; pip install 'kvbench[wandb]', then: {again}"
    ]
