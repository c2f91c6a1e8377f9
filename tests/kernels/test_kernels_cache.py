"""The cache of compiled kernels: its key, its locks, and what happens to a damaged library."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kvbench_kernels import __main__ as command
from kvbench_kernels import build
from kvbench_kernels.build import cache, compilers, recipes, sources
from kvbench_kernels.build.compilers import CompilerError
from kvbench_kernels.ops import library
from tests.helpers.kernels_tiny import write_tiny_sources

needs_gxx = pytest.mark.gxx


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_tiny_sources(tmp_path, monkeypatch)


@needs_gxx
def test_a_library_is_compiled_once_and_again_when_anything_changes(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", cache.log.name)
    first = build.host()
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == f"compiling the host kernels, once: they are kept in {first.parent}" and len(messages) == 2
    assert re.fullmatch(r"compiled the host kernels in \d+ s", messages[1])
    opened = library.Library(first)
    opened.call("one", None, n=0)
    with pytest.raises(RuntimeError, match=re.escape("kvb::two: CUDA error 61")):
        opened.call("two", None, n=3)
    stamp = first.stat().st_mtime_ns
    assert build.host() == first and first.stat().st_mtime_ns == stamp and len(caplog.records) == 2
    assert build.report(first) == []
    assert build.host(force=True) == first and first.stat().st_mtime_ns != stamp

    assert len({first, build.host(defines=("PLANTED",)), build.host(defines=("PLANTED=2",))}) == 3
    (tiny / "twice.h").write_text("struct Call { int n; };\ninline int twice(int n) { return 2 * n + 5; }\n")
    changed = build.host()
    assert changed != first
    with pytest.raises(RuntimeError, match="kvb::one: CUDA error 5 "):
        library.Library(changed).call("one", None, n=0)


@needs_gxx
def test_the_key_tells_machines_and_moved_files_apart(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.host(False, ())
    keys = {recipe.key()}
    (tiny / "one.cu").rename(tiny / "family" / "one.cu")
    keys.add(recipe.key())
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    keys.add(recipe.key())
    assert len(keys) == 3


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_folder(file: Path) -> None:
    shutil.rmtree(file.parent)
    file.parent.write_text("not a folder")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "library truncated": cut,
    "library of the right size": flip,
    "library empty": lambda file: file.write_bytes(b""),
    "library missing": Path.unlink,
    "library a named pipe": replace_by_pipe,
    "report missing": lambda file: (file.parent / "report.json").unlink(),
    "report truncated": lambda file: cut(file.parent / "report.json"),
    "report of another kind": lambda file: (file.parent / "report.json").write_text("[1]"),
    "report without a hash": lambda file: (file.parent / "report.json").write_text('{"archs": []}'),
    "report nested": lambda file: (file.parent / "report.json").write_text("[" * 100_000),
    "report a named pipe": lambda file: replace_by_pipe(file.parent / "report.json"),
    "folder a file": replace_by_folder,
}


@needs_gxx
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_library_is_compiled_again_and_never_loaded(
    tiny: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A truncated library would end the process with SIGBUS when it is loaded."""
    first = build.cpu()
    folder = first.parent
    DAMAGE[kind](first)
    assert cache.intact(folder) is None
    assert cache.built_elsewhere("cpu", recipes.vector_flags()) is None
    assert build.cpu() == folder / "libkvb.so"
    assert ctypes.CDLL(str(build.cpu())).kvb_three(2) == 6
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"{folder} is damaged; it is compiled again"
    ]


@needs_gxx
def test_a_damaged_library_is_no_help_without_a_compiler(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(build.cpu())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no g\+\+ on PATH"):
        build.cpu()


@needs_gxx
def test_two_processes_compile_once(tiny: Path, tmp_path: Path) -> None:
    calls, compiler = tmp_path / "calls", tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\necho "$@" >>{calls}\nsleep 0.2\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    code = f"""
import pathlib
from kvbench_kernels import __main__ as command
from kvbench_kernels import build
from kvbench_kernels.build import sources
from kvbench_kernels.calls import SIGNATURES
SIGNATURES.clear()
sources.csrc = lambda: pathlib.Path({str(tiny)!r})
print(build.host())
"""
    path = os.pathsep.join([str(compiler.parent), os.environ["PATH"]])
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PATH": path}, stdout=-1, text=True)
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=300)[0] for process in both}
    assert len(printed) == 1 and Path(printed.pop().strip()).is_file()
    assert sum(" -c " in call for call in calls.read_text().splitlines()) == 2, "each of the two files is compiled once"


@needs_gxx
def test_a_process_that_never_finishes_is_not_waited_for_forever(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.2)
    folder = cache.folder_of(recipes.host(False, ()))
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_suffix(".lock")):
        assert build.host().is_file()
    assert "the other process did not finish" in caplog.text


@needs_gxx
def test_what_does_not_compile_is_not_tried_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    run = compilers.run

    def counting(command: Sequence[str | Path], what: str) -> str:
        tries.append(what)
        return run(command, what)

    (tiny / "family" / "three.cpp").write_text("int three( { return 1; }\n")
    monkeypatch.setattr(compilers, "run", counting)
    for _ in range(2):
        with pytest.raises(
            CompilerError, match=r"compiling three\.cpp failed: .*three\.cpp:1:\d+: error: expected"
        ) as info:
            build.cpu()
    assert tries.count("compiling three.cpp") == 1
    message = str(info.value)
    assert "\n" not in message
    log_file = Path(message.partition("the compiler's output is in ")[2])
    assert "error: expected" in log_file.read_text() and log_file.parent == build.cache_dir()
    assert [path.suffix for path in sorted(build.cache_dir().iterdir())] == [".failed", ".lock", ".log"]


@needs_gxx
def test_a_failed_build_is_remembered_by_later_starts(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start shows the words of the first one. The command, new sources and a new g++ try again."""
    tries = []
    run = compilers.run

    def counting(command: Sequence[str | Path], what: str) -> str:
        tries.append(what)
        return run(command, what)

    def fail() -> str:
        tries.clear()
        cache._failed.clear()  # as a new process has it
        with pytest.raises(CompilerError) as info:
            build.cpu()
        return str(info.value)

    monkeypatch.setattr(compilers, "run", counting)
    three = tiny / "family" / "three.cpp"
    right = three.read_text()
    three.write_text("int three( { return 1; }\n")
    first = fail()
    assert tries
    for _ in range(2):
        assert (
            fail() == f"{first}; this was at an earlier start, `kvbench kernels build --cpu` tries again" and not tries
        )
    assert command.run(["build", "--cpu"]) == 1 and tries
    assert first.partition("; the compiler's")[0] in capsys.readouterr().err
    monkeypatch.setattr(compilers, "version", lambda compiler: "another g++")
    assert "earlier start" not in fail() and tries
    three.write_text(right)
    assert build.cpu().is_file()
    assert command.run(["build", "--cpu", "--arch", "sm_90"]) == 2


@needs_gxx
def test_a_failure_that_may_pass_is_not_remembered(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(command: Sequence[str | Path], what: str) -> str:
        raise CompilerError(f"{what} failed: fatal error: error writing to x.s: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(compilers, "run", full)
        with pytest.raises(CompilerError):
            build.cpu()
    cache._failed.clear()
    assert build.cpu().is_file()


@needs_gxx
def test_a_library_may_lack_a_name_which_loading_reports(tiny: Path) -> None:
    (tiny / "family" / "two.cu").write_text('#include "twice.h"\nextern int missing;\nint two() { return missing; }\n')
    with pytest.raises(RuntimeError, match="cannot be loaded: .*missing") as info:
        library.Library(build.host())
    assert "\n" not in str(info.value)


def test_a_cache_that_cannot_be_written_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(compilers, "version", lambda compiler: "g++")
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    with pytest.raises(ValueError, match=r"KVBENCH_CACHE=.*file/below: cannot be written"):
        build.host()


def test_a_full_disk_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compilers, "version", lambda compiler: "g++")
    monkeypatch.setattr(compilers, "gxx", lambda: Path("g++"))
    monkeypatch.setattr(cache, "compile_into", full)
    with pytest.raises(ValueError, match=r"KVBENCH_CACHE=.*cache: cannot be written \(No space left on device\)"):
        build.host()
    assert list((tmp_path / "cache" / "kernels").glob("building-*")) == []


@needs_gxx
def test_a_machine_without_compilers_takes_what_another_has_compiled(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens on a cluster, where one machine compiles into a shared folder."""
    monkeypatch.setattr(recipes, "vector_flags", lambda: ("-DKVB_FOR=here",))
    first = build.cpu()
    monkeypatch.setenv("PATH", "")
    assert build.cpu() == first
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ValueError, match=r"no g\+\+ on PATH"):
        build.cpu()
    monkeypatch.undo()
    monkeypatch.setenv("KVBENCH_CACHE", str(first.parents[2]))
    monkeypatch.setattr(sources, "csrc", lambda: tiny)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(recipes, "vector_flags", lambda: ("-DKVB_FOR=elsewhere",))
    with pytest.raises(ValueError, match=r"no g\+\+ on PATH"):
        build.cpu()


@needs_gxx
def test_a_gpu_takes_what_another_machine_has_compiled(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_nvcc() -> Path:
        raise ValueError("no nvcc")

    monkeypatch.setattr(compilers, "nvcc", no_nvcc)
    with pytest.raises(ValueError, match="no nvcc"):
        build.cached((9, 0))
    compiled = build.host()  # stands for what nvcc makes
    folder = compiled.parent.with_name("cuda-elsewhere")
    compiled.parent.rename(folder)
    about = json.loads((folder / "report.json").read_text())
    about |= {"archs": list(build.ARCHS), "sources": sources.digest("cuda")}
    (folder / "report.json").write_text(json.dumps(about))
    assert build.cached((8, 0)) == build.cuda_for((9, 0)) == folder / "libkvb.so"
    (folder / "report.json").write_text(json.dumps(about | {"sources": "others"}))
    with pytest.raises(ValueError, match="no nvcc"):
        build.cuda_for((9, 0))


@pytest.mark.parametrize(
    ("capability", "features", "level"),
    [
        ("AVX512", recipes._LEVELS["AVX512"][1], "x86-64-v4"),
        ("AVX512", recipes._LEVELS["AVX2"][1], "x86-64-v3"),  # ATEN_CPU_CAPABILITY claims more than there is
        ("AVX2", recipes._LEVELS["AVX512"][1], "x86-64-v3"),  # and here less
        ("AVX2", {"sse4_2"}, None),
        ("DEFAULT", recipes._LEVELS["AVX512"][1], None),
        ("AVX512", None, "x86-64-v4"),  # no /proc/cpuinfo
    ],
)
def test_no_instruction_is_compiled_that_this_cpu_lacks(
    monkeypatch: pytest.MonkeyPatch, capability: str, features: set[str] | None, level: str | None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(recipes, "_cpu_features", lambda: features)
    if level is None:
        with pytest.raises(ValueError, match="this CPU has no AVX2"):
            recipes.vector_flags()
    else:
        assert recipes.vector_flags() == (f"-march={level}",)
