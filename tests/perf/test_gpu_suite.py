"""scripts/gpu_suite: a dry run on the CPU through all steps, how it resumes, and its wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers import bare
from tests.helpers.gpu_suite import ROOT, Load, suite


@pytest.mark.slow
def test_a_dry_run_on_a_bare_machine_goes_through_all_steps(tmp_path: Path, load: Load) -> None:
    wheels = load("suite_wheels")
    env = bare.environment(tmp_path / "bare", [*wheels.PURE, *wheels.SOURCE_ONLY, *wheels.FOR_LINUX])
    assert subprocess.run([sys.executable, "-c", "import datasets"], capture_output=True, env=env).returncode == 1
    python = bare.forking(tmp_path / "bare", env)
    assert subprocess.run([python, "-c", "import datasets"], capture_output=True, env=env).returncode == 1
    out = tmp_path / "out"
    done = suite("--dry-run", "--out", out, env=env)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "gpu_suite.log").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["gpu_suite.json", "gpu_suite.log", "gpu_suite.tar.gz"]
    result = json.loads((out / "gpu_suite.json").read_text())
    records = result["records"]
    statuses = {record["step"]: record["status"] for record in records if "step" in record}
    assert list(statuses.values()).count("ok") == 17 and set(statuses.values()) == {"ok", "missing"}
    assert {r["bench"] for r in records if "bench" in r} == {
        "build", "ceilings", "decode", "rivals", "append", "scoring", "questions", "linear", "step", "breakdown",
        "profile", "sweep", "variants",
    }  # fmt: skip
    errors = [record["error"] for record in records if "contender" in record and "error" in record]
    assert len(errors) == 12 and max(errors) < 5e-3
    assert all(record["bitwise"] for record in records if "bitwise" in record)
    (checked,) = (record for record in records if record.get("part") == "checked")
    assert checked["error"] < 1e-4 and checked["chosen"] and checked["moved"]
    (breakdown,) = (record for record in records if record.get("bench") == "breakdown")
    assert {"GEMM", "norm", "rope", "activation"} <= set(breakdown["families"])
    swept = [record for record in records if record.get("bench") == "sweep"]
    assert {r["tokens_equal"] for r in swept if r["what"] == "alone"} == {1.0}  # in float32, together equals alone
    assert any(record.get("kernel") == "transformers" and "tpot_s" in record for record in records)
    assert {line["verdict"] for line in result["shows"]} == {"dry run", "not measured", ""}
    about = result["about"]
    assert about["toy"] and about["versions"]["torch"] == torch.__version__ and about["commit"] and about["date"]
    assert str(ROOT) not in (out / "gpu_suite.json").read_text()
    assert "three runs equal bit for bit" in done.stdout


def test_without_a_gpu_it_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides a GPU that is there
    done = suite("--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("gpu_suite: needs an NVIDIA GPU") and len(done.stderr.splitlines()) == 1


def test_a_dry_run_is_no_result():
    done = suite("--dry-run", "--out", ROOT / "perf/results/gpu")
    assert done.returncode == 2 and "not among the results" in done.stderr
    assert not (ROOT / "perf/results/gpu/gpu_suite.jsonl").exists()


def test_a_step_that_there_is_not():
    done = suite("--dry-run", "--only", "decode,nonsense")
    choices = "--only nonsense: no such step, choose of first, second, tuning, build, smoke, "
    assert done.returncode == 2 and choices in done.stderr


def runner(load: Load, out: Path, seconds: float = 60):
    suite_ = load("suite")
    results = load("suite_results").Results(out)
    results.clear()
    return suite_.Suite(results, dict(os.environ), suite_.time.monotonic() + seconds)


def python(load: Load, name: str, code: str, **more: object):
    return load("suite_steps").Step(name, 6, [sys.executable, "-c", code], **more)


def test_a_step_that_takes_too_long_is_ended_and_keeps_what_it_wrote(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_, step_ = runner(load, tmp_path), load("suite_steps").Step
    slow = python(load, "slow", "print('begun', flush=True); import time; time.sleep(600)")
    assert suite_._step(slow, 5.5) == "timeout"
    assert suite_._step(step_("late", 6, ["true"]), 1) == "skipped"
    assert suite_._step(step_("gone", 6, None, lacks="no such tool"), 9) == "missing"
    records = [json.loads(line) for line in (tmp_path / "gpu_suite.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["timeout", "skipped", "missing"]
    assert records[0]["output"] == "begun\n" and 5 < records[0]["seconds"] < 30
    assert "no such tool" in capsys.readouterr().out


def test_fifteen_lines_of_a_failed_step_are_shown(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [python(load, "bad", "print(*range(100, 200), sep='\\n'); raise SystemExit(1)"), python(load, "good", "")]
    assert not runner(load, tmp_path).run(steps, at_once=False)
    shown = capsys.readouterr().out
    assert all(f"    {number}\n" in shown for number in range(185, 200)) and "184" not in shown
    assert "good       ok" in shown  # only a failed build ends the suite


def test_a_failed_build_ends_the_suite(tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [python(load, "build", "raise SystemExit('decode.cu(7): error')"), python(load, "decode", "")]
    assert not runner(load, tmp_path).run(steps, at_once=False)
    shown = capsys.readouterr().out
    assert "    decode.cu(7): error" in shown and "nothing else runs" in shown
    records = json.loads((tmp_path / "gpu_suite.json").read_text())["records"]
    assert [record["step"] for record in records] == ["build"]


def test_the_lines_around_a_compilers_first_error(load: Load) -> None:
    output = "\n".join([*("a note" for _ in range(50)), "x.cu(3): error: no", *(f"after {n}" for n in range(50))])
    lines = load("compiled").excerpt(output)
    assert lines[:4] == ["a note", "a note", "x.cu(3): error: no", "after 0"] and len(lines) == 24


def test_the_first_call_fits_into_four_minutes(load: Load, tmp_path: Path) -> None:
    steps = load("suite_steps").steps(tmp_path, tmp_path / "records", False)
    first = [step for step in steps if step.group == "first"]
    assert [step.name for step in first] == ["build", "smoke", "ceilings", "decode", "append", "scoring"]
    assert sum(step.share for step in first) + 3 <= 240 and steps[: len(first)] == first


def test_the_open_choices_are_measured_in_a_call_of_their_own(load: Load, tmp_path: Path) -> None:
    """In about three minutes, after which there is time left to compile the kernels."""
    steps = load("suite_steps").steps(tmp_path, tmp_path / "records", False)
    (variants,) = load("suite")._chosen(steps, "tuning")
    assert variants.name == "variants" and variants.command[-5:-4] == ["--open"] and variants.share <= 180
    assert len(load("variants").OPEN) == 8


@pytest.mark.parametrize("installed", [True, False])
def test_the_tests_run_in_several_processes_where_xdist_is_installed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    suite_steps = load("suite_steps")
    monkeypatch.setattr(suite_steps.importlib.util, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(suite_steps.os, "cpu_count", lambda: 16)
    (tests,) = (step for step in suite_steps.steps(tmp_path, tmp_path / "records", False) if step.name == "tests")
    assert ("-n 12" in " ".join(tests.command)) == installed and tests.share == (90 if installed else 150)
    (toy,) = (step for step in suite_steps.steps(tmp_path, tmp_path / "records", True) if step.name == "tests")
    assert "-n" not in toy.command


def test_steps_by_name_and_by_group(load: Load, tmp_path: Path) -> None:
    steps = load("suite_steps").steps(tmp_path, tmp_path / "records", False)
    chosen = load("suite")._chosen(steps, "first,rivals")
    assert [step.name for step in chosen][-2:] == ["scoring", "rivals"] and len(chosen) == 7
    assert load("suite")._chosen(steps, None) == steps


def result(out: Path, load: Load, **about: object) -> Path:
    """Write the result of a run in which decode went well and append did not."""
    here = {"commit": load("suite_results")._commit(), "device": {"name": "a card"}, "toy": False, "command": "first"}
    records = [
        {"step": "decode", "status": "ok", "seconds": 1}, {"bench": "decode", "what": "x", "us": 1.0},
        {"step": "append", "status": "failed", "seconds": 1}, {"bench": "append", "what": "y", "us": 1.0},
    ]  # fmt: skip
    file = out / "gpu_suite.json"
    file.write_text(json.dumps({"about": here | about, "shows": [], "records": records}))
    return file


@pytest.mark.parametrize("from_file", [True, False])
def test_resuming_keeps_what_went_well_and_runs_the_rest(tmp_path: Path, load: Load, from_file: bool) -> None:
    source = result(tmp_path, load)
    if from_file:
        source = source.rename(tmp_path / "first.json")
    results = load("suite_results").Results(tmp_path)
    assert results.resume(source if from_file else None, "a card", False) == "kept: decode"
    assert results.has("decode") and not results.has("append")
    results.forget(["append"])
    results.append({"step": "append", "status": "ok", "seconds": 2})
    results.finish("second")
    whole = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert [r.get("step") for r in whole["records"]] == ["decode", None, "append"]
    assert whole["about"]["commands"] == ["first", "second"] and whole["about"]["device"] == {"name": "a card"}
    assert not (tmp_path / "gpu_suite.jsonl").exists()


@pytest.mark.parametrize(
    ("about", "device", "differs"),
    [
        ({"commit": "0"}, "a card", "commit 0"),
        ({}, "another card", "device a card"),
        ({"toy": True}, "a card", "toy True"),
    ],
)
def test_resuming_leaves_out_results_of_another_commit_or_device(
    tmp_path: Path, load: Load, about: dict[str, object], device: str, differs: str
) -> None:
    result(tmp_path, load, **about)
    results = load("suite_results").Results(tmp_path)
    assert results.resume(None, device, False) == f"results of before are left out, they are of {differs}"
    assert not results.read()


def test_resuming_after_a_run_that_was_cut_off(tmp_path: Path, load: Load) -> None:
    about = {"commit": load("suite_results")._commit(), "device": {"name": "a card"}, "toy": False}
    lines = [json.dumps({"bench": "decode", "us": 1.0, "about": about}), '{"step": "decode", "status": "ok"}', '{"be']
    (tmp_path / "gpu_suite.jsonl").write_text("\n".join(lines))
    results = load("suite_results").Results(tmp_path)
    assert results.resume(None, "a card", False) == "kept: decode"
    assert len(results.read()) == 2


def test_resuming_nothing(tmp_path: Path, load: Load) -> None:
    assert load("suite_results").Results(tmp_path).resume(None, "a card", False).startswith("kept: nothing")
    for arguments, message in (
        (["--resume"], "--resume: say which results, by --out DIR or --resume FILE.json"),
        (["--resume", str(tmp_path / "no.json"), "--out", str(tmp_path / "out")], "no.json: no such file"),
    ):
        done = suite("--dry-run", *arguments)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_profiles_of_two_calls_are_in_one_archive_and_other_files_stay(tmp_path: Path, load: Load) -> None:
    (tmp_path / "notes.txt").write_text("of the user")
    for name in ("a", "b"):
        folder = tmp_path / "profile" / name
        folder.mkdir(parents=True)
        (folder / "cells.jsonl").write_text(json.dumps({"id": name, "context": 1, "budget": None}) + "\n")
        results = load("suite_results").Results(tmp_path)
        results.take_profile()
        results.take_profile()
        assert len(results.read()) == 1
        results.finish("command")
    with tarfile.open(tmp_path / "gpu_suite.tar.gz") as archive:
        assert {"profile/a/cells.jsonl", "profile/b/cells.jsonl"} <= set(archive.getnames())
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "profile").exists()


def test_a_table_that_cannot_be_made_costs_no_result(tmp_path: Path, load: Load) -> None:
    results = load("suite_results").Results(tmp_path)
    results.append({"bench": "decode", "contender": "ours", "us": "no number"})
    (line,) = results.finish("command")
    assert "cannot be made" in line.measured
    assert json.loads((tmp_path / "gpu_suite.json").read_text())["records"][0]["us"] == "no number"


def test_wheels_replace_nothing_that_is_there(load):
    wheels = load("suite_wheels")
    files = [Path(f"{name}-1.0-py3-none-any.whl") for name in ("hydra_core", "antlr4_python3_runtime", "pytest")]
    assert wheels.missing(files, {"pytest", "torch"}) == files[:2]
    assert {"pytest", "torch", "hydra-core"} <= wheels.present()
    with pytest.raises(ValueError, match=r"--wheels nowhere: there are none; make them with scripts/gpu_suite --pre"):
        wheels.install(Path("nowhere"), Path("target"))


def test_prepare_fetches_all_wheels(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = load("suite_wheels")
    index, target = tmp_path / "index", tmp_path / "wheels"
    index.mkdir()
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    names = [*wheels.PURE, *wheels.SOURCE_ONLY, *wheels.FOR_LINUX]
    for name, _, version in (name.partition("==") for name in names):
        write_wheel(index, name, version or pins.get(name, "1.0"))
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    done = suite("--prepare", target, env=env)
    assert done.returncode == 0, done.stderr
    assert {wheels.name_of(wheel) for wheel in target.glob("*.whl")} == {name.partition("==")[0] for name in names}
    assert f"{len(names)} wheels in" in done.stdout
    monkeypatch.setattr(wheels, "present", lambda: {"pytest"})
    assert set(wheels.install(target, tmp_path / "site")) == {name.partition("==")[0] for name in names} - {"pytest"}
    assert (tmp_path / "site" / "hydra_core" / "__init__.py").exists()


def write_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with an empty package."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/__init__.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{about}/RECORD", f"{module}/__init__.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n"
        )
