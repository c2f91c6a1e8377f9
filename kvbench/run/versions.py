"""Versions of everything that numbers depend on, as manifests record them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kvbench_kernels
from kvbench import __version__
from kvbench.methods.method import Method
from kvbench.run.source_hash import hash_sources, imported_files
from kvbench_kernels.build import csrc

_PACKAGES = ("torch", "transformers", "hydra-core", "rouge", "rouge_score", "jieba", "fuzzywuzzy", "rapidfuzz")
_SHARED = ("cache", "engine", "benchmarks", "data", "metrics", "encoding", "models", "prompts")
_METHODS = "kvbench.methods"


def versions(method: Method | None = None) -> dict[str, str]:
    """Return {name: version} of what makes the numbers of `method`; without a method, of any method.

    `code` is a hash of our own sources that all methods share, `method` one of the sources of the method's parts.
    Neither changes with comments, docstrings or formatting, nor when another method is added or changed.
    """
    return _shared_versions() | {"method": _parts_hash(method)}


@cache
def _shared_versions() -> dict[str, str]:
    numbers = {"kvbench": __version__, "code": _code_hash()}
    for package in _PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = "absent"
    return numbers


def _code_hash() -> str:
    package = Path(__file__).parents[1]
    files = [path for room in _SHARED for path in sorted((package / room).rglob("*.py"))]
    files += [
        *_shared_method_files(),
        *sorted(Path(kvbench_kernels.__file__).parent.rglob("*.py")),
        *sorted(file for file in csrc().rglob("*") if file.is_file()),
    ]
    return hash_sources(files)


@cache
def _shared_method_files() -> list[Path]:
    """Return the files that every method goes through: `Method`, its loader, the checks, and what these import."""
    names = ("method", "load", "policy_answers", "store_answers")
    return sorted({file for name in names for file in imported_files(f"{_METHODS}.{name}", _METHODS).values()})


@cache
def _parts_hash(method: Method | None) -> str:
    """Return the hash of the files of a method's parts and of what these import; without a method, of all parts."""
    if method is None:
        files = set((Path(__file__).parents[1] / "methods").rglob("*.py"))
    else:
        modules = {base.__module__ for part in method.parts for kind in _classes(part) for base in kind.__mro__[:-1]}
        files = {file for module in modules for file in imported_files(module, _METHODS, _folder_of(module)).values()}
    return hash_sources(sorted(files - set(_shared_method_files())))


def _classes(part: object) -> Iterator[type]:
    """Yield the class of a part and those of the parts that it holds: a YAML may nest them."""
    if is_dataclass(part) and not isinstance(part, type):
        yield type(part)
        for field in fields(part):
            yield from _classes(getattr(part, field.name))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for item in part:
            yield from _classes(item)
    elif isinstance(part, Mapping):
        for item in part.values():
            yield from _classes(item)


def _folder_of(module: str) -> str:
    """Return the package that a part's module lies in: a method from elsewhere may have helpers next to its parts."""
    return _METHODS if module.startswith(f"{_METHODS}.") else module.rpartition(".")[0] or module
