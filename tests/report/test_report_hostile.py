"""Reports of text from elsewhere, and reports on terminals that cannot show them or went away."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.report.__main__ import main
from kvbench.report.formats import csv_text, escaped
from kvbench.report.latex import latex
from tests.helpers.fake_runs import make_part, make_run, make_suite, store_run

HOSTILE = "\x1b[2J<script>|`=1+1$x$\\input{/etc/passwd}\u202e"


def test_text_from_elsewhere_is_escaped_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for method, budget in (("fullkv", "full"), ("snapkv", "64"), ("snapkv", "128")):
        for dataset in ("qasper", "hotpotqa"):
            run = make_part(method, budget, dataset, 0.5, category=HOSTILE, means={HOSTILE: 2}, macros={HOSTILE: 1})
            run.manifest["device"] = HOSTILE
            run.manifest["identity"]["method"]["dial"] = HOSTILE
            for sample in run.samples:
                sample["scores"][HOSTILE] = 0.25
            store_run(tmp_path / "runs", run)
    for form in ("table", "csv", "json", "latex"):
        assert main([str(tmp_path / "runs"), "--format", form, "--out", str(tmp_path / "out")]) == 0
        out, err = capsys.readouterr()
        assert not set(out + err) & set("\x1b\u202e")
    [folder] = {file.parent for file in (tmp_path / "out").rglob("table.md")}
    assert folder.parent == tmp_path / "out" and (folder / "budgets.png").is_file()
    text = (folder / "table.md").read_text()
    assert "\x1b" not in text and "<script" not in text.replace("\\<", "")
    assert "\\input" not in latex([{"method": HOSTILE}]) and "\\\\input" in escaped(HOSTILE)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_a_text_in_a_csv_file_is_no_formula(text: str) -> None:
    [row] = csv.DictReader(io.StringIO(csv_text([{"category": text, "score": -0.5}])))
    assert row["category"].startswith("'") or not row["category"].startswith(tuple("=+-@\t"))
    assert row["score"] == "-0.5"


@pytest.mark.parametrize("key", ["suite", "name"])
def test_a_suite_cannot_write_elsewhere(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    store_run(tmp_path / "runs", make_run("fullkv", "full", 1.0, lengths=[500], depths=[0]))
    run = make_part("snapkv", "64", "qasper", 0.5)
    store_run(tmp_path / "runs", run)
    [file] = [file for file in (tmp_path / "runs").rglob("manifest.json") if "snapkv" in str(file)]
    content = json.loads(file.read_text())
    content["part"][key] = "../../elsewhere"
    file.write_text(json.dumps(content))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert f"part.{key}: " in caplog.text and "use letters, digits" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_two_models_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for weights in ("aaaa", "bbbb"):
        store_run(tmp_path, make_run("snapkv", "64", 1.0, model=weights))
        for run in make_suite("snapkv", "64", 0.5, model=weights):
            store_run(tmp_path, run)
    assert main([str(tmp_path)]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    names = [head.split(", ")[1] for head in heads]
    assert len(set(names)) == 2 and all(name.startswith("smollm2_135m ") for name in names)
    assert main([str(tmp_path), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len({line["weights"] for line in lines}) == 2
    assert {f"smollm2_135m {line['weights']}" for line in lines} == set(names)


def test_failed_samples_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, part = make_run("snapkv", "64", 1.0), make_part("snapkv", "64", "qasper", 0.5)
    for each in (run, part):
        each.samples[0] = {"id": each.samples[0]["id"], "status": "failed", "error": "not finite", "meta": {}}
        store_run(tmp_path, each)
    assert main([str(tmp_path), "--format", "csv"]) == 0
    assert {line["failed"] for line in csv.DictReader(io.StringIO(capsys.readouterr().out))} == {"1"}
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1.00 (failed 1/9)" in out and "| failed |" in out and "50.00*" in out


@pytest.mark.parametrize("way", ["ascii", "head", "closed"])
def test_reports_are_written_whatever_the_terminal_can_show(tmp_path: Path, way: str) -> None:
    store_run(tmp_path / "runs", make_run("fullkv", "full", 1.0, lengths=[500], depths=[0]))
    command = f"{sys.executable} -m kvbench.report {tmp_path}/runs --out {tmp_path}/out"
    line = {"ascii": command, "head": f"{command} | head -1 ; exit ${{PIPESTATUS[0]}}", "closed": f"{command} >&-"}[way]
    environment = {"PYTHONIOENCODING": "ascii"} if way == "ascii" else {}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode in ((0, 141) if way == "head" else (0,)), done.stderr
    assert "Traceback" not in done.stderr
    [folder] = (tmp_path / "out").glob("[!.]*")
    assert {"table.md", "table.json", "scores.csv", "overview.png"} <= {file.name for file in folder.iterdir()}
