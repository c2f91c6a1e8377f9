"""Comparison of the structs in csrc/calls.h with those of ctypes, by the compiler.

A field that only one side has, or has at another place, would be undefined behaviour in a call. It is an error of the
build instead. The assertions are part of the sources' hash, so no cached library was compiled for other structs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from ctypes import Structure

from kvbench_kernels.calls import DOUBLE, FLOAT, INT, LONG, POINTER, SIGNATURES

HEADER = "calls.h"
_CPP = {  # how a field's type is recognised in C++
    POINTER: "std::is_pointer_v<{}>",
    LONG: "std::is_same_v<{}, int64_t>",
    INT: "std::is_same_v<{}, int32_t>",
    FLOAT: "std::is_same_v<{}, float>",
    DOUBLE: "std::is_same_v<{}, double>",
}


def source() -> str:
    """Return C++ that compiles only if the structs of all calls are the same in csrc/calls.h and in Python."""
    includes = ["#include <cstddef>", "#include <stdint.h>", "#include <type_traits>", f'#include "{HEADER}"']
    lines = [line for struct in _with_nested(SIGNATURES.values()) for line in _assertions(struct)]
    return "\n".join([*includes, *lines]) + "\n"


def _with_nested(structs: Iterable[type[Structure]]) -> list[type[Structure]]:
    """Return these structs and those that their fields are, each once, in a fixed order."""
    result: dict[type[Structure], None] = {}
    for struct in structs:
        result |= {kind: None for _, kind, *_ in struct._fields_ if issubclass(kind, Structure)}
        result[struct] = None
    return list(result)


def _assertions(struct: type[Structure]) -> Iterator[str]:
    """Yield lines that compile if the struct of this name in C++ has these fields and no others, at the same places."""
    name = f"kvb::{struct.__name__}"
    all_fields = ", ".join(field for field, *_ in struct._fields_)
    yield f'#line 1 "calls.py, {struct.__name__}"'  # the place that an error names
    yield f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{struct.__name__} has another size in calls.py");'
    yield f"void fields_of(const {name}& call) {{ const auto& [{all_fields}] = call; }}"  # one name for each field
    for field, kind, *_ in struct._fields_:
        in_cpp = f"decltype({name}::{field})"
        same_type = _CPP[kind].format(in_cpp) if kind in _CPP else f"std::is_same_v<{in_cpp}, kvb::{kind.__name__}>"
        yield (
            f"static_assert(offsetof({name}, {field}) == {getattr(struct, field).offset} && {same_type}, "
            f'"{struct.__name__}.{field} differs from calls.py");'
        )
