"""Finding and running the compilers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_LONGEST = 300  # characters of a compiler's line in a message


class CompilerError(RuntimeError):
    """A compiler that failed. The message is one line; `output` is everything that the compiler printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output

    def with_output_in(self, file: Path) -> CompilerError:
        """Write the output to a file, and return an error whose message names it; the same error if that fails."""
        if not self.output:
            return self
        try:
            file.write_text(self.output, errors="replace")
        except OSError:
            return self
        return CompilerError(f"{self}; the compiler's output is in {file}", self.output)


def gxx() -> Path:
    """Return g++, which compiles for the CPU and which nvcc needs as its host compiler.

    Raises:
        ValueError: there is none; the message says what to install.
    """
    path = shutil.which("g++")
    if path is None:
        raise ValueError("no g++ on PATH: install it (Debian, Ubuntu: apt-get install g++) to compile the kernels")
    return Path(path)


def nvcc() -> Path:
    """Return nvcc: the first of CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda and the package nvidia-cuda-nvcc.

    Raises:
        ValueError: there is none; the message says where it was looked for and what to install.
    """
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = shutil.which("nvcc")
    on_path = [Path(path).parent] if path else []
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
    """Return what the compiler prints for --version; it is part of a library's key."""
    return run([compiler, "--version"], f"{compiler.name} --version")


def library_folders(nvcc_file: Path) -> list[str]:
    """Return the `-L` that nvcc from the Python package needs: its own settings expect the toolkit's lib64."""
    home = nvcc_file.parent.parent
    return [] if (home / "lib64").exists() else [f"-L{home / 'lib'}"]


def sanitizer_runtimes() -> str:
    """Return LD_PRELOAD for a process that loads a library with `sanitize=True`.

    It contains libstdc++ too: without it the sanitizer does not see exceptions.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    return " ".join(run([gxx(), f"-print-file-name={name}"], "g++").strip() for name in names)


def run(command: Sequence[str | Path], what: str) -> str:
    """Run a compiler and return its output, both streams.

    Raises:
        CompilerError: it does not start, or fails. The message begins with `what` and has the first error.
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
        raise CompilerError(f"{what}: {command[0]} does not start: {error.strerror}") from error
    if done.returncode != 0:
        raise CompilerError(f"{what} failed: {_reason(done)} ({command[0]})", done.stdout)
    return done.stdout


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first line that says error, or else the last line."""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|cannot)\b", line)]
    chosen = [*errors[:1], *lines[-1:], f"exit status {done.returncode}"][0]
    return chosen if len(chosen) <= _LONGEST else f"{chosen[:_LONGEST]} ..."
