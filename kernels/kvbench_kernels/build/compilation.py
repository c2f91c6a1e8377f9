"""Running a recipe: compile the units, link them, and write a report next to the library."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, cast

from kvbench_kernels.build import agreement, compilers, ptxas, sources
from kvbench_kernels.build.recipes import Recipe

LIBRARY, REPORT = "libkvb.so", "report.json"


class Report(TypedDict):
    """Content of report.json, which lies next to a library.

    `bytes` and `sha256` are those of the library; a file that differs is damaged and must not be loaded. `sources` is
    `sources.digest`, `kernels` what ptxas says of each kernel (empty for g++).
    """

    compiler: str
    flags: list[str]
    archs: list[str]
    machine: str
    sources: str
    bytes: int
    sha256: str
    kernels: list[ptxas.Kernel]


def compile_into(folder: Path, scratch: Path, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
    """Compile a library and its report into `folder`, with object files in `scratch`. Both folders exist.

    Raises:
        CompilerError: a file does not compile, the library does not link, or csrc/calls.h differs from calls.py.
        OSError: a file cannot be written.
    """
    units = sources.units(recipe.kind)
    output: dict[Path, str] = {}

    def object_file(unit: Path) -> Path:
        return scratch / f"{unit.relative_to(sources.csrc()).as_posix().replace('/', '-')}.o"

    def compile_unit(unit: Path) -> None:
        include: list[str | Path] = ["-I", sources.csrc()]
        command = [recipe.compiler, *recipe.flags, *include, "-c", unit, "-o", object_file(unit)]
        output[unit] = compilers.run(command, f"compiling {unit.name}")
        if progress is not None:
            progress(f"{unit.name} ({len(output)} of {len(units)})")

    _compare_structs(scratch)
    with ThreadPoolExecutor(min(len(units), len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(compile_unit, units))
    library = folder / LIBRARY
    compilers.run([recipe.compiler, *recipe.link, *map(object_file, units), "-o", library], f"linking {LIBRARY}")
    about: Report = {
        "compiler": compilers.version(recipe.compiler).splitlines()[-1],
        "flags": [*recipe.flags, *recipe.link],
        "archs": list(recipe.archs),
        "machine": platform.machine(),
        "sources": sources.digest(recipe.kind),
        "bytes": library.stat().st_size,
        "sha256": file_hash(library),
        "kernels": [kernel for unit in units for kernel in ptxas.kernels(output[unit])],
    }
    (folder / REPORT).write_text(json.dumps(about, indent=1) + "\n")


def _compare_structs(scratch: Path) -> None:
    """Compare csrc/calls.h with calls.py. Raises CompilerError if they differ."""
    file = scratch / "structs.cpp"
    file.write_text(agreement.source())
    command: list[str | Path] = [compilers.gxx(), "-std=c++17", "-fsyntax-only", "-I", sources.csrc(), file]
    compilers.run(command, f"comparing {agreement.HEADER} with calls.py")


def read_report(folder: Path) -> Report | None:
    """Return the report of a compiled library; None if it is missing or damaged."""
    file = folder / REPORT
    try:
        about: Any = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or not Report.__required_keys__ <= set(about):
        return None
    return cast(Report, about)


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
