"""The kernels as shared libraries: compiled on first use, kept in the cache under a hash of all that goes in.

Two builds of the same `.cu` files: `cuda` by nvcc, for GPUs, and `host` by g++, which runs the kernels on the CPU
(csrc/host_shim.h) and is for tests. Both have the same C functions, which `library.load` binds. `cpu` is another: the
decode step for CPUs, which backends/cpu.py binds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from kvbench_kernels.build import compilers, ptxas

log = logging.getLogger(__name__)

ARCHS = ("sm_80", "sm_90", "compute_90")  # machine code of Ampere and Hopper, and PTX for what comes after
_LIBRARY, _REPORT = "libkvb.so", "report.json"
_HOST = ("-x", "c++", "-std=c++17", "-fPIC", "-ffp-contract=off")  # sums in the order that is written
_failed: dict[Path, RuntimeError] = {}  # in this process
_CPU = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi")
_CUDA = ("-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC", "-Xptxas", "-v")


@dataclass(frozen=True)
class Recipe:
    """How to make one library: all of it, with the sources' content, is the key in the cache."""

    kind: str
    compiler: Path
    flags: tuple[str, ...]
    link: tuple[str, ...]
    archs: tuple[str, ...] = field(default=())

    def folder(self) -> Path:
        parts = [self.kind, compilers.version(self.compiler), *self.flags, "", *self.link, "", *self.archs]
        digest = hashlib.sha256("\0".join([*parts, sources(self.kind)]).encode())
        return cache_dir() / f"{self.kind}-{digest.hexdigest()[:16]}"


def host(sanitize: bool = False, defines: Sequence[str] = (), force: bool = False) -> Path:
    """The kernels for the CPU, made by g++.

    Args:
        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer; a process that loads it has to be started with
            LD_PRELOAD=`compilers.sanitizer_runtimes()`.
        defines: preprocessor names, "NAME" or "NAME=value".
        force: compile although the cache has it.

    Raises:
        ValueError: no g++, or the cache cannot be written.
        RuntimeError: it does not compile; with g++'s last lines.
    """
    names = tuple(f"-D{name}" for name in defines)
    if sanitize:
        extra = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
        return _made(Recipe("host", compilers.gxx(), (*_HOST, "-O1", "-g", *extra, *names), ("-shared", *extra)), force)
    return _made(Recipe("host", compilers.gxx(), (*_HOST, "-O2", *names), ("-shared",)), force)


def cpu(force: bool = False) -> Path:
    """The decode step for CPUs, made by g++ from `cpu_attend.cpp`, for the vectors that this one has.

    Raises:
        ValueError: no g++, an x86 CPU without AVX2, or the cache cannot be written.
        RuntimeError: it does not compile; with g++'s last lines.
    """
    vectors = _vectors()
    try:
        compiler = compilers.gxx()
    except ValueError:
        if (ready := _ready("cpu", vectors)) is None:
            raise
        return ready
    # not linked with OpenMP: the runtime has to be torch's, whose threads would be in the way of a second one's
    return _made(Recipe("cpu", compiler, (*_CPU, *vectors), ("-shared",), vectors), force)


def cuda(
    archs: Sequence[str] = ARCHS,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The kernels for GPUs, made by nvcc, with ptxas's report beside them (`report`).

    Args:
        archs: "sm_90" for machine code, "compute_90" for PTX, which the driver compiles for newer GPUs.
        progress: called with a line when a file is compiled.

    Raises:
        ValueError: no nvcc or g++, an architecture that is no name of one, or the cache cannot be written.
        RuntimeError: it does not compile; with nvcc's last lines.
    """
    return _made(_cuda_recipe(archs), force, progress)


def cuda_for(capability: tuple[int, int]) -> Path:
    """What runs on a GPU of a compute capability: the full build if the cache has it, else one for this GPU alone.

    Raises:
        ValueError: as `cuda`, and for a GPU older than Ampere.
    """
    return cached(capability) or cuda((_alone_for(capability),))


def cached(capability: tuple[int, int]) -> Path | None:
    """What the cache has for a GPU of a compute capability; without compilers, from any.

    Raises:
        ValueError: no compiler to make it with, and the cache has nothing; or a GPU older than Ampere.
    """
    choices = (ARCHS, (_alone_for(capability),))
    try:
        folders = [_cuda_recipe(archs).folder() for archs in choices]
    except ValueError:
        found = [ready for archs in choices if (ready := _ready("cuda", archs)) is not None]
        if not found:
            raise
        return found[0]
    return next((folder / _LIBRARY for folder in folders if (folder / _LIBRARY).is_file()), None)


def _alone_for(capability: tuple[int, int]) -> str:
    if capability < (8, 0):
        raise ValueError(f"compute capability {capability[0]}.{capability[1]}: the kernels need 8.0 or newer")
    return "compute_90" if capability > (9, 0) else "sm_90" if capability == (9, 0) else "sm_80"


def report(path: Path) -> list[ptxas.Kernel]:
    """Registers, spills and shared memory of each kernel in a library made by `cuda`; empty for one made by `host`."""
    kernels: list[ptxas.Kernel] = json.loads((path.parent / _REPORT).read_text())["kernels"]
    return kernels


def csrc() -> Path:
    """The folder of the sources: inside the package when installed, beside it in a checkout.

    Raises:
        ValueError: there is none.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if folder.is_dir():
            return folder
    raise ValueError(f"no csrc/ folder in {package} or beside it: reinstall kvbench")


def cache_dir() -> Path:
    """The folder of the builds: `kernels` in the environment variable KVBENCH_CACHE, else in ~/.cache/kvbench."""
    root = os.environ.get("KVBENCH_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "kvbench").expanduser().absolute() / "kernels"


def _cuda_recipe(archs: Sequence[str]) -> Recipe:
    compilers.gxx()  # nvcc's own complaint would not say what to install
    compiler = compilers.nvcc()
    codes: list[str] = []
    for arch in archs:
        kind, _, number = arch.partition("_")
        if kind not in ("sm", "compute") or not number[:2].isdigit():
            raise ValueError(f"arch={arch}: must be sm_<number> or compute_<number>, such as {', '.join(ARCHS)}")
        codes += ["-gencode", f"arch=compute_{number},code={arch}"]
    link = ("-shared", "--cudart", "static", *codes, *compilers.library_folders(compiler))
    return Recipe("cuda", compiler, (*_CUDA, *codes), link, tuple(archs))


def _vectors() -> tuple[str, ...]:
    """What g++ is to know of this CPU. As part of the key, so that machines that share a cache do not share a build."""
    if platform.machine() != "x86_64":
        return (f"-DKVB_FOR={platform.machine()}",)
    level = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}.get(torch.backends.cpu.get_cpu_capability())
    if level is None:
        raise ValueError("this CPU has no AVX2")
    return (f"-march={level}",)


def _files(kind: str) -> list[Path]:
    """All that is compiled or included."""
    suffixes = (".cpp",) if kind == "cpu" else (".cu", ".h")
    return sorted(file for file in csrc().rglob("*") if file.suffix in suffixes)


def sources(kind: str) -> str:
    """A hash of what a build of this kind is made from."""
    digest = hashlib.sha256()
    for file in _files(kind):
        digest.update(file.relative_to(csrc()).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _ready(kind: str, archs: Sequence[str]) -> Path | None:
    """A build of these sources for these processors, by whatever compiler another machine has made it."""
    for file in sorted(cache_dir().glob(f"{kind}-*/{_REPORT}")):
        about = json.loads(file.read_text())
        if (about.get("sources"), about.get("archs")) == (sources(kind), list(archs)):
            return file.parent / _LIBRARY
    return None


def _made(recipe: Recipe, force: bool = False, progress: Callable[[str], None] | None = None) -> Path:
    folder = recipe.folder()
    library = folder / _LIBRARY
    if library.is_file() and not force:
        return library
    if folder in _failed and not force:  # it would again
        raise _failed[folder]
    with _one_at_a_time(folder):
        if force or not library.is_file():  # unless another process made it meanwhile
            try:
                _make(recipe, folder, progress)
            except RuntimeError as error:
                log.warning("%s", error)
                _failed[folder] = error
                raise
    return library


def _make(recipe: Recipe, folder: Path, progress: Callable[[str], None] | None) -> None:
    """Compile in a temporary folder and rename it: a build is there as a whole or not at all."""
    units = [file for file in _files(recipe.kind) if file.suffix != ".h"]
    units.sort(key=lambda file: -file.stat().st_size)  # the longest first: the others are done beside it
    if not units:
        raise ValueError(f"no sources in {csrc()}: reinstall kvbench")
    begun = time.monotonic()
    log.info("compiling the %s kernels, once: they are kept in %s", recipe.kind, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-", ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        output: dict[str, str] = {}

        def compile_one(unit: Path) -> None:
            object_file = Path(scratch) / f"{unit.stem}.o"
            command: list[str | Path] = [recipe.compiler, *recipe.flags, "-I", csrc(), "-c", unit, "-o", object_file]
            output[unit.name] = compilers.run(command, f"compiling {unit.name}")
            if progress is not None:
                progress(f"{unit.name} ({len(output)} of {len(units)})")

        with ThreadPoolExecutor(min(len(units), len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(compile_one, units))
        objects = [Path(scratch) / f"{unit.stem}.o" for unit in units]
        compilers.run([recipe.compiler, *recipe.link, *objects, "-o", made / _LIBRARY], f"linking {_LIBRARY}")
        found = [kernel for unit in units for kernel in ptxas.kernels(output[unit.name])]
        about = {
            "compiler": compilers.version(recipe.compiler).splitlines()[-1],
            "flags": [*recipe.flags, *recipe.link],
            "archs": list(recipe.archs),
            "sources": sources(recipe.kind),
            "kernels": found,
        }
        (made / _REPORT).write_text(json.dumps(about, indent=1) + "\n")
        if folder.exists():  # whoever has the old library open keeps it
            shutil.move(folder, Path(scratch) / "old")
        os.rename(made, folder)
    log.info("compiled the %s kernels in %.0f s", recipe.kind, time.monotonic() - begun)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """One process builds, the others wait for it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that compiles the kernels")
            lock.acquire()
    except OSError as error:
        raise ValueError(f"KVBENCH_CACHE={folder.parent.parent}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
