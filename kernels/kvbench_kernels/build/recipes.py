"""Recipes of the libraries: compiler, flags and architectures of each kind."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvbench_kernels.build import compilers, sources

ARCHS = ("sm_80", "sm_90", "compute_90")  # machine code of Ampere and Hopper, and PTX for newer GPUs
_HOST = ("-x", "c++", "-std=c++17", "-fPIC", "-ffp-contract=off")  # no fused multiply-add: sums as the source has them
_CPU = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi")
_CUDA = ("-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC", "-Xptxas", "-v")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")

# What g++ may use at each level of x86-64, by the names of /proc/cpuinfo.
_AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
_LEVELS = {
    "AVX512": ("x86-64-v4", _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "AVX2": ("x86-64-v3", _AVX2),
}


@dataclass(frozen=True)
class Recipe:
    """Instructions for compiling one library. Two recipes with the same key give the same library.

    Attributes:
        kind: "cuda", "host" or "cpu".
        compiler: path of nvcc or g++.
        flags: arguments for compiling a file.
        link: arguments for linking the library.
        archs: the processors the library is for; empty if it runs on all of them.
    """

    kind: str
    compiler: Path
    flags: tuple[str, ...]
    link: tuple[str, ...]
    archs: tuple[str, ...] = ()

    def key(self) -> str:
        """Return a hash of the recipe, the compiler's version, the machine's architecture and the sources.

        Raises:
            CompilerError: the compiler does not tell its version.
        """
        parts = [self.kind, platform.machine(), compilers.version(self.compiler), *self.flags, "", *self.link, ""]
        text = "\0".join([*parts, *self.archs, sources.digest(self.kind)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def host(sanitize: bool, defines: Sequence[str]) -> Recipe:
    """Return the recipe of the CUDA kernels for the emulator. Raises ValueError without g++."""
    names = tuple(f"-D{name}" for name in defines)
    if sanitize:
        flags = (*_HOST, "-O1", "-g", *_SANITIZE, *names)
        return Recipe("host", compilers.gxx(), flags, ("-shared", *_SANITIZE))
    return Recipe("host", compilers.gxx(), (*_HOST, "-O2", *names), ("-shared",))


def cpu(vectors: tuple[str, ...]) -> Recipe:
    """Return the recipe of the decode step for CPUs. Raises ValueError without g++."""
    # Not linked with OpenMP: the functions must be those of torch's runtime. A second runtime has threads of its own.
    return Recipe("cpu", compilers.gxx(), (*_CPU, *vectors), ("-shared",), vectors)


def cuda(archs: Sequence[str]) -> Recipe:
    """Return the recipe of the CUDA kernels for GPUs.

    Raises:
        ValueError: there is no nvcc or g++, or an architecture has no such name.
    """
    check_archs(archs)
    compilers.gxx()  # nvcc needs it, but its complaint does not say what to install
    compiler = compilers.nvcc()
    codes: list[str] = []
    for arch in archs:
        codes += ["-gencode", f"arch=compute_{arch.partition('_')[2]},code={arch}"]
    link = ("-shared", "--cudart", "static", *codes, *compilers.library_folders(compiler))
    return Recipe("cuda", compiler, (*_CUDA, *codes), link, tuple(archs))


def check_archs(archs: Sequence[str]) -> None:
    """Check the form of architectures, such as sm_90. Raises ValueError."""
    for arch in archs:
        if re.fullmatch(r"(sm|compute)_\d{2,3}[af]?", arch) is None:
            raise ValueError(f"--arch {arch}: must be sm_<number> or compute_<number>, such as {', '.join(ARCHS)}")


def arch_for(capability: tuple[int, int]) -> str:
    """Return the architecture to compile for, for one GPU alone. Raises ValueError for a GPU older than Ampere."""
    if capability < (8, 0):
        raise ValueError(f"compute capability {capability[0]}.{capability[1]}: the kernels need 8.0 or newer")
    return "compute_90" if capability > (9, 0) else "sm_90" if capability == (9, 0) else "sm_80"


def vector_flags() -> tuple[str, ...]:
    """Return the flags that tell g++ which vector instructions this CPU has.

    They are part of the key: machines that share a cache but differ in their CPUs must not share a library.

    Raises:
        ValueError: this is an x86 CPU without AVX2.
    """
    if platform.machine() != "x86_64":
        return (f"-DKVB_FOR={platform.machine()}",)
    allowed = {"AVX512": ("AVX512", "AVX2"), "AVX2": ("AVX2",)}.get(torch.backends.cpu.get_cpu_capability(), ())
    features = _cpu_features()
    for name in allowed:
        level, needed = _LEVELS[name]
        if features is None or needed <= features:
            return (f"-march={level}",)
    raise ValueError("this CPU has no AVX2")


def _cpu_features() -> set[str] | None:
    """Return what /proc/cpuinfo lists; None where there is no such file.

    torch alone does not suffice: ATEN_CPU_CAPABILITY makes it claim more than the CPU has.
    """
    try:
        line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return set(line[1].split()) if line else None
