"""Arguments of the C functions kvb_<op>.

The functions in SIGNATURES take one struct and the stream, and return an error code. The structs are those of the same
names in csrc/calls.h, which documents their fields; every build compares the two (`build.agreement`). The functions in
SIZES return the bytes of workspace as an int64, those in COUNTS a number as an int. A letter stands for each of their
arguments: l is an int64, i an int, p a pointer. Functions whose names begin with cpu_ are in the library for CPUs.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure
from functools import cache
from typing import Any, TypeVar

POINTER, LONG, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
Filled = TypeVar("Filled", bound=Structure)


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    """Return fields of one type, in this order."""
    return [(name, kind) for name in names.split()]


class Tensor4(Structure):
    _fields_ = [*fields(POINTER, "data"), *fields(LONG, "stride_0 stride_1 stride_2")]


class Tensor3(Structure):
    _fields_ = [*fields(POINTER, "data"), *fields(LONG, "stride_0 stride_1")]


class Tensor2(Structure):
    _fields_ = [*fields(POINTER, "data"), *fields(LONG, "stride_0")]


class RaggedAppend(Structure):
    _fields_ = [
        *fields(Tensor4, "k_new v_new"),
        *fields(POINTER, "k v start length segment status"),
        *fields(INT, "batch kv_heads tokens dim dtype"),
    ]


class RaggedDecode(Structure):
    _fields_ = [
        *fields(Tensor4, "q out k_new v_new"),
        *fields(POINTER, "k v start length segment lse workspace status"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "batch kv_heads group tokens dim ctas wide dtype settled"),
    ]


class DecodeWeights(Structure):
    _fields_ = [
        *fields(POINTER, "q k start length segment out"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "lanes group tokens dim width dtype"),
    ]


class PackedHalf(Structure):
    _fields_ = [*fields(POINTER, "codes scale low plain channel"), *fields(INT, "dim bits group")]


class PackedDecode(Structure):
    _fields_ = [
        *fields(Tensor4, "q out k_new v_new"),
        *fields(PackedHalf, "keys values"),
        *fields(POINTER, "place count workspace"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "batch kv_heads group tokens dim most dtype"),
    ]


class Least(Structure):
    _fields_ = [*fields(POINTER, "worth pos length column"), *fields(LONG, "heads width")]


class AppendSlots(Structure):
    _fields_ = [*fields(POINTER, "pos state live length seen first"), *fields(LONG, "rows heads tokens")]


class DropSlots(Structure):
    _fields_ = [
        *fields(POINTER, "k v pos state live length stored first start segment column limit buffer"),
        *fields(LONG, "rows heads bytes"),
    ]


class HandOn(Structure):
    _fields_ = [*fields(POINTER, "x start column due into share"), *fields(LONG, "heads takers dim")]


class RaggedGather(Structure):
    _fields_ = [
        *fields(Tensor3, "k v"),
        *fields(POINTER, "keep head start k_to v_to"),
        *fields(LONG, "tokens dim segments"),
        *fields(INT, "dtype"),
    ]


class RaggedRelayout(Structure):
    _fields_ = [
        *fields(POINTER, "k v start length source start_to k_to v_to"),
        *fields(LONG, "places dim"),
        *fields(INT, "dtype"),
    ]


class WindowScore(Structure):
    _fields_ = [
        *fields(Tensor3, "q k"),
        *fields(Tensor2, "lse"),
        *fields(POINTER, "out workspace"),
        *fields(LONG, "heads kv_heads window tokens dim kernel_size"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "group pool dtype"),
    ]


class RowLse(Structure):
    _fields_ = [
        *fields(Tensor3, "q k"),
        *fields(POINTER, "lse"),
        *fields(LONG, "heads kv_heads tokens dim"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "dtype"),
    ]


class ColumnSums(Structure):
    _fields_ = [
        *fields(Tensor3, "q k"),
        *fields(Tensor2, "lse"),
        *fields(POINTER, "out"),
        *fields(LONG, "heads kv_heads tokens dim"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "dtype"),
    ]


class QueryWeights(Structure):
    _fields_ = [
        *fields(Tensor3, "q k"),
        *fields(Tensor2, "lse"),
        *fields(POINTER, "out"),
        *fields(LONG, "heads kv_heads queries tokens dim"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "dtype"),
    ]


class OutputNorms(Structure):
    _fields_ = [
        *fields(Tensor3, "v w"),
        *fields(POINTER, "out workspace"),
        *fields(LONG, "heads kv_heads tokens dim outputs"),
        *fields(INT, "dtype"),
    ]


class PromptAttention(Structure):
    _fields_ = [
        *fields(Tensor3, "q k v out"),
        *fields(POINTER, "lse workspace"),
        *fields(LONG, "heads kv_heads tokens dim"),
        *fields(FLOAT, "scaling"),
        *fields(INT, "dtype"),
    ]


class Select(Structure):
    _fields_ = [
        *fields(POINTER, "score keep count workspace"),
        *fields(DOUBLE, "floor"),
        *fields(LONG, "heads candidates total"),
        *fields(INT, "scope"),
    ]


class AddRmsNorm(Structure):
    _fields_ = [
        *fields(Tensor2, "residual x"),
        *fields(POINTER, "weight out"),
        *fields(FLOAT, "eps"),
        *fields(INT, "rows dim dtype"),
    ]


class Rope(Structure):
    _fields_ = [
        *fields(Tensor3, "q k"),
        *fields(Tensor2, "cos sin"),
        *fields(POINTER, "q_weight k_weight"),
        *fields(FLOAT, "eps"),
        *fields(INT, "rows heads kv_heads dim dtype"),
    ]


class SiluMul(Structure):
    _fields_ = [*fields(Tensor2, "gate up"), *fields(POINTER, "out"), *fields(INT, "rows dim dtype")]


class Linear(Structure):
    _fields_ = [
        *fields(Tensor2, "x"),
        *fields(POINTER, "weight bias out"),
        *fields(INT, "tokens inputs rows"),
        *fields(Tensor2, "cos sin"),
        *fields(INT, "heads dim gated early dtype"),
    ]


SIGNATURES: dict[str, type[Structure]] = {
    "ragged_append": RaggedAppend,
    "ragged_decode": RaggedDecode,
    "ragged_append_decode": RaggedDecode,
    "window_score": WindowScore,
    "row_lse": RowLse,
    "column_sums": ColumnSums,
    "select": Select,
    "ragged_gather": RaggedGather,
    "ragged_relayout": RaggedRelayout,
    "add_rms_norm": AddRmsNorm,
    "rope": Rope,
    "silu_mul": SiluMul,
    "linear": Linear,
    "decode_weights": DecodeWeights,
    "packed_decode": PackedDecode,
    "cpu_attend": RaggedDecode,
    "cpu_weights": DecodeWeights,
    "cpu_packed": PackedDecode,
    "cpu_least": Least,
    "cpu_column_sums": ColumnSums,
    "cpu_query_weights": QueryWeights,
    "cpu_output_norms": OutputNorms,
    "cpu_prompt_attention": PromptAttention,
    "cpu_add_rms_norm": AddRmsNorm,
    "cpu_rope": Rope,
    "cpu_silu_mul": SiluMul,
    "cpu_gather": RaggedGather,
    "cpu_append_slots": AppendSlots,
    "cpu_drop_slots": DropSlots,
    "cpu_hand_on": HandOn,
}
SIZES = {
    "decode_workspace_bytes": "ii",
    "window_score_workspace": "llllii",
    "select_workspace": "l",
    "packed_workspace": "llll",
    "cpu_workspace": "ppllll",
    "cpu_packed_workspace": "pllll",
    "cpu_output_norms_workspace": "lll",
    "cpu_prompt_attention_workspace": "lll",
}
COUNTS = {
    "decode_ctas": "iiii",
}


def filled(kind: type[Filled], arguments: dict[str, Any]) -> Filled:
    """Return a struct with these fields. A nested struct is given as a tuple.

    Raises:
        TypeError: a field is missing or has another name. ctypes alone would set it to 0, or ignore it.
    """
    if arguments.keys() != _names(kind):
        wrong = ", ".join(sorted(arguments.keys() ^ _names(kind)))
        raise TypeError(f"{kind.__name__}: missing or unknown: {wrong}")
    return kind(**arguments)


@cache
def _names(kind: type[Structure]) -> frozenset[str]:
    return frozenset(field[0] for field in kind._fields_)
