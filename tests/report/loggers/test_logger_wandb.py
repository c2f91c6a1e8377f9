"""W&B without a server: an offline run read back holds every row, score and image; nothing is there twice."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from kvbench.common.loggers import WandbSettings
from kvbench.report.loggers import content
from kvbench.report.loggers.entries import Entry, entries_of, read_manifests
from kvbench.report.loggers.ledger import read_ledger, write_ledger
from kvbench.report.loggers.wandb_sink import WandbSink
from kvbench.report.loggers.write import Writing, mark_of
from kvbench.store import load_run, run_folders
from tests.helpers.fake_runs import make_run, store_run
from tests.helpers.logged_stores import needle_runs, order, run_order, suite_runs, write_store
from tests.helpers.wandb_log import LoggedRun, read_logged

KEY = "0123456789abcdef" * 2 + "deadbeef"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of needle runs and a suite, logged offline with a key in the environment."""
    outputs = tmp_path_factory.mktemp("logged")
    write_store(outputs, [*needle_runs(), *suite_runs()])
    done = run_order(order(outputs, wandb={"mode": "offline", "tags": ["mine"]}), WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return outputs


@pytest.fixture(scope="module")
def logged(outputs: Path) -> dict[str, LoggedRun]:
    return read_logged(outputs)


def entries(outputs: Path) -> list[Entry]:
    return entries_of(read_manifests(run_folders(outputs)), {})


def entry(outputs: Path, benchmark: str, method: str) -> Entry:
    (found_entry,) = [
        e for e in entries(outputs) if (e.benchmark, e.manifest["label"]["method"]) == (benchmark, method)
    ]
    return found_entry


def test_there_is_a_run_per_variant_and_one_for_the_sweep(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    variants = {e.id for e in entries(outputs)}
    assert len(variants) == 4, "the datasets of a suite are one entry"
    (sweep,) = set(logged) - variants
    assert variants < set(logged)
    assert {run.group for run in logged.values()} == {f"try-{sweep.removeprefix('sweep-')}"}
    assert {run.job_type for key, run in logged.items() if key in variants} == {"benchmark"}
    assert logged[sweep].job_type == "sweep"
    assert {run.exit_code for run in logged.values()} == {0}
    assert {run.project for run in logged.values()} == {"kvbench"}


def test_configuration_and_tags(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    snapkv = entry(outputs, "needle", "snapkv")
    run = logged[snapkv.id]
    assert run.id == load_run(snapkv.folders[0]).manifest["hash"][:16], "the id comes from the hash"
    assert {"snapkv", "needle", "smollm2_135m", "budget=0.2", "mine"} == set(run.tags)
    assert (run.config["method"], run.config["budget"], run.config["benchmark"]) == ("snapkv", 0.2, "needle")
    assert run.config["identity"] == snapkv.manifest["identity"]


@pytest.mark.parametrize(("benchmark", "method"), [("needle", "snapkv"), ("longbench", "snapkv")])
def test_every_sample_is_a_row(outputs: Path, logged: dict[str, LoggedRun], benchmark: str, method: str) -> None:
    of = entry(outputs, benchmark, method)
    table = logged[of.id].tables["samples"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    expected = {record["id"]: (run, record) for run in of.runs() for record in run.samples}
    assert [row["id"] for row in rows] and {row["id"] for row in rows} == set(expected) and len(rows) == len(expected)
    for row in rows:
        run, record = expected[row["id"]]
        assert row["status"] == record["status"]
        if record["status"] == "ok":
            assert row["score"] == record["scores"][run.manifest["headline"]]  # type: ignore[typeddict-item]
            assert json.loads(row["answers"]) == record["answers"]  # type: ignore[typeddict-item]
            assert row["kept"] == record["kept_mean"]  # type: ignore[typeddict-item]
            assert row["ttft_s"] == record["timings"]["ttft_s"]  # type: ignore[typeddict-item]
            text = str(record["prediction"])  # type: ignore[typeddict-item]
            assert row["prediction"] == text.encode("utf-8", "replace").decode()
            assert row["prompt_tail"] == record.get("prompt_tail")


def test_history_and_summary(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    of = entry(outputs, "needle", "snapkv")
    run, rows = logged[of.id], list(content.history(of.runs()))
    points = [row for row in run.history if "recorded" in row]
    assert [row["recorded"] for row in points] == list(range(1, 10))
    assert [row["_step"] for row in points] == list(range(1, 10))
    assert [row["score"] for row in points] == [row.values["score"] for row in rows]
    assert points[0]["_timestamp"] == rows[0].seconds, "curves have the times of the records"
    scores = [record["scores"]["recall"] for record in load_run(of.folders[0]).answered]
    assert run.summary["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert (run.summary["recorded"], run.summary["oom"], run.summary["status"]) == (9, 1, "done")


def test_scores_of_the_datasets_of_a_suite(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    summary = logged[entry(outputs, "longbench", "snapkv").id].summary
    datasets = ("qasper", "multifieldqa_en", "hotpotqa", "gov_report")
    assert {key: summary[f"score/{key}"] for key in datasets} == dict.fromkeys(datasets, 0.25)
    assert summary["score"] == 0.25 and summary["category/summarisation"] == 0.25


def test_pictures_and_predictions(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    of = entry(outputs, "needle", "snapkv")
    run = logged[of.id]
    drawn = outputs / "wandb" / "kvbench" / "kvbench" / of.id / "media" / "needle.png"
    assert run.images["needle/needle"] == drawn.read_bytes() and drawn.read_bytes().startswith(b"\x89PNG")
    lines = run.artifacts[f"predictions-{of.id}"]["predictions.jsonl"].splitlines()
    records = load_run(of.folders[0]).samples
    assert [json.loads(line)["id"] for line in lines] == [record["id"] for record in records]


def test_the_sweep_has_a_table_of_all_variants(outputs: Path, logged: dict[str, LoggedRun]) -> None:
    (sweep,) = [run for run in logged.values() if run.job_type == "sweep"]
    table = sweep.tables["results"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {(row["benchmark"], row["method"]) for row in rows} == {
        (benchmark, method) for benchmark in ("needle", "longbench") for method in ("fullkv", "snapkv")
    }
    for row in rows:
        assert row["score"] == pytest.approx(logged[row["id"]].summary["score"])
    assert {"needle/overview", "needle/costs", "longbench/costs"} <= set(sweep.images)


def test_keys_are_written_nowhere(outputs: Path) -> None:
    files = [file for file in outputs.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_again_writes_nothing_and_repairs_what_is_gone(tmp_path: Path, outputs: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(outputs, copy)
    assert run_order(order(copy, wandb={"mode": "offline", "tags": ["mine"]})).returncode == 0
    again = read_logged(copy)
    assert {key: run.folder.name for key, run in again.items()} == {
        key: run.folder.name for key, run in read_logged(outputs).items()
    }
    torn, gone, changed = (
        entry(copy, b, m) for b, m in (("needle", "fullkv"), ("longbench", "snapkv"), ("needle", "snapkv"))
    )
    ledger = copy / "wandb" / "kvbench" / "kvbench" / torn.id / "entry.json"
    ledger.write_text(ledger.read_text().replace('"complete": true', '"complete": false'))
    shutil.rmtree(again[gone.id].folder)
    lines = (changed.folders[0] / "samples.jsonl").read_text().splitlines(keepends=True)
    (changed.folders[0] / "samples.jsonl").write_text("".join(lines[:-1]))
    assert run_order(order(copy, wandb={"mode": "offline", "tags": ["mine"]})).returncode == 0
    repaired = read_logged(copy)
    assert set(repaired) == set(again)
    assert len(repaired[gone.id].tables["samples"]["data"]) == 28
    assert len(repaired[changed.id].tables["samples"]["data"]) == 8
    assert repaired[torn.id].folder != again[torn.id].folder
    untouched = entry(copy, "longbench", "fullkv").id
    assert repaired[untouched].folder == again[untouched].folder


BASE: dict[str, Any] = {"mode": "offline", "tags": ["mine"]}
CHANGES: dict[str, Any] = {"project": "other", "entity": "team", "group": "g", "tags": ["mine", "more"]}


def has(outputs: Path, sink: WandbSink) -> bool:
    """Return True if a sink need not write an entry, which is in the group that it was logged in."""
    of = entry(outputs, "needle", "snapkv")
    noted = read_ledger(outputs / "wandb" / "kvbench" / "kvbench" / of.id)
    of = replace(of, group=noted.group)
    writing = Writing(sink, of.id)
    try:
        return writing.has(mark_of(of, sink))
    finally:
        writing.close()


@pytest.mark.parametrize("setting", sorted({setting.name for setting in fields(WandbSettings)} - {"mode", "report"}))
def test_a_setting_counts_after_the_first_upload(
    tmp_path: Path, outputs: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_CACHE_DIR", "")  # the sink sets it
    copy = tmp_path / "copy"
    shutil.copytree(outputs, copy)
    assert has(copy, WandbSink(WandbSettings(**BASE), copy))
    assert not has(copy, WandbSink(WandbSettings(**BASE | {setting: CHANGES[setting]}), copy))


def test_an_upload_is_noted_with_its_server_and_its_team(
    tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger of an earlier version says neither: it counts as it did."""
    monkeypatch.setenv("WANDB_CACHE_DIR", "")
    copy = tmp_path / "copy"
    shutil.copytree(outputs, copy)
    sink = WandbSink(WandbSettings(**BASE), copy)
    place = sink.place(entry(copy, "needle", "snapkv").id)
    noted = json.loads((place / "entry.json").read_text())
    assert (noted.pop("entity"), noted.pop("server")) == ("", None)
    (place / "entry.json").write_text(json.dumps(noted))
    assert has(copy, sink), "an old ledger"
    sink.online = True
    for server, is_held in ((None, True), (sink.server, True), ("https://elsewhere", False)):
        write_ledger(place, replace(read_ledger(place), sent=True, server=server))
        assert has(copy, sink) == is_held


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A server to which every key is wrong."""

    def do_GET(self) -> None:
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that refuses every key."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def one_run(tmp_path: Path) -> Path:
    store_run(tmp_path / "runs", make_run("snapkv", "0.2", 1.0, lengths=[500], depths=[0, 50]))
    return tmp_path


def test_a_wrong_key_ends_offline(tmp_path: Path, refusing: str) -> None:
    done = run_order(order(one_run(tmp_path), wandb=True), WANDB_API_KEY=KEY, WANDB_BASE_URL=refusing)
    assert (
        done.returncode == 0
        and "refuses the API key (401); going on offline" in done.stderr
        and "Traceback" not in done.stderr
    )
    (run,) = read_logged(tmp_path).values()
    assert len(run.tables["samples"]["data"]) == 2


@pytest.mark.parametrize(("key", "words"), [(None, "no API key"), (KEY, "does not answer (")], ids=["key", "network"])
def test_without_what_it_needs_it_is_offline_at_once(tmp_path: Path, key: str | None, words: str) -> None:
    away = "http://127.0.0.1:9"
    done = run_order(order(one_run(tmp_path), wandb=True), WANDB_API_KEY=key, WANDB_BASE_URL=away)
    assert words in done.stderr and done.returncode == 0
    assert len(read_logged(tmp_path)) == 1
