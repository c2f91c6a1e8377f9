"""The build of the kernels: its cache, its compilers and its messages, on two tiny files and on the real ones."""

from __future__ import annotations

import json
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
from kvbench_kernels.ops import library
from kvbench_kernels.ops.signatures import COUNTS, SIGNATURES, SIZES

ROOT = Path(__file__).resolve().parents[2]
KERNEL = """\
#include "twice.h"
extern "C" int kvb_one(int n) { return twice(n); }
"""
REGISTERS = {  # of a thread, at most: of the rest of them, nothing is asked but to keep everything in registers
    r"decode<.*, (64|80|96|128), ": 168,  # three blocks of 128 threads to a multiprocessor
    r"append\(|relayout\(|gather\(|select|head_top_k|layer_|pool_|merge_": 64,
}
needs_gxx = pytest.mark.gxx


needs_nvcc = pytest.mark.nvcc


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two sources and a header instead of the kernels, and a cache of their own."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cu").write_text(KERNEL)
    (folder / "two.cu").write_text('#include "twice.h"\nextern "C" int kvb_two(int n) { return 10 * twice(n) + 1; }\n')
    (folder / "twice.h").write_text("inline int twice(int n) { return 2 * n; }\n")
    monkeypatch.setattr(build, "csrc", lambda: folder)
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    return folder


@needs_gxx
def test_a_build_is_made_once_and_again_when_anything_changes(tiny, monkeypatch, caplog):
    caplog.set_level("INFO", build.log.name)
    monkeypatch.setitem(SIGNATURES, "one", "i")
    monkeypatch.setitem(SIGNATURES, "two", "i")
    first = build.host()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"compiling the host kernels, once: they are kept in {first.parent}" and len(said) == 2
    assert re.fullmatch(r"compiled the host kernels in \d+ s", said[1])
    opened = library.Library(first)
    opened.call("one", 0)
    with pytest.raises(RuntimeError, match=re.escape("kvb::two: CUDA error 61")):
        opened.call("two", 3)
    stamp = first.stat().st_mtime_ns
    assert build.host() == first and first.stat().st_mtime_ns == stamp and len(caplog.records) == 2
    assert build.report(first) == []
    assert build.host(force=True) == first and first.stat().st_mtime_ns != stamp

    assert len({first, build.host(defines=("PLANTED",)), build.host(defines=("PLANTED=2",))}) == 3
    (tiny / "twice.h").write_text("inline int twice(int n) { return 2 * n + 5; }\n")
    changed = build.host()
    assert changed != first
    with pytest.raises(RuntimeError, match="kvb::one: CUDA error 5 "):
        library.Library(changed).call("one", 0)


@needs_gxx
def test_a_build_that_fails_says_where_and_leaves_nothing(tiny):
    (tiny / "two.cu").write_text("int kvb_two( { return 1; }\n")
    with pytest.raises(RuntimeError, match=r"(?s)compiling two.cu failed.*two.cu:1:.*: error: expected"):
        build.host()
    assert [path.name for path in build.cache_dir().iterdir() if path.suffix != ".lock"] == []
    (tiny / "two.cu").write_text('#include "twice.h"\nextern int missing;\nint two() { return missing; }\n')
    assert build.host().is_file()  # a shared library may lack a name; loading it says so
    with pytest.raises(RuntimeError, match="cannot be loaded: .*missing"):
        library.Library(build.host())


@needs_gxx
def test_two_processes_compile_once(tiny, tmp_path):
    calls, compiler = tmp_path / "calls", tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\necho "$@" >>{calls}\nsleep 0.2\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    code = f"""
import pathlib
from kvbench_kernels import build
build.csrc = lambda: pathlib.Path({str(tiny)!r})
print(build.host())
"""
    path = os.pathsep.join([str(compiler.parent), os.environ["PATH"]])
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PATH": path}, stdout=-1, text=True)
        for _ in range(2)
    ]
    made = {process.communicate(timeout=60)[0] for process in both}
    assert len(made) == 1 and Path(made.pop().strip()).is_file()
    assert sum(" -c " in call for call in calls.read_text().splitlines()) == 2  # one for each file


@needs_gxx
def test_the_sanitizer_sees_what_is_out_of_bounds(tiny, tmp_path):
    (tiny / "one.cu").write_text('#include <cstdlib>\nextern "C" int kvb_one(int n) { int* x = (int*)malloc(4 * n);'
                                 " int y = x[n]; free(x); return y; }\n")  # fmt: skip
    code = f"import ctypes; ctypes.CDLL({str(build.host(sanitize=True))!r}).kvb_one(2)"
    env = os.environ | {"LD_PRELOAD": compilers.sanitizer_runtimes(), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r"(?s)heap-buffer-overflow.*kvb_one.*one\.cu:2", done.stderr)


def test_without_compilers_it_says_what_to_install(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no g[+][+] on PATH: install it .*apt-get install g[+][+]"):
        build.host()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="no nvcc in CUDA_HOME, .*pip install nvidia-cuda-nvcc"):
        compilers.nvcc()


def test_nvcc_is_looked_for_in_order(tmp_path, monkeypatch):
    """CUDA_HOME before CUDA_PATH before PATH before /usr/local/cuda before the package."""
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


def test_a_cache_that_cannot_be_written_is_named(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(compilers, "version", lambda compiler: "g++")
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    with pytest.raises(ValueError, match=r"KVBENCH_CACHE=.*file/below: cannot be written"):
        build.host()


@pytest.mark.parametrize("arch", ["90", "sm90", "sm_", "cuda_90"])
def test_an_architecture_is_checked(arch, monkeypatch):
    monkeypatch.setattr(compilers, "nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    with pytest.raises(ValueError, match=f"arch={arch}: must be sm_<number> or compute_<number>"):
        build.cuda((arch,))


def test_the_report_of_ptxas_is_read():
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
def test_nvcc_builds_for_several_gpus(tiny, monkeypatch):
    (tiny / "one.cu").write_text(
        "__global__ void fill(float* x) { x[threadIdx.x] = 1; }\n"
        'extern "C" int kvb_one(float* x, cudaStream_t s) { fill<<<1, 32, 0, s>>>(x); return cudaGetLastError(); }\n'
    )
    said: list[str] = []
    made = build.cuda(progress=said.append)
    assert sorted(line.split()[0] for line in said) == ["one.cu", "two.cu"]
    assert [(kernel["name"], kernel["arch"]) for kernel in build.report(made)] == [
        ("fill(float*)", "sm_80"), ("fill(float*)", "sm_90"),
    ]  # fmt: skip
    assert build.cuda_for((9, 0)) == build.cuda_for((12, 0)) == made
    alone = build.cuda(("sm_90",))
    assert alone != made
    shutil.rmtree(made.parent)
    assert build.cached((9, 0)) == alone and build.cached((8, 6)) is None
    with pytest.raises(ValueError, match="compute capability 7.5: the kernels need 8.0 or newer"):
        build.cuda_for((7, 5))


@needs_gxx
def test_every_op_is_in_the_real_library():
    opened = library.load(build.host())
    assert {name for name in SIGNATURES | SIZES | COUNTS if name not in opened._functions} == set()


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills():
    kernels = build.report(build.cuda(("sm_90",)))
    assert {pattern for pattern in REGISTERS if any(re.search(pattern, k["name"]) for k in kernels)} == set(REGISTERS)
    wrong = [k for k in kernels if k["spill_stores"] or k["spill_loads"] or k["stack"]]
    for pattern, most in REGISTERS.items():
        wrong += [k for k in kernels if re.search(pattern, k["name"]) and k["registers"] > most]
    assert wrong == []


def test_an_installed_package_carries_the_sources(tmp_path):
    """As the wheel lays it out: csrc inside the package."""
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    target = tmp_path / include["force-include"]["kernels/csrc"]
    shutil.copytree(ROOT / "kernels" / "kvbench_kernels", tmp_path / "kvbench_kernels")
    shutil.copytree(ROOT / "kernels" / "csrc", target)
    code = "from kvbench_kernels import build; print(build.csrc())"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "kvbench_kernels" / "csrc"), done.stderr


def test_what_does_not_compile_is_not_tried_again(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    tries = []

    def fails(command, what):
        if "--version" not in map(str, command):
            tries.append(what)
            raise RuntimeError(f"{what} failed:\nmany\nlines")
        return "g++ 1.0"

    monkeypatch.setattr(compilers, "run", fails)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="compiling cpu_attend.cpp failed"):
            build.cpu()
    assert tries == ["compiling cpu_attend.cpp"]
    assert [r.message for r in caplog.records] == ["compiling cpu_attend.cpp failed:\nmany\nlines"]


def test_a_machine_without_compilers_takes_what_another_has_made(monkeypatch, tmp_path):
    """As on a cluster, where one machine compiles into a shared folder."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_vectors", lambda: ("-DKVB_FOR=here",))
    made = build.cpu()
    monkeypatch.setenv("PATH", "")
    assert build.cpu() == made
    monkeypatch.setattr(build, "_vectors", lambda: ("-DKVB_FOR=elsewhere",))
    with pytest.raises(ValueError, match="no g\\+\\+ on PATH"):
        build.cpu()


def test_and_so_for_a_gpu(monkeypatch, tmp_path):
    def no_nvcc():
        raise ValueError("no nvcc")

    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(compilers, "nvcc", no_nvcc)
    with pytest.raises(ValueError, match="no nvcc"):
        build.cached((9, 0))
    folder = tmp_path / "kernels" / "cuda-made"
    folder.mkdir(parents=True)
    about = {"archs": list(build.ARCHS), "sources": build.sources("cuda")}
    (folder / "report.json").write_text(json.dumps(about))
    assert build.cached((8, 0)) == build.cuda_for((9, 0)) == folder / "libkvb.so"
    (folder / "report.json").write_text(json.dumps(about | {"sources": "others"}))
    with pytest.raises(ValueError, match="no nvcc"):
        build.cuda_for((9, 0))
