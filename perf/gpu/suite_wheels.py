"""The packages that a machine without a package index may lack: fetched as wheels here, installed there.

Nothing that is there already is replaced. Needs the standard library and pip only.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_MIB = 60
# What the suite's steps import beyond torch, transformers, numpy and what these three need themselves, which have to be
# there; a dry run without anything else is among the tests.
PURE = (
    "hydra-core", "omegaconf", "filelock", "tabulate", "tqdm", "packaging", "psutil", "accelerate", "pytest",
    "pytest-timeout", "iniconfig", "pluggy", "pygments",
)  # fmt: skip
SOURCE_ONLY = ("antlr4-python3-runtime==4.9.3",)  # of hydra and omegaconf; no wheel of it is published
FOR_LINUX = ("fa3-fwd==0.0.3",)  # flash-attention 3, to compare with
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 40)))


def prepare(folder: Path) -> None:
    """Fetch the wheels into a folder; says how large it is.

    Raises:
        RuntimeError: pip fails, or they are larger than they may be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--no-deps", "--disable-pip-version-check", "-q"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    binary = ["--only-binary=:all:", "-d", str(folder)]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    linux = ["--python-version", "3.12", "--implementation", "cp", *platforms]
    _pip(["download", *common, *binary, *constraints, *linux, *PURE])
    _pip(["wheel", *common, "-w", str(folder), *SOURCE_ONLY])
    _pip(["download", *common, *binary, *linux, *FOR_LINUX])
    wheels = sorted(folder.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{total:7.2f} MiB  {len(wheels)} wheels in {folder}")
    if total > MOST_MIB:
        raise RuntimeError(f"{folder}: {total:.0f} MiB, more than {MOST_MIB}; is there something else in it?")


def install(folder: Path, target: Path) -> list[str]:
    """Install into `target` what this Python lacks; the names.

    Raises:
        ValueError: no wheels there.
        RuntimeError: pip fails.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"--wheels {folder}: there are none; make them with scripts/gpu_suite --prepare {folder}")
    lacking = missing(wheels, present())
    if lacking:
        _pip(["install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(target), *map(str, lacking)])
    return [name_of(wheel) for wheel in lacking]


def missing(wheels: Iterable[Path], there: Iterable[str]) -> list[Path]:
    """Return the wheels of distributions that are not installed."""
    known = set(there)
    return [wheel for wheel in wheels if name_of(wheel) not in known]


def present() -> set[str]:
    """Return the names of the distributions that this Python finds."""
    return {_plain(d.metadata["Name"]) for d in importlib.metadata.distributions() if d.metadata["Name"]}


def name_of(wheel: Path) -> str:
    return _plain(wheel.name.partition("-")[0])


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(arguments: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-3:]
        raise RuntimeError(f"pip {arguments[0]} fails: {' / '.join(last)}")
