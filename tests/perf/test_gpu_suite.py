"""scripts/gpu_suite: a dry run on the CPU through all steps, its verdicts on made-up records, and its wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "scripts" / "gpu_suite"
GPU = ROOT / "perf" / "gpu"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a module of perf/gpu; forgotten afterwards, for their names are common ones."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(GPU))

    def loaded(name: str) -> ModuleType:
        return __import__(name)

    yield loaded
    for name in set(sys.modules) - before:
        if str(GPU) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def suite(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUITE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))


@pytest.mark.slow
def test_a_dry_run_goes_through_all_steps(tmp_path, load):
    done = suite("--dry-run", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu_suite.log").read_text()
    result = json.loads((tmp_path / "gpu_suite.json").read_text())
    statuses = {record["step"]: record["status"] for record in result["records"] if "step" in record}
    assert list(statuses.values()).count("ok") == 10 and set(statuses.values()) == {"ok", "missing"}
    assert {r["bench"] for r in result["records"] if "bench" in r} == {
        "compiled", "ceilings", "decode", "append", "scoring", "step", "profile",
    }  # fmt: skip
    errors = [record["error"] for record in result["records"] if "contender" in record and "error" in record]
    assert len(errors) == 8 and max(errors) < 5e-3
    assert all(record["bitwise"] for record in result["records"] if "bitwise" in record)
    (checked,) = (record for record in result["records"] if record.get("part") == "checked")
    assert checked["error"] < 1e-4 and checked["chosen"] and checked["moved"]
    assert {line["verdict"] for line in result["shows"]} == {"dry run", "not measured"}
    about = result["about"]
    assert about["toy"] and about["versions"]["torch"] == torch.__version__ and about["commit"] and about["date"]
    assert str(ROOT) not in (tmp_path / "gpu_suite.jsonl").read_text()
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
    assert done.returncode == 2 and "--only nonsense: no such step, choose of build, check, tests" in done.stderr


def test_a_step_that_takes_too_long_is_ended_and_keeps_what_it_wrote(tmp_path, load, capsys):
    suite_, steps = load("suite"), load("suite_steps")
    runner = suite_.Suite(tmp_path, dict(os.environ), suite_.time.monotonic() + 60, 1)
    code = "print('begun', flush=True); import time; time.sleep(600)"
    step = steps.Step("slow", 6, [sys.executable, "-c", code])
    assert runner._step(step, 5.5) == "timeout"
    assert runner._step(steps.Step("late", 6, ["true"]), 1) == "skipped"
    assert runner._step(steps.Step("gone", 6, None, lacks="no such tool"), 9) == "missing"
    records = [json.loads(line) for line in (tmp_path / "gpu_suite.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["timeout", "skipped", "missing"]
    assert records[0]["output"] == "begun\n" and 5 < records[0]["seconds"] < 30
    assert "no such tool" in capsys.readouterr().out


def test_the_shares_fit_into_the_time(load, tmp_path):
    result = load("suite_steps").steps(tmp_path, tmp_path / "records", False)
    alone = sum(step.share for step in result if not step.parallel)
    assert alone + max(step.share for step in result if step.parallel) == load("suite")._FULL == 540


def layer(contender: str, us: float, batch: int = 16, mean: int = 2048, lengths: str = "equal", **more: object):
    nbytes = 4096 * batch * mean
    return {
        "bench": "decode", "batch": batch, "mean": mean, "lengths": lengths, "nbytes": nbytes, "contender": contender,
        "us": us, "of_copy": 0.5, "error": 1e-3, **more,
    }  # fmt: skip


def step(budget: int | None, tokens_s: float, peak: float, kept: float, roofline: float = 1.1):
    return {
        "bench": "step", "batch": 16, "context": 32768, "budget": budget, "mode": "graph", "kernel": "cuda",
        "tpot_s": 16 / tokens_s, "tokens_s": tokens_s, "times_roofline": roofline, "peak_bytes": peak,
        "kept_bytes": kept,
    }  # fmt: skip


def verdicts(load, records) -> dict[str, tuple[str, str]]:
    return {line.what: (line.verdict, line.measured) for line in load("suite_targets").lines(records)}


def test_nothing_measured(load):
    matches = verdicts(load, [])
    assert len(matches) == 24 and {verdict for verdict, _ in matches.values()} == {"not measured"}


def test_decode_is_judged_by_the_worst_large_case(load):
    records = [
        layer("ours", 30, of_copy=0.9, bitwise=True), layer("torch_fa", 33), layer("fa3", 27),
        layer("ours", 31, lengths="pareto", of_copy=0.87), layer("torch_fa", 93, lengths="pareto"),
        layer("ours", 34, lengths="one_long"), layer("torch_fa", 51, lengths="one_long"),
        layer("ours", 6, mean=128, of_copy=0.3), layer("torch_fa", 5, mean=128),
        layer("ours_fused", 32, lengths="pareto"), layer("adakv_described", 128, lengths="pareto"),
        layer("adakv_wide", 80, lengths="pareto"),
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["decode, of the copy bandwidth"] == (
        "holds", "0.90 (16 x 2048 equal); all sizes 0.30 (16 x 128 equal)",
    )  # fmt: skip
    assert matches["skewed lengths, times equal ones"] == ("does not", "1.13 (16 x 2048 one_long)")
    assert matches["times torch's flash, equal"] == (
        "holds", "1.10 (16 x 2048 equal); all sizes 0.83 (16 x 128 equal)",
    )  # fmt: skip
    assert matches["times torch's flash, skewed"] == ("does not", "1.50 (16 x 2048 one_long)")
    assert matches["times flash-attention 3, equal"] == ("does not", "0.90 (16 x 2048 equal)")
    assert matches["times flash-attention 3, skewed"][0] == "not measured"
    assert matches["step by copying, 16 x 2048"] == ("holds", "4.00 (16 x 2048 pareto); 16-byte copies 2.50")
    assert matches["step by copying, 1 x 32768"][0] == "not measured"
    assert matches["decode, error against float64"][0] == "holds"
    assert matches["three runs equal bit for bit"] == ("holds", "1 of 1")


@pytest.mark.parametrize("error", [float("nan"), 6e-3])
def test_an_error_that_is_large_or_no_number(load, error):
    records = [layer("ours", 30), layer("ours", 30, mean=1024) | {"error": error}, layer("ours", 30, mean=512)]
    assert verdicts(load, records)["decode, error against float64"][0] == "does not"


def test_append_and_scoring(load):
    def append(length: int, us: float):
        return {"bench": "append", "batch": 1, "length": length, "way": "ours", "us": us}

    def part(name: str, us: float):
        return {"bench": "scoring", "tokens": 32768, "part": name, "us": us}

    cell = {"bench": "profile", "context": 32768, "budget": 1024, "compress_s": 0.03, "prefill_s": 1.5}
    records = [append(128, 2.0), append(32768, 2.1), part("compress", 120), part("attention", 15000), cell]
    matches = verdicts(load, [*records, part("attention", 12000), part("products", 20000), part("eager", 480)])
    assert matches["append per layer, in a graph"] == ("holds", "2.10 us (1 x 32768)")
    assert matches["append, longest over shortest"] == ("holds", "1.05 (32768 tokens)")
    assert matches["score, select, move at 32k, of the prefill"] == (
        "holds", "0.38% (of attention alone 1.00%; eager 4.0x as long)",
    )  # fmt: skip
    assert matches["compressing at 32k, of a model's prefill"] == ("does not", "2.00%")


def test_whole_steps(load):
    matches = verdicts(load, [step(None, 800, 90e9, 70e9), step(1024, 3600, 23e9, 2e9, roofline=1.3)])
    assert matches["16 x 32k, budget 1024, tokens/s of the full cache's"] == ("holds", "4.50 (3600 against 800)")
    assert matches["whole step, times the byte roofline"] == ("does not", "1.30 (batch 16, 1024)")
    assert matches["16 x 32k, budget 1024, peak saved of what it promises"] == ("holds", "0.985 (67.0 of 68.0 GB)")


def test_a_sanitizer_that_finds_nothing_has_to_find_what_is_planted(load):
    clean = {"step": "memcheck", "status": "ok", "found": 0, "cases": 20}
    what = "compute-sanitizer memcheck"
    assert verdicts(load, [clean])[what][0] == "not measured"
    assert verdicts(load, [clean, {"step": "control", "status": "ok"}])[what] == ("holds", "cases 20, found 0")
    steps = load("suite_steps")
    read = steps._ran("20 cases ran, wrong: none\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors)\n")
    assert read == {"found": 3, "cases": 20} and not steps._clean(0, read)
    assert steps._clean(0, steps._ran("20 cases ran\n========= ERROR SUMMARY: 0 errors"))
    assert not steps._clean(0, steps._ran("========= Error: it could not attach\n========= ERROR SUMMARY: 0 errors"))


def test_a_dry_run_proves_nothing(load):
    records = [layer("ours", 30, bitwise=True) | {"about": {"toy": True}}]
    assert {verdict for verdict, _ in verdicts(load, records).values()} == {"dry run", "not measured"}


def test_wheels_replace_nothing_that_is_there(load):
    wheels = load("suite_wheels")
    files = [Path(f"{name}-1.0-py3-none-any.whl") for name in ("hydra_core", "antlr4_python3_runtime", "pytest")]
    assert wheels.missing(files, {"pytest", "torch"}) == files[:2]
    assert {"pytest", "torch", "hydra-core"} <= wheels.present()
    with pytest.raises(ValueError, match=r"--wheels nowhere: there are none; make them with scripts/gpu_suite --pre"):
        wheels.install(Path("nowhere"), Path("target"))


def test_lengths_have_one_total(load):
    layers = load("layers")
    for shape in (layers.Shape(16, 2048), layers.Shape(1, 32768), layers.Shape(1, 24, heads=4, kv_heads=2)):
        for kind in layers.LENGTHS:
            result = layers.lengths(kind, shape)
            assert len(result) == shape.segments and min(result) >= 1 and sum(result) == shape.segments * shape.mean
    assert max(layers.lengths("one_long", layers.Shape(1, 32768))) == pytest.approx(0.75 * 8 * 32768, abs=8)
    assert max(layers.lengths("one_long", layers.Shape(16, 2048))) == pytest.approx(16 * 2048, abs=128)


def test_the_op_of_fa3_is_looked_at(load):
    rivals = load("rivals")
    more = ", ".join(f"Tensor? {name} = None" for name in rivals._FA3_ARGUMENTS[3:])
    schema = torch._C.parse_schema(f"fa3::fwd(Tensor q, Tensor k, Tensor v, {more}, int sm_margin = 0) -> Tensor")
    rivals.check_fa3(schema)
    other = str(schema).replace("(Tensor q", "(Tensor page, Tensor q").replace(", Tensor? num_splits=None", "")
    with pytest.raises(ValueError, match=r"lacks \['num_splits'\], wants \['page'\]"):
        rivals.check_fa3(torch._C.parse_schema(other))
