"""Tiny sources in place of the kernels: a test of the build compiles for a second and not for a minute."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from kvbench_kernels.build import sources
from kvbench_kernels.calls import INT, SIGNATURES

ONE = '#include "twice.h"\nextern "C" int kvb_one(const Call* call, void*) { return twice(call->n); }\n'
TWO = '#include "twice.h"\nextern "C" int kvb_two(const Call* call, void*) { return 10 * twice(call->n) + 1; }\n'
CALLS = "namespace kvb { struct Call { int n; }; }\n"
TWICE = "struct Call { int n; };\ninline int twice(int n) { return 2 * n; }\n"
CPU = 'extern "C" int kvb_three(int n) { return 3 * n; }\n'


class Call(ctypes.Structure):
    _fields_ = [("n", INT)]


def write_tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two CUDA files, two headers and a C++ file, and make them the sources; the cache is in `tmp_path`."""
    folder = tmp_path / "csrc"
    (folder / "family").mkdir(parents=True)
    (folder / "one.cu").write_text(ONE)
    (folder / "family" / "two.cu").write_text(TWO)
    (folder / "twice.h").write_text(TWICE)
    (folder / "calls.h").write_text(CALLS)
    (folder / "family" / "three.cpp").write_text(CPU)
    monkeypatch.setattr(sources, "csrc", lambda: folder)
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    for name in list(SIGNATURES):
        monkeypatch.delitem(SIGNATURES, name)
    monkeypatch.setitem(SIGNATURES, "one", Call)
    monkeypatch.setitem(SIGNATURES, "two", Call)
    return folder
