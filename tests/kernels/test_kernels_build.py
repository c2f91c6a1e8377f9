"""Compiling the kernels: the compilers, their output, the sources, and what is in the real libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kvbench_kernels import build
from kvbench_kernels.build import compilers, ptxas
from kvbench_kernels.build.compilers import CompilerError
from kvbench_kernels.calls import COUNTS, SIGNATURES, SIZES
from kvbench_kernels.ops import library
from tests.helpers.kernels_tiny import write_tiny_sources

ROOT = Path(__file__).resolve().parents[2]
REGISTERS = {  # at most this many per thread; the other kernels must not spill, nothing else is asked of them
    r"decode<.*, 64, \w+, false>": 128,  # two blocks of 256 threads on a multiprocessor; false: up to 8 query columns
    r"decode<.*, 64, \w+, true>|decode<.*, (80|96|128|256), ": 255,  # one block
    r"linear<": 128,  # two blocks of 256 threads
    r"append\(|relayout\(|gather\(|select|head_top_k|layer_|pool_|merge_": 64,
}
needs_gxx = pytest.mark.gxx
needs_nvcc = pytest.mark.nvcc


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_tiny_sources(tmp_path, monkeypatch)


@needs_gxx
def test_the_sanitizer_reports_an_access_out_of_bounds(tiny: Path) -> None:
    (tiny / "one.cu").write_text('#include <cstdlib>\nextern "C" int kvb_one(int n) { int* x = (int*)malloc(4 * n);'
                                 " int y = x[n]; free(x); return y; }\n")  # fmt: skip
    code = f"import ctypes; ctypes.CDLL({str(build.host(sanitize=True))!r}).kvb_one(2)"
    env = os.environ | {"LD_PRELOAD": compilers.sanitizer_runtimes(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"(?s)heap-buffer-overflow.*kvb_one.*one\.cu:2", done.stderr)


def test_without_compilers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no g[+][+] on PATH: install it .*apt-get install g[+][+]"):
        build.host()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no nvcc in CUDA_HOME, .*pip install nvidia-cuda-nvcc"):
        compilers.nvcc()


def test_nvcc_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_HOME comes before CUDA_PATH, then PATH, then /usr/local/cuda, then the Python package."""
    places = [tmp_path / name / "bin" for name in ("home", "path", "on_path", "site/nvidia/cu13")]
    for place in places:
        place.mkdir(parents=True)
        (place / "nvcc").write_text("#!/bin/sh\n")
        (place / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(places[0].parent))
    monkeypatch.setenv("CUDA_PATH", str(places[1].parent))
    monkeypatch.setenv("PATH", str(places[2]))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert compilers.nvcc() == places[0] / "nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert compilers.nvcc() == places[1] / "nvcc"
    monkeypatch.delenv("CUDA_PATH")
    assert compilers.nvcc() == places[2] / "nvcc"
    monkeypatch.setenv("PATH", str(tmp_path))
    toolkit = Path("/usr/local/cuda/bin/nvcc")
    assert compilers.nvcc() == (toolkit if toolkit.exists() else places[3] / "nvcc")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo one; echo 'x.cu:3: error: no ;'; echo 'two errors'; exit 1", "making x failed: x.cu:3: error: no ; "),
        ("echo; echo 'Killed signal'; exit 9", "making x failed: Killed signal "),
        ("exit 4", "making x failed: exit status 4 "),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_gives_one_line(tmp_path: Path, script: str, message: str) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    with pytest.raises(CompilerError) as info:
        compilers.run([compiler], "making x")
    assert str(info.value) == f"{message}({compiler})"


def test_a_compiler_that_does_not_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("no program")
    with pytest.raises(CompilerError, match=r"g\+\+ does not start: Permission denied"):
        compilers.run([tmp_path / "g++"], "making x")


@pytest.mark.parametrize("arch", ["90", "sm90", "sm_", "cuda_90", "sm_90;ls", "sm_9", "compute_90 "])
def test_an_architecture_is_checked(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    with pytest.raises(ValueError, match=f"--arch {arch}: must be sm_<number> or compute_<number>"):
        build.cuda((arch,))


def test_the_report_of_ptxas_is_read() -> None:
    text = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6decodePf' for 'sm_90'
ptxas info    : Function properties for _Z6decodePf
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compiling entry function '_Z6appendPf' for 'sm_80'
ptxas info    : Function properties for _Z6appendPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 400 bytes cmem[0]
"""
    first, second = ptxas.kernels(text)
    assert first["name"] in ("decode(float*)", "_Z6decodePf")
    assert {**first, "name": ""} == {
        "name": "", "arch": "sm_90", "registers": 168, "stack": 16, "spill_stores": 12, "spill_loads": 8,
        "shared": 4096,
    }  # fmt: skip
    assert (second["arch"], second["registers"], second["shared"], second["spill_stores"]) == ("sm_80", 32, 0, 0)


@needs_nvcc
def test_nvcc_builds_for_several_gpus(tiny: Path) -> None:
    (tiny / "one.cu").write_text(
        "__global__ void fill(float* x) { x[threadIdx.x] = 1; }\n"
        'extern "C" int kvb_one(int) { fill<<<1, 1>>>(nullptr); return 0; }\n'
    )
    lines: list[str] = []
    full = build.cuda(progress=lines.append)
    assert sorted(line.split()[0] for line in lines) == ["one.cu", "two.cu"]
    assert [(kernel["name"], kernel["arch"]) for kernel in build.report(full)] == [
        ("fill(float*)", "sm_80"), ("fill(float*)", "sm_90"),
    ]  # fmt: skip
    assert build.cuda_for((9, 0)) == build.cuda_for((12, 0)) == full
    alone = build.cuda(("sm_90",))
    assert alone != full
    shutil.rmtree(full.parent)
    assert build.cached((9, 0)) == alone and build.cached((8, 6)) is None
    with pytest.raises(ValueError, match="compute capability 7.5: the kernels need 8.0 or newer"):
        build.cuda_for((7, 5))


@needs_gxx
def test_every_op_is_in_the_real_libraries() -> None:
    opened = library.load(build.host())
    names = set(SIGNATURES | SIZES | COUNTS)
    of_cpu = {name for name in names if name.startswith("cpu_")}
    assert names - of_cpu == set(opened._functions)
    assert of_cpu == set(library.load(build.cpu())._functions)


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills() -> None:
    kernels = build.report(build.cuda(("sm_90",)))
    assert {pattern for pattern in REGISTERS if any(re.search(pattern, k["name"]) for k in kernels)} == set(REGISTERS)
    wrong = [k for k in kernels if k["spill_stores"] or k["spill_loads"] or k["stack"]]
    for pattern, most in REGISTERS.items():
        wrong += [k for k in kernels if re.search(pattern, k["name"]) and k["registers"] > most]
    assert wrong == []


def test_an_installed_package_carries_the_sources(tmp_path: Path) -> None:
    """The wheel has csrc inside the package."""
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    target = tmp_path / include["force-include"]["kernels/csrc"]
    shutil.copytree(ROOT / "kernels" / "kvbench_kernels", tmp_path / "kvbench_kernels")
    shutil.copytree(ROOT / "kernels" / "csrc", target)
    code = "from kvbench_kernels import build; print(build.csrc())"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "kvbench_kernels" / "csrc"), done.stderr


def includes() -> dict[str, set[str]]:
    """Return {file: files it includes}, with names relative to csrc/."""
    files = {path.relative_to(build.csrc()).as_posix(): path for path in build.csrc().rglob("*") if path.is_file()}
    return {name: set(re.findall(r'#include "([^"]+)"', path.read_text())) for name, path in files.items()}


def test_the_sources_include_each_other_without_a_circle() -> None:
    graph = includes()
    assert set().union(*graph.values()) <= set(graph), "an include names no file of csrc/"
    below: set[str] = set()
    while set(graph) - below:
        ready = {name for name, used in graph.items() if name not in below and used <= below}
        assert ready, f"these include each other: {sorted(set(graph) - below)}"
        below |= ready


def test_the_emulator_knows_no_kernel_and_one_family_does_not_include_another() -> None:
    for name, used in includes().items():
        folder = name.rpartition("/")[0]
        others = {other.rpartition("/")[0] for other in used} - {folder, ""}
        assert others <= ({"host"} if name == "primitives.h" else set()), f"{name} includes from {sorted(others)}"
