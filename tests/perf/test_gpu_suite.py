"""scripts/gpu_suite: a dry run on the CPU through all steps, its verdicts on made-up records, and its wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.helpers import bare

Load = Callable[[str], ModuleType]
ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "scripts" / "gpu_suite"
GPU = ROOT / "perf" / "gpu"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a module of perf/gpu; forgotten afterwards, for their names are common ones."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(GPU))

    def loaded(name: str) -> ModuleType:
        return __import__(name)

    yield loaded
    for name in set(sys.modules) - before:
        if str(GPU) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def suite(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUITE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env or dict(os.environ))


@pytest.mark.slow
def test_a_dry_run_on_a_bare_machine_goes_through_all_steps(tmp_path: Path, load: Load) -> None:
    wheels = load("suite_wheels")
    env = bare.environment(tmp_path / "bare", [*wheels.PURE, *wheels.SOURCE_ONLY, *wheels.FOR_LINUX])
    assert subprocess.run([sys.executable, "-c", "import datasets"], capture_output=True, env=env).returncode == 1
    out = tmp_path / "out"
    done = suite("--dry-run", "--out", out, env=env)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "gpu_suite.log").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["gpu_suite.json", "gpu_suite.log", "gpu_suite.tar.gz"]
    result = json.loads((out / "gpu_suite.json").read_text())
    records = result["records"]
    statuses = {record["step"]: record["status"] for record in records if "step" in record}
    assert list(statuses.values()).count("ok") == 12 and set(statuses.values()) == {"ok", "missing"}
    assert {r["bench"] for r in records if "bench" in r} == {
        "build", "ceilings", "decode", "rivals", "append", "scoring", "step", "breakdown", "profile",
    }  # fmt: skip
    errors = [record["error"] for record in records if "contender" in record and "error" in record]
    assert len(errors) == 10 and max(errors) < 5e-3
    assert all(record["bitwise"] for record in records if "bitwise" in record)
    (checked,) = (record for record in records if record.get("part") == "checked")
    assert checked["error"] < 1e-4 and checked["chosen"] and checked["moved"]
    (breakdown,) = (record for record in records if record.get("bench") == "breakdown")
    assert {"GEMM", "norm", "rope", "activation"} <= set(breakdown["families"])
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
    assert (
        done.returncode == 2 and "--only nonsense: no such step, choose of first, second, build, smoke, " in done.stderr
    )


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


@pytest.mark.parametrize("installed", [True, False])
def test_the_tests_run_in_several_processes_where_xdist_is_installed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    suite_steps = load("suite_steps")
    monkeypatch.setattr(suite_steps.importlib.util, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(suite_steps.os, "cpu_count", lambda: 16)
    (tests,) = (step for step in suite_steps.steps(tmp_path, tmp_path / "records", False) if step.name == "tests")
    assert ("-n 8" in " ".join(tests.command)) == installed and tests.share == (45 if installed else 150)
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


def layer(contender: str, us: float, batch: int = 16, mean: int = 2048, lengths: str = "equal", **more: object):
    nbytes = 4096 * batch * mean
    return {
        "bench": "decode", "batch": batch, "mean": mean, "lengths": lengths, "nbytes": nbytes, "contender": contender,
        "us": us, "of_triad": 0.5, "of_best": 0.4, "error": 1e-3, **more,
    }  # fmt: skip


def step(budget: int | None, tokens_s: float, peak: float, kept: float, roofline: float = 1.1, batch: int = 16):
    return {
        "bench": "step", "batch": batch, "context": 32768, "budget": budget, "mode": "graph", "kernel": "cuda",
        "tpot_s": batch / tokens_s, "tokens_s": tokens_s, "times_roofline": roofline, "peak_bytes": peak,
        "kept_bytes": kept, "times_best_roofline": roofline + 0.1,
    }  # fmt: skip


def verdicts(load, records) -> dict[str, tuple[str, str]]:
    return {line.what: (line.verdict, line.measured) for line in load("suite_targets").lines(records)}


def test_nothing_measured(load):
    matches = verdicts(load, [])
    assert len(matches) == 27 and {verdict for verdict, _ in matches.values()} == {"not measured"}


def test_decode_is_judged_by_the_worst_case_of_the_size_that_the_target_is_about(load: Load) -> None:
    records = [
        layer("ours", 60, batch=32, of_triad=0.96, of_best=0.9, bitwise=True),
        layer("ours", 500, mean=32768, of_triad=1.1, of_best=0.99),
        layer("ours", 30, of_triad=0.89), layer("torch_fa", 33), layer("fa3", 27),
        layer("ours", 31, lengths="pareto"), layer("torch_fa", 93, lengths="pareto"),
        layer("ours", 34, lengths="one_long"), layer("torch_fa", 51, lengths="one_long"),
        layer("ours", 6, mean=128, of_triad=0.3), layer("torch_fa", 5, mean=128),
        layer("ours_fused", 32, lengths="pareto", bench="rivals"),
        layer("ours_fused", 1, lengths="pareto"),
        layer("adakv_described", 128, lengths="pareto", bench="rivals"),
        layer("adakv_wide", 80, lengths="pareto", bench="rivals"),
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["decode at 268 MB a layer and more, of triad"] == (
        "holds", "0.96 (32 x 2048 equal; of the fastest ceiling 0.90)",
    )  # fmt: skip
    assert matches["decode at 134 MB a layer, of triad"] == (
        "does not", "0.89 (16 x 2048 equal; of the fastest ceiling 0.40)",
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


@pytest.mark.parametrize(("us", "verdict"), [(6.9, "holds"), (7.1, "does not")])
def test_the_latency_of_one_short_row(load: Load, us: float, verdict: str) -> None:
    records = [layer("ours", us, batch=1, mean=1024), layer("fa3", 14, batch=1, mean=1024)]
    assert verdicts(load, records)["decode, 1 x 1024 equal"] == (verdict, f"{us:.2f} us (flash-attention 3 14.00)")


def test_a_result_without_a_triad_gets_the_share_of_a_read_and_no_verdict(load: Load) -> None:
    old = {"of_copy": 1.3, "tb_s": 3.2}
    records = [
        {key: value for key, value in layer("ours", 42, **old).items() if key not in ("of_triad", "of_best")},
        {"bench": "ceilings", "what": "copy", "bytes_s": 2.5e12},
        {"bench": "ceilings", "what": "read", "bytes_s": 4e12},
        {"bench": "step", "what": "model", "bytes_s": 2.5e12},
        {key: x for key, x in step(1024, 1900, 1, 1, roofline=1.25).items() if key != "times_best_roofline"},
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["decode at 134 MB a layer, of triad"] == (
        "not measured", "0.80 of the read ceiling (16 x 2048 equal); no triad was measured",
    )  # fmt: skip
    assert matches["whole step, 16 x 32k, budget 1024, times the triad's roofline"] == (
        "not measured", "2.00 of the read roofline; no triad was measured",
    )  # fmt: skip


def test_the_committed_results_can_be_read() -> None:
    done = suite("--table", ROOT / "perf/results/gpu_h200.json")
    assert done.returncode == 0 and "0.88 (32 x 2048 equal; of the fastest ceiling 0.84)" in done.stdout
    file = ROOT / "perf/results/gpu_h200_first.json"
    done = suite("--table", file)
    assert done.returncode == 0 and "0.90 of the read ceiling (32 x 2048 equal)" in done.stdout
    assert "decode, 1 x 1024 equal" in done.stdout and file.stat().st_size < 150_000
    other = suite("--table", ROOT / "pyproject.toml")
    assert other.returncode == 2 and "not a gpu_suite.json" in other.stderr


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
    assert matches["append per layer, in a graph, all sizes"] == ("holds", "2.10 us (1 x 32768)")
    assert matches["append, longest over shortest"] == ("holds", "1.05 (32768 tokens)")
    assert matches["score, select, move at 32k, of a layer's prefill"] == (
        "holds", "0.38% (of attention alone 1.00%; eager 4.0x as long)",
    )  # fmt: skip
    assert matches["compressing at 32k, of a model's prefill"] == ("does not", "2.00%")


def test_whole_steps(load: Load) -> None:
    records = [
        step(None, 800, 90e9, 70e9), step(1024, 3600, 23e9, 2e9, roofline=1.35), step(128, 4000, 1, 1, roofline=1.5),
        step(None, 900, 1, 1, batch=1), step(None, 80, 1, 1) | {"kernel": "transformers", "mode": "eager"},
    ]  # fmt: skip
    matches = verdicts(load, records)
    assert matches["16 x 32k, budget 1024, tokens/s of the full cache's"] == ("holds", "4.50 (3600 against 800)")
    assert matches["whole step, 16 x 32k, budget 1024, times the triad's roofline"] == (
        "does not", "1.35 (batch 16, 1024; of the fastest ceiling 1.45); all sizes 1.50 (batch 16, 128)",
    )  # fmt: skip
    assert matches["16 x 32k, budget 1024, peak saved of what it promises"] == ("holds", "0.985 (67.0 of 68.0 GB)")
    assert matches["16 x 32k, tokens/s of plain transformers'"] == ("", "full cache 10.0, budget 1024 45.0")


def test_a_smaller_card_is_judged_by_the_rows_that_fit(load: Load) -> None:
    matches = verdicts(load, [step(None, 500, 9, 9, batch=12), step(1024, 2500, 9, 9, batch=12), step(1024, 9, 9, 9)])
    assert matches["12 x 32k, budget 1024, tokens/s of the full cache's"] == ("holds", "5.00 (2500 against 500)")


def test_no_more_rows_than_full_caches_fit(load: Load) -> None:
    steps = load("step")
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(nbytes=16e9)])
    cases = [steps.Case(16, 32768, 1024), steps.Case(16, 32768, None), steps.Case(1, 32768, None)]
    steps.row_bytes = lambda model, context: 4.3e9
    for memory, rows in ((150e9, 16), (85e9, 12), (42e9, 4), (30e9, 2), (18e9, 1)):
        fitting = steps.fitting(cases, model, memory)
        assert [case.batch for case in fitting] == [rows, rows, 1]
        assert ("asked_batch" in fitting[0].about()) == (rows < 16)


def test_a_row_of_the_full_cache(load: Load) -> None:
    steps = load("step")
    model = steps.load(toy=True)
    assert steps.row_bytes(model, 1000) == 2 * 4 * 2 * 32 * 4 * (1000 + steps._RESERVE)
    assert steps.weights_read(model) < sum(p.nbytes for p in model.parameters())


def test_kernels_by_family(load: Load) -> None:
    breakdown = load("breakdown")
    names = {
        "nvjet_hsh_128x64": "GEMM", "sm90_xmma_gemm_bf16": "GEMM", "cublasLt::splitKreduce_kernel": "GEMM",
        "void kvb::decode<__nv_bfloat16, 128, true>(kvb::DecodeArguments)": "attention", "kvb::append(x)": "append",
        "flash_fwd_splitkv_kernel": "attention", "triton_red_fused_mul_rsqrt_0": "norm", "Memcpy HtoD": "copies",
        "kvb::rms_norm<float>": "norm", "vectorized_elementwise_kernel": "other", "CatArrayBatchedCopy": "copies",
        "elementwise_kernel silu": "activation",
    }  # fmt: skip
    assert {name: breakdown.family(breakdown.Kernel(name, 1)) for name in names} == names
    modules = {
        "LlamaRMSNorm": "norm",
        "LlamaAttention": "rope",
        "LlamaRotaryEmbedding": "rope",
        "LlamaMLP": "activation",
    }
    for module, family in modules.items():
        assert breakdown.family(breakdown.Kernel("vectorized_elementwise_kernel copy", 1, module)) == family
        assert breakdown.family(breakdown.Kernel("nvjet", 1, module)) == "GEMM"


def test_a_replayed_kernel_gets_the_module_of_the_eager_one(load: Load) -> None:
    breakdown = load("breakdown")
    eager = [breakdown.Kernel(name, 9, module) for name, module in (("mul", "LlamaRMSNorm"), ("mul", "LlamaMLP"))]
    replayed = [breakdown.Kernel(name, us) for name, us in (("mul", 1), ("new", 2), ("mul", 4), ("mul", 1), ("mul", 4))]
    summed = breakdown.summed(breakdown.with_modules(replayed, eager), steps=2)
    assert summed == {
        "norm": {"us": 1, "count": 1}, "activation": {"us": 4, "count": 1}, "other": {"us": 1, "count": 0.5},
    }  # fmt: skip


def test_whatever_a_rival_raises_its_measurement_is_missing(load: Load, tmp_path: Path) -> None:
    decode, layers = load("decode"), load("layers")
    bench = load("bench").Bench("decode", "", ["--toy"])
    shape = layers.Shape(1, 24, heads=4, kv_heads=2, dim=64)
    layer_ = layers.Layer(shape, [24, 24], 2, bench.device)

    def bad(_: object) -> None:
        raise TypeError("no such argument\nmore")

    assert decode.measure(bench, layer_, "fa3", bad) == {"missing": "no such argument"}
    with pytest.raises(TypeError):
        decode.measure(bench, layer_, "ours", bad)


@pytest.mark.parametrize(("status", "message"), [(-1, "two calls used one workspace"), (3, "segment 2 had no room")])
def test_a_status_that_is_not_zero_is_named(load: Load, status: int, message: str) -> None:
    decode, layers = load("decode"), load("layers")
    bench = load("bench").Bench("decode", "", ["--toy"])
    layer_ = layers.Layer(layers.Shape(1, 24, heads=4, kv_heads=2, dim=64), [24, 24], 2, bench.device)
    layer_.status.fill_(status)
    with pytest.raises(RuntimeError, match=f"sdpa_padded: {message}"):
        decode.measure(bench, layer_, "sdpa_padded", lambda _: lambda _: torch.zeros(1))


def test_an_error_that_ends_the_context_ends_the_benchmark(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load("bench").Bench("decode", "", ["--toy", "--out", str(tmp_path / "records")])

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    bench.about = {}
    bench.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit, match="fa3 ended the CUDA context"):
        bench.survive(RuntimeError("CUDA error: an illegal memory access"), "fa3")
    assert '"what": "stopped", "by": "fa3"' in (tmp_path / "records").read_text()


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
