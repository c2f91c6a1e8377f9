"""`python -m kvbench_kernels`: what it prints, and its exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvbench_kernels import backends, build, parity
from kvbench_kernels.__main__ import run as main
from kvbench_kernels.backends import flash
from kvbench_kernels.build import compilers, ptxas
from kvbench_kernels.build.compilers import CompilerError
from kvbench_kernels.ops import library, registration


def case(error: float, bound: float = 0.5) -> parity.Case:
    return parity.Case("select", f"error {error}", bound, lambda device, seed: error)


def test_check_passes(capsys):
    assert main(["check", "--device", "cpu", "--op", "select", "--op", "ragged_append", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("reference in torch, device=cpu, --seed 7\n")
    assert re.search(r"(?m)^8 of 8 cases ok$", printed) and len(re.findall(r"(?m) ok +\d+\.\d\d$", printed)) == 8


@pytest.mark.parametrize("error", [0.6, float("nan"), float("inf")])
def test_check_fails(capsys, monkeypatch, error):
    monkeypatch.setattr(parity, "cases", lambda large: iter([case(0.4), case(error)]))
    assert main(["check", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert re.search(rf"(?m)^select +error {error} +{error:.1e} +5e-01 +WRONG", printed)
    assert "1 of 2 cases ok" in printed


def test_check_emulates(capsys, monkeypatch):
    """Inside, the ops are those of the library for the host; which comes from g++."""
    seen = []
    monkeypatch.setattr(build, "host", lambda: Path("libkvb.so"))
    monkeypatch.setattr(library, "load", lambda path: path)
    run = parity.Case("select", "", 0, lambda device, seed: seen.append((device.type, registration._emulation)) or 0.0)
    monkeypatch.setattr(parity, "cases", lambda large: iter([run]))
    assert main(["check", "--emulated"]) == 0
    assert seen == [("cpu", Path("libkvb.so"))] and registration._emulation is None
    assert capsys.readouterr().out.startswith("kernels on the CPU, device=cpu, --seed ")


def test_build_prints_progress_and_the_report(capsys, monkeypatch, tmp_path):
    asked = []

    def cuda(archs, force, progress, retry):
        assert retry
        asked.append((archs, force))
        progress("one.cu (1 of 1)")
        return tmp_path / "libkvb.so"

    name = "void (anonymous namespace)::kvb::decode<__half, 64>(kvb::Arguments)"
    kernel = ptxas.Kernel(name=name, arch="sm_90", registers=90, stack=0, spill_stores=4, spill_loads=8, shared=16)
    monkeypatch.setattr(build, "cuda", cuda)
    monkeypatch.setattr(build, "report", lambda path: [kernel])
    assert main(["build"]) == 0
    assert main(["build", "--arch", "sm_90", "--arch", "compute_100", "--force"]) == 0
    assert asked == [(build.ARCHS, False), (("sm_90", "compute_100"), True)]
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^ +\d+\.\d s  one.cu \(1 of 1\)$", printed)
    assert re.search(r"(?m)^decode<__half, 64> +sm_90 +90 +12 +16$", printed)
    assert re.search(r"(?m)libkvb.so \(\d+\.\d s\)$", printed)


def test_build_without_nvcc_says_what_to_install(capsys, monkeypatch):
    def nothing() -> Path:
        raise ValueError("no nvcc: install it")

    monkeypatch.setattr(compilers, "nvcc", nothing)
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    assert main(["build"]) == 2
    assert capsys.readouterr().err == "kvbench: no nvcc: install it\n"


def test_list_says_who_runs_and_why_the_others_do_not(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("device=cpu dtype=bfloat16 head dimension 128\n")
    assert re.search(r"(?m)^cuda +no +needs an NVIDIA GPU, but the model is on device=cpu$", printed)
    assert re.search(r"(?m)^cpu +yes +kernel=auto chooses this$", printed)
    monkeypatch.setattr(backends, "unmet_requirement", lambda name, spec: None)
    monkeypatch.setattr(flash, "find", lambda: (None, "varlen_attn of torch 2.12"))
    assert main(["list"]) == 0
    assert re.search(r"(?m)^flash_attn +yes +attention by varlen_attn of torch 2.12$", capsys.readouterr().out)
    monkeypatch.undo()
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    assert main(["list", "--device", "cpu", "--dtype", "float32", "--head-dim", "64"]) == 0
    assert re.search(r"(?m)^cpu +yes +kernel=auto chooses this$", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--device", "gpu"], "--device gpu: no such device; choose cpu or cuda"),
        (["list", "--device", "cuda"], "--device cuda: torch finds no GPU"),
        (["list", "--dtype", "bf16"], "--dtype bf16: must be one of bfloat16, float16, float32"),
        (["list", "--dtype", "int8"], "--dtype int8: must be one of bfloat16, float16, float32"),
        (["list", "--device", "meta"], "--device meta: the kernels run on cpu or cuda"),
        (["list", "--head-dim", "0"], "--head-dim 0: must be at least 1"),
        (
            ["list", "--head-dim", "many"],
            "argument --head-dim: invalid int value: 'many'; see kvbench kernels list --help",
        ),
        (["check", "--seed", "-1"], "--seed -1: must be from 0 to"),
        (["check", "--op", "attend"], "argument --op: invalid choice: 'attend'"),
        (["check", "--emulated", "--device", "cuda"], "--device cuda: --emulated runs on the CPU; leave --device out"),
        ([], "the following arguments are required: COMMAND; see kvbench kernels --help"),
        (["bild"], "argument COMMAND: invalid choice: 'bild'"),
        (["build", "--arch", "hopper"], "--arch hopper: must be sm_<number> or compute_<number>"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compilers, "nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"kvbench: {message}") and printed.count("\n") == 1


def test_a_compilation_that_fails_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, retry: bool) -> Path:
        raise CompilerError("compiling one.cu failed: one.cu:3: error: expected ;", "a long output")

    monkeypatch.setattr(build, "cuda", fails)
    assert main(["build"]) == 1
    assert capsys.readouterr().err == "kvbench: compiling one.cu failed: one.cu:3: error: expected ;\n"


def test_a_missing_reader_is_not_an_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m kvbench_kernels check --device cpu --op select --seed 1; echo $? >{tmp_path}/status"
    done = subprocess.run(f"({command}) | head -c 1", shell=True, capture_output=True, text=True)
    assert done.stderr == "" or "Traceback" not in done.stderr
