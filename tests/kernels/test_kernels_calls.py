"""The structs of the C functions' arguments: a build compares both sides, and no struct is filled incompletely."""

from __future__ import annotations

import re
import subprocess
from ctypes import Structure
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench_kernels import backends, build, calls
from kvbench_kernels.backends import AttentionSpec
from kvbench_kernels.build import agreement, compilers, sources
from kvbench_kernels.calls import SIGNATURES, RaggedDecode, RowLse, filled
from kvbench_kernels.ops.host_library import host_library
from tests.helpers.kernels_sources import copy_sources


def compiles(folder: Path) -> bool:
    """Return True if the compiler finds no difference between the structs."""
    file = folder / "structs.cpp"
    file.write_text(agreement.source())
    flags = ["-std=c++17", "-fsyntax-only", "-I", str(build.csrc())]
    return subprocess.run([str(compilers.gxx()), *flags, str(file)], capture_output=True).returncode == 0


@pytest.mark.gxx
@pytest.mark.parametrize(
    "wrong",
    [
        {"q": calls.Tensor3, "lse": calls.POINTER, "k": calls.Tensor3},
        {"q": calls.Tensor2, "k": calls.Tensor3},
        {"q": calls.Tensor3, "k": calls.Tensor3, "out": calls.POINTER},
        {},
    ],
    ids=["another order", "another type", "another name", "fields missing"],
)
def test_a_struct_that_differs_is_noticed(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = dict(RowLse._fields_)
    fields = [*wrong.items(), *((name, kind) for name, kind in right.items() if name not in wrong)]
    if "out" in wrong:
        fields = [(name, kind) for name, kind in fields if name != "lse"]
    if not wrong:
        fields.pop()  # dtype, the last one
    monkeypatch.setitem(SIGNATURES, "row_lse", type("RowLse", (Structure,), {"_fields_": fields}))
    assert not compiles(tmp_path)


@pytest.mark.gxx
@pytest.mark.parametrize("side", ["C++", "Python"])
def test_a_field_that_one_side_lacks_keeps_the_library_from_loading(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No function may be called with a struct that it reads in another way."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    if side == "C++":
        copy = copy_sources(tmp_path, "    int32_t ctas;", "    int32_t planted;\n    int32_t ctas;")
        monkeypatch.setattr(sources, "csrc", lambda: copy)
    else:
        fields = [*RaggedDecode._fields_, ("planted", calls.INT)]
        struct = type("RaggedDecode", (Structure,), {"_fields_": fields})
        for name in [name for name, kind in SIGNATURES.items() if kind is RaggedDecode]:
            monkeypatch.setitem(SIGNATURES, name, struct)
    host_library.cache_clear()
    spec = AttentionSpec(torch.device("cpu"), torch.float32, 64, 1)
    lack = backends.unmet_requirement("cpu", spec, compile_now=True)
    assert lack is not None and re.match(r"comparing calls\.h with calls\.py failed: .*RaggedDecode", lack)


@pytest.mark.parametrize("changes", [{"scaling": None}, {"scale": 1.0}], ids=["missing", "unknown"])
def test_a_call_needs_all_fields_and_no_others(changes: dict[str, float | None]) -> None:
    nothing = {"q": (None, 0, 0), "k": (None, 0, 0), "lse": None, "heads": 1, "kv_heads": 1, "tokens": 0, "dim": 64}
    arguments: dict[str, Any] = nothing | {"scaling": 1.0, "dtype": 0} | changes
    if arguments["scaling"] is None:
        del arguments["scaling"]
    with pytest.raises(TypeError, match="RowLse: missing or unknown: scal"):
        filled(RowLse, arguments)
