"""Where the compilers are, and what to say where they are not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

LAST_LINES = 25  # of a compiler's output, in an error


def gxx() -> Path:
    """g++, for the host-emulated build and as nvcc's host compiler.

    Raises:
        ValueError: there is none; says what to install.
    """
    found = shutil.which("g++")
    if found is None:
        raise ValueError("no g++ on PATH: install it (Debian, Ubuntu: apt-get install g++) to compile the kernels")
    return Path(found)


def nvcc() -> Path:
    """nvcc of CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, or the package nvidia-cuda-nvcc; the first that exists.

    Raises:
        ValueError: there is none; says where was looked and what to install.
    """
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc")
    on_path = [Path(found).parent] if found else []
    packages = [folder for entry in sys.path if entry for folder in sorted(Path(entry).glob("nvidia/*/bin"))]
    for folder in [*homes, *on_path, Path("/usr/local/cuda/bin"), *packages]:
        if os.access(folder / "nvcc", os.X_OK):
            return folder / "nvcc"
    raise ValueError(
        "no nvcc in CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda or the package nvidia-cuda-nvcc: install the CUDA "
        "toolkit, or `pip install nvidia-cuda-nvcc nvidia-cuda-cccl` of the CUDA version that torch was built with"
    )


@cache
def version(compiler: Path) -> str:
    """What the compiler says of itself, as part of a build's key."""
    return run([compiler, "--version"], f"{compiler.name} --version")


def library_folders(nvcc_file: Path) -> list[str]:
    """`-L` for nvcc as a package, whose own settings expect the toolkit's lib64; nothing for a toolkit."""
    home = nvcc_file.parent.parent
    return [] if (home / "lib64").exists() else [f"-L{home / 'lib'}"]


def sanitizer_runtimes() -> str:
    """LD_PRELOAD for a process that loads a build with `sanitize=True`; libstdc++ too, for exceptions to be seen."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    return " ".join(run([gxx(), f"-print-file-name={name}"], "g++").strip() for name in names)


def run(command: Sequence[str | Path], what: str) -> str:
    """Run a compiler; its output, both streams.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise RuntimeError(f"{what}: {command[0]} does not start: {error.strerror}") from error
    if done.returncode != 0:
        lines = done.stdout.splitlines()
        errors = [line for line in lines if re.search(r"\berror\b", line)]
        last = lines[-LAST_LINES:]
        shown = [*[line for line in errors[:5] if line not in last], *last]
        raise RuntimeError("\n".join([f"{what} failed ({command[0]}, exit status {done.returncode}):", *shown]))
    return done.stdout
