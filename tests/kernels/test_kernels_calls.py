"""The structs of the C functions' arguments: those of Python are those of C++, and none is filled incompletely."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator, Mapping
from ctypes import Structure
from pathlib import Path
from typing import Any

import pytest

from kvbench_kernels import build
from kvbench_kernels.build import compilers
from kvbench_kernels.ops import signatures
from kvbench_kernels.ops.signatures import SIGNATURES, RowLse, filled

CPP = {  # how a field's type is recognised in C++
    signatures.POINTER: "std::is_pointer_v<{}>",
    signatures.LONG: "std::is_same_v<{}, int64_t>",
    signatures.INT: "std::is_same_v<{}, int32_t>",
    signatures.FLOAT: "std::is_same_v<{}, float>",
    signatures.DOUBLE: "std::is_same_v<{}, double>",
}


def with_nested(structs: Mapping[str, type[Structure]]) -> set[type[Structure]]:
    """Return all these structs, and those that their fields are."""
    result = set(structs.values())
    for struct in list(result):
        result |= {kind for _, kind, *_ in struct._fields_ if issubclass(kind, Structure)}
    return result


def assertions(struct: type[Structure]) -> Iterator[str]:
    """Yield lines that compile if the struct of this name in C++ has these fields and no others, at the same places."""
    name = f"kvb::{struct.__name__}"
    all_fields = ", ".join(field for field, *_ in struct._fields_)
    yield f"void count(const {name}& call) {{ const auto& [{all_fields}] = call; }}"  # needs one name for each field
    yield f"static_assert(sizeof({name}) == {ctypes.sizeof(struct)});"
    for field, kind, *_ in struct._fields_:
        in_cpp = f"decltype({name}::{field})"
        same_type = CPP[kind].format(in_cpp) if kind in CPP else f"std::is_same_v<{in_cpp}, kvb::{kind.__name__}>"
        yield f"static_assert(offsetof({name}, {field}) == {getattr(struct, field).offset} && {same_type});"


def compiles(header: str, structs: Mapping[str, type[Structure]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile the assertions about these structs of a header."""
    source = folder / "calls.cpp"
    lines = [line for struct in with_nested(structs) for line in assertions(struct)]
    includes = ["#include <cstddef>", "#include <type_traits>", f'#include "{header}"']
    source.write_text("\n".join([*includes, *lines]) + "\n")
    flags = ["-std=c++17", "-fsyntax-only", "-I", str(build.csrc())]
    return subprocess.run([str(compilers.gxx()), *flags, str(source)], capture_output=True, text=True)


@pytest.mark.gxx
def test_the_structs_of_python_are_those_of_the_kernels(tmp_path: Path) -> None:
    done = compiles("calls.h", SIGNATURES, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.gxx
@pytest.mark.parametrize(
    "wrong",
    [
        {"q": signatures.Tensor3, "lse": signatures.POINTER, "k": signatures.Tensor3},
        {"q": signatures.Tensor2, "k": signatures.Tensor3},
        {"q": signatures.Tensor3, "k": signatures.Tensor3, "out": signatures.POINTER},
        {},
    ],
    ids=["another order", "another type", "another name", "fields missing"],
)
def test_a_struct_that_differs_is_noticed(wrong: dict[str, Any], tmp_path: Path) -> None:
    right = dict(RowLse._fields_)
    fields = [*wrong.items(), *((name, kind) for name, kind in right.items() if name not in wrong)]
    if "out" in wrong:
        fields = [(name, kind) for name, kind in fields if name != "lse"]
    if not wrong:
        fields.pop()  # dtype, the last one
    struct = type("RowLse", (Structure,), {"_fields_": fields})
    assert compiles("calls.h", {"row_lse": struct}, tmp_path).returncode != 0


@pytest.mark.parametrize("changes", [{"scaling": None}, {"scale": 1.0}], ids=["missing", "unknown"])
def test_a_call_needs_all_fields_and_no_others(changes: dict[str, float | None]) -> None:
    nothing = {"q": (None, 0, 0), "k": (None, 0, 0), "lse": None, "heads": 1, "kv_heads": 1, "tokens": 0, "dim": 64}
    arguments: dict[str, Any] = nothing | {"scaling": 1.0, "dtype": 0} | changes
    if arguments["scaling"] is None:
        del arguments["scaling"]
    with pytest.raises(TypeError, match="RowLse: missing or unknown: scal"):
        filled(RowLse, arguments)
