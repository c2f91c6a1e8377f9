"""The exports: what other tools read of them, and that nothing of a record is lost or doubled."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from kvbench.report.export import common
from kvbench.report.export.__main__ import FORMATS, export, main
from kvbench.report.written import replace_earlier
from kvbench.store import StoredRun, load_run, load_runs
from tests.helpers.fake_runs import make_part, make_run, out_of_memory, store_run
from tests.helpers.store_runs import OPEN, budgeted, open_run, record
from tests.helpers.synthetic_store import write_store

SCHEMAS = Path(__file__).parents[1] / "golden" / "every_eval_ever"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Store a needle with gaps, a suite, and a run with odd texts and values."""
    root = tmp_path / "runs"
    store_run(root, out_of_memory(make_run("snapkv", "0.2", None), 0, 4))
    store_run(root, make_run("fullkv", "full", 1.0))
    store_run(root, make_part("snapkv", "0.2", "qasper", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85]))
    with open_run(root, config={"model": {"kind": "hub", "path": "owner/Name-7B"}}) as run:
        run.append(record("a", token_ids=[1, 2], kept=[[3, 4], [5, 6]], context="c1", prompt_tokens=9, later="new"))
        run.append(record("b", token_ids="none", new_tokens=2.5, meta={"depth": 50, "half": "\ud800"}))
        run.append(record("c", "failed"))
    return root


def write(root: Path, form: str, out: Path) -> dict[str, bytes]:
    """Export and return the files by their path."""
    export(root, form, out)
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_store_gives_the_same_bytes(form: str, runs: Path, tmp_path: Path) -> None:
    first = write(runs, form, tmp_path / "a")
    assert first and write(runs, form, tmp_path / "b") == first
    assert write(runs, form, tmp_path / "a") == first, "exporting again adds nothing"


@pytest.mark.parametrize("form", FORMATS)
def test_exporting_again_leaves_nothing_of_runs_that_are_gone(form: str, runs: Path, tmp_path: Path) -> None:
    """One run is deleted, and another was computed again, at another time."""
    write(runs, form, tmp_path / "out")
    first, *_, last = sorted(file.parent for file in runs.rglob("manifest.json"))
    shutil.rmtree(first)
    manifest = json.loads((last / "manifest.json").read_text())
    (last / "manifest.json").write_text(json.dumps(manifest | {"created": "2031-01-01T00:00:00Z"}))
    assert write(runs, form, tmp_path / "out") == write(runs, form, tmp_path / "fresh")


@pytest.mark.parametrize(("form", "deleted"), [("every-eval-ever", 1), ("lm-eval", 0)])
def test_exporting_again_deletes_only_its_own_files(
    form: str, deleted: int, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Neither what the user has changed or added, nor the runs of another store or benchmark."""
    out, second = tmp_path / "out", tmp_path / "second"
    store_run(second, make_run("h2o", "0.2", 0.5))
    command = [str(runs), "--format", form, "--out", str(out)]
    main(command)
    main([*command, "--benchmark", "needle"])
    main([str(second), *command[1:]])
    written = sorted(file for file in out.rglob("*") if file.is_file() and not file.name.startswith("."))
    added = written[0].with_name("notes.txt")
    added.write_text("mine")
    changed = next(file for file in written if "qasper" in file.read_text())
    changed.write_text(changed.read_text() + " ")
    for folder in {file.parent for file in runs.rglob("manifest.json")}:
        if "qasper" in str(folder):
            shutil.rmtree(folder)
    capsys.readouterr()
    assert main(command) == 0
    assert ("; 1 files of the last export deleted\n" in capsys.readouterr().out) == bool(deleted)
    assert added.read_text() == "mine" and changed.exists()
    assert len([file for file in written if not file.exists()]) == deleted


def test_a_list_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    """The list is a file that anybody may have changed."""
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    out.mkdir()
    outside.write_text("x")
    (out / "link").symlink_to(outside)
    (out / "folder").symlink_to(tmp_path)
    ours = out / "a" / "b.txt"
    ours.parent.mkdir()
    ours.write_text("x")
    assert replace_earlier(out, "s", [ours]) == 0
    (place,) = out.glob(".written-*")
    digest = json.loads(place.read_text())["files"]["a/b.txt"]
    names = ["../outside.txt", str(outside), "link", "folder/outside.txt", "a/b.txt", "a", "gone"]
    place.write_text(json.dumps({"files": dict.fromkeys(names, digest)}))
    assert replace_earlier(out, "s", []) == 1
    assert outside.exists() and not ours.parent.exists() and (out / "link").is_symlink()
    place.write_text("{")
    assert replace_earlier(out, "s", []) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_one_run_at_a_time_is_in_memory(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "runs", runs=9, samples=2)
    alive: list[weakref.ref[StoredRun]] = []

    def load(folder: Path) -> StoredRun:
        assert sum(run() is not None for run in alive) <= 1
        run = load_run(folder)
        alive.append(weakref.ref(run))
        return run

    monkeypatch.setattr(common, "load_run", load)
    export(tmp_path / "runs", form, tmp_path / "out")
    assert len(alive) >= 9


def test_parquet_loads_with_datasets(runs: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    write(runs, "parquet", tmp_path / "out")
    cache = str(tmp_path / "cache")
    samples = load_dataset(str(tmp_path / "out"), cache_dir=cache)["train"]
    stored = [(run, sample) for run in load_runs(runs) for sample in run.samples]
    assert len(samples) == len(stored) == 9 + 9 + 8 + 3
    for row, (run, sample) in zip(samples, stored, strict=True):
        assert (row["run"], row["id"], row["status"]) == (run.manifest["hash"], sample["id"], sample["status"])
        if sample["status"] == "ok":
            assert row["score"] == sample["scores"][run.manifest["headline"]]
            assert json.loads(row["scores"]) == sample["scores"] and row["ttft_s"] == sample["timings"]["ttft_s"]
            assert (row["kept_mean"], row["span"]) == (sample["kept_mean"], sample["span"])
        else:
            assert row["score"] is None and row["prediction"] is None
    table = load_dataset(str(tmp_path / "out"), "runs", cache_dir=cache)["train"]
    assert [row["run"] for row in table] == [run.manifest["hash"] for run in load_runs(runs)]
    assert {row["dataset"] for row in table} == {None, "qasper"}


def test_parquet_keeps_what_its_columns_cannot_hold(runs: Path, tmp_path: Path) -> None:
    """A key that no column has, or a value of another type, is in the column `more`."""
    import pyarrow.parquet

    write(runs, "parquet", tmp_path / "out")
    rows = {row["id"]: row for row in pyarrow.parquet.read_table(tmp_path / "out" / "samples.parquet").to_pylist()}
    assert rows["a"]["kept"] == [[3, 4], [5, 6]] and rows["a"]["token_ids"] == [1, 2]
    assert rows["a"]["context"] == "c1" and rows["b"]["context"] is None
    assert json.loads(rows["a"]["more"]) == {"later": "new"}
    assert rows["b"]["token_ids"] is None and rows["b"]["new_tokens"] is None
    assert json.loads(rows["b"]["more"]) == {"token_ids": "none", "new_tokens": 2.5}
    assert rows["b"]["prediction"] == "Zahl 7 \u2028 \u4e2d\\ud800"
    assert rows["c"]["status"] == "failed" and rows["c"]["error"] == "no answer"


def instances(out: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for file in sorted(out.rglob("*.json")):
        samples = file.with_name(f"{file.stem}_samples.jsonl")
        yield json.loads(file.read_text()), [json.loads(line) for line in samples.read_bytes().splitlines()]


def test_every_eval_ever_has_no_error(runs: Path, tmp_path: Path) -> None:
    """All files follow the published schemas, and what links them agrees, as the project's validator demands."""
    files = write(runs, "every-eval-ever", tmp_path / "out")
    whole = Draft7Validator(json.loads((SCHEMAS / "eval.schema.json").read_text()))
    each = Draft7Validator(json.loads((SCHEMAS / "instance_level_eval.schema.json").read_text()))
    logs = list(instances(tmp_path / "out"))
    assert len(logs) == 4 and len([name for name in files if not name.startswith(".")]) == 8
    for log, rows in logs:
        assert not list(whole.iter_errors(log))
        assert not [error for row in rows for error in each.iter_errors(row)]
        details = log["detailed_evaluation_results"]
        assert re.fullmatch(r"data(/[\w.+=-]+){3}/[0-9a-f-]{14}4[0-9a-f-]{21}_samples\.jsonl", details["file_path"])
        assert hashlib.sha256(files[details["file_path"]]).hexdigest() == details["checksum"]
        assert details["total_rows"] == len(rows)
        assert {row["evaluation_id"] for row in rows} == {log["evaluation_id"]}
        assert {row["model_id"] for row in rows} == {log["model_info"]["id"]}
        results = {result["evaluation_result_id"]: result for result in log["evaluation_results"]}
        for name, result in results.items():
            values = [row["evaluation"]["score"] for row in rows if row["evaluation_result_id"] == name]
            assert result["score_details"]["score"] == pytest.approx(sum(values) / len(values), abs=1e-15)
            assert result["score_details"]["uncertainty"]["num_samples"] == len(values)
    assert len({log["evaluation_id"] for log, _ in logs}) == 4


def test_every_eval_ever_names_model_method_and_losses(runs: Path, tmp_path: Path) -> None:
    write(runs, "every-eval-ever", tmp_path / "out")
    logs = {log["evaluation_id"].split("/")[0] + log["model_info"]["id"]: log for log, _ in instances(tmp_path / "out")}
    hub = logs["needleowner/Name-7B"]
    assert hub["model_info"]["additional_details"]["model_availability"] == "open_weights"
    part = logs["longbench-qasperlocal/smollm2_135m"]
    details = part["evaluation_results"][0]["generation_config"]["additional_details"]
    assert (details["kv_cache_method"], details["kv_cache_budget"]) == ("snapkv", "0.2")
    lost = [log["evaluation_results"][0]["score_details"]["details"] for log, _ in instances(tmp_path / "out")]
    assert sorted((entry["oom"], entry["failed"]) for entry in lost) == [("0", "0"), ("0", "0"), ("0", "1"), ("2", "0")]


def test_a_score_outside_of_0_to_1_has_no_range(tmp_path: Path) -> None:
    """The validator refuses a score outside of its declared range, so that none is declared."""
    with open_run(tmp_path / "runs") as run:
        run.append(record("a", scores={"recall": 37.5}))
    write(tmp_path / "runs", "every-eval-ever", tmp_path / "out")
    [(log, _)] = instances(tmp_path / "out")
    assert "max_score" not in log["evaluation_results"][0]["metric_config"]


def test_lm_eval_has_a_folder_per_variant(runs: Path, tmp_path: Path) -> None:
    write(runs, "lm-eval", tmp_path / "out")
    folders = {folder.name.partition("-b")[0]: folder for folder in sorted((tmp_path / "out").glob("[!.]*"))}
    assert set(folders) == {"smollm2_135m__snapkv", "smollm2_135m__fullkv", "tiny__snapkv"}
    [file] = folders["smollm2_135m__snapkv"].glob("results_*.json")
    content = json.loads(file.read_text())
    assert set(content["results"]) == {"needle", "longbench-qasper"}
    assert content["results"]["longbench-qasper"]["qa_f1,none"] == pytest.approx(0.45625)
    assert content["n-samples"]["needle"] == {"original": 9, "effective": 7}
    stamp = file.stem.removeprefix("results_")
    lines = (file.parent / f"samples_needle_{stamp}.jsonl").read_text().splitlines()
    values = [json.loads(line)["recall"] for line in lines]
    assert content["results"]["needle"]["recall,none"] == pytest.approx(sum(values) / 7)
    numbers = {line["doc"]["id"]: line["doc_id"] for line in map(json.loads, lines)}
    ids = [record["id"] for record in load_runs(runs, "needle")[0].samples]
    assert numbers == {name: ids.index(name) for name in ids if name in numbers}, (
        "not shifted by the two without answer"
    )


def test_lm_eval_numbers_samples_alike_in_whole_and_partial_runs(tmp_path: Path) -> None:
    """The index of a dataset counts, or the place among all samples; a sample without an answer shifts no other."""
    whole, part = make_part("fullkv", "full", "qasper", 0.5), make_part("snapkv", "0.2", "qasper", 0.5)
    part.samples = [out_of_memory(part, 3).samples[at] for at in (1, 3, 6)]
    for run in (whole, part):
        store_run(tmp_path / "runs", run)
    write(tmp_path / "runs", "lm-eval", tmp_path / "out")
    numbers = [
        {line["doc"]["id"]: line["doc_id"] for line in map(json.loads, file.read_text().splitlines())}
        for file in sorted((tmp_path / "out").rglob("samples_*.jsonl"))
    ]
    assert numbers[0] == {f"qasper-{at:04d}": at for at in range(8)}
    assert numbers[1] == {"qasper-0001": 1, "qasper-0006": 6}


def test_lm_eval_keeps_two_protocols_of_one_benchmark_apart(tmp_path: Path) -> None:
    for question in ("aware", "agnostic"):
        store_run(tmp_path / "runs", make_run("snapkv", "0.2", 1.0, question=question))
    write(tmp_path / "runs", "lm-eval", tmp_path / "out")
    [file] = (tmp_path / "out").rglob("results_*.json")
    tasks = json.loads(file.read_text())["results"]
    assert len(tasks) == 2 and all(re.fullmatch("needle_[0-9a-f]{8}", task) for task in tasks)
    assert len(list(file.parent.glob("samples_needle_*.jsonl"))) == 2


@pytest.mark.parametrize("form", ["every-eval-ever", "lm-eval"])
def test_a_run_without_an_answer_is_left_out_and_said(form: str, tmp_path: Path) -> None:
    store_run(tmp_path / "runs", out_of_memory(make_run("snapkv", "0.2", None), *range(9)))
    words = export(tmp_path / "runs", form, tmp_path / "out")
    assert words.startswith("0 runs with 0 samples") and words.endswith("; 1 without an answer left out")


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_run_is_left_out(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for budget in ("10", "20"):
        with open_run(tmp_path / "runs", **budgeted(budget)) as run:
            run.append(record("a"))
    damaged = load_runs(tmp_path / "runs")[0].path / "samples.jsonl"
    damaged.write_bytes(b"{}\n" + damaged.read_bytes())
    assert export(tmp_path / "runs", form, tmp_path / "out").startswith("1 runs with 1 samples")
    assert "left out" in caplog.text


def test_mistakes_are_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for words, message in (
        ([str(runs), "--format", "parquet", "--out", str(runs / "x")], "lies inside"),
        ([str(tmp_path / "none"), "--format", "parquet", "--out", out], "no runs there"),
        ([str(runs), "--format", "parquet", "--out", out, "--benchmark", "ruler"], "no runs of benchmark ruler"),
        ([str(runs), "--format", "xlsx", "--out", out], "invalid choice: 'xlsx'"),
        ([str(runs), "--out", out], "--format"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_benchmark_chooses_a_suite(runs: Path, tmp_path: Path) -> None:
    assert export(runs, "parquet", tmp_path / "out", "longbench").startswith("1 runs with 8 samples")
    assert OPEN["label"]["benchmark"] == "needle"
    assert export(runs, "parquet", tmp_path / "out", "needle").startswith("3 runs with 21 samples")


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_run_on_two_kinds_of_device_is_exported_twice(form: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        run = make_run("snapkv", "0.2", 1.0, device=device)
        run.manifest["hardware"] = {"name": f"A {device} of some kind"}
        store_run(tmp_path / "runs" / device, run)
    files = write(tmp_path / "runs", form, tmp_path / "out")
    if form == "parquet":
        import pyarrow.parquet as parquet

        tables = {name: parquet.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("samples", "runs")}
        rows = {name: table.to_pylist() for name, table in tables.items()}
        assert [row["device_kind"] for row in rows["runs"]] == ["cpu", "cuda"]
        assert json.loads(rows["runs"][1]["hardware"]) == {"name": "A cuda of some kind"}
        joined = {(row["run"], row["device_kind"], row["hardware"]) for row in rows["samples"]}
        assert len(joined) == 2 and {name for *_, name in joined} == {"A cpu of some kind", "A cuda of some kind"}
        return
    texts = [content.decode() for name, content in files.items() if name.endswith(".json")]
    told = [sum(f"A {device} of some kind" in text for text in texts) for device in ("cpu", "cuda")]
    assert len(texts) == 2 and told == [1, 1]
