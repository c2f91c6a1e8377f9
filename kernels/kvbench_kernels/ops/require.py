"""Requirements on tensors, from which `checks` is built. A ValueError names the argument.

Shape suffixes as in `reference`. The compiled kernels need more than the reference (`compiled=True`): a 16-bit dtype, a
head dimension they are compiled for, and rows that can be read 16 bytes at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 80, 96, 128, 256)
_STEP = 8  # elements of 16 bytes


def rows(x: Tensor) -> Tensor:
    """Return `x`, or a contiguous copy if the kernels cannot read its rows 16 bytes at a time."""
    return x if _in_steps(x) else x.contiguous()


def takes_weight(weight_OC: Tensor) -> bool:
    """Return True if the kernel of `linear` can read this weight."""
    return weight_OC.dtype in DTYPES and weight_OC.is_contiguous() and weight_OC.numel() > 0 and _in_steps(weight_OC)


def arena(k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor | None, compiled: bool) -> None:
    """Require the buffers of an arena and the int32 arrays that describe it."""
    if k_RD.dim() != 2 or not k_RD.is_contiguous():
        raise ValueError("k_RD: must be contiguous, [slots, head dimension]")
    if v_RD.shape != k_RD.shape or not v_RD.is_contiguous():
        raise ValueError("v_RD: must be contiguous and of the shape of k_RD")
    alike("v_RD", v_RD, k_RD)
    index("start_S1", start_S1, k_RD)
    if length_S is not None:
        index("length_S", length_S, k_RD)
        if start_S1.numel() != length_S.numel() + 1:
            raise ValueError("start_S1: must have one element more than length_S")
    if compiled:
        sixteen_bit("k_RD", k_RD)
        steps("k_RD", k_RD)
        steps("v_RD", v_RD)


def new_tokens(k_BUTD: Tensor, v_BUTD: Tensor, k_RD: Tensor, segment_N: Tensor, compiled: bool) -> None:
    """Require keys and values that can be appended."""
    if k_BUTD.dim() != 4 or k_BUTD.shape[3] != k_RD.shape[1]:
        raise ValueError("k_BUTD: must be [rows, KV heads, tokens, head dimension of k_RD]")
    if v_BUTD.shape != k_BUTD.shape:
        raise ValueError("v_BUTD: must have the shape of k_BUTD")
    alike("k_BUTD", k_BUTD, k_RD)
    alike("v_BUTD", v_BUTD, k_RD)
    index("segment_N", segment_N, k_RD)
    if segment_N.numel() != k_BUTD.shape[0] * k_BUTD.shape[1]:
        raise ValueError("segment_N: must have an element for each row and KV head of k_BUTD")
    if compiled:
        steps("k_BUTD", k_BUTD)
        steps("v_BUTD", v_BUTD)


def decoding(q_BHTD: Tensor, k_RD: Tensor, segment_N: Tensor, out_BHTD: Tensor, compiled: bool) -> None:
    """Require queries and an output that fits them."""
    if q_BHTD.dim() != 4 or q_BHTD.shape[3] != k_RD.shape[1]:
        raise ValueError("q_BHTD: must be [rows, query heads, tokens, head dimension of k_RD]")
    if out_BHTD.shape != q_BHTD.shape:
        raise ValueError("out_BHTD: must have the shape of q_BHTD")
    alike("q_BHTD", q_BHTD, k_RD)
    alike("out_BHTD", out_BHTD, k_RD)
    index("segment_N", segment_N, k_RD)
    lanes, queries = segment_N.numel(), q_BHTD.shape[0] * q_BHTD.shape[1]
    if lanes == 0 or lanes % q_BHTD.shape[0] or queries % lanes:
        raise ValueError("segment_N: must have an element for each row and KV head, and q_BHTD as many heads for each")
    if compiled:
        head_dim("k_RD", k_RD)
        steps("q_BHTD", q_BHTD)
        steps("out_BHTD", out_BHTD)


def prompt(q_HTD: Tensor, k_UTD: Tensor, q_name: str, compiled: bool) -> None:
    """Require queries and keys of a prompt."""
    if k_UTD.dim() != 3:
        raise ValueError("k_UTD: must be [KV heads, tokens, head dimension]")
    if q_HTD.dim() != 3 or q_HTD.shape[2] != k_UTD.shape[2] or q_HTD.shape[0] % k_UTD.shape[0]:
        raise ValueError(f"{q_name}: must be [query heads, tokens, head dimension], with as many heads per KV head")
    alike(q_name, q_HTD, k_UTD)
    if k_UTD.shape[1] == 0 or k_UTD.shape[0] == 0:
        raise ValueError("k_UTD: has no tokens")
    if compiled:
        sixteen_bit("k_UTD", k_UTD)
        head_dim("k_UTD", k_UTD)
        steps("k_UTD", k_UTD)
        steps(q_name, q_HTD)


def alike(name: str, x: Tensor, like: Tensor) -> None:
    """Require the dtype and device of `like`."""
    if x.dtype != like.dtype:
        raise ValueError(f"{name}: is {x.dtype}, the keys are {like.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name}: is on {x.device}, the keys are on {like.device}")


def like(name: str, x: Tensor, other: Tensor) -> None:
    """Require the shape, dtype and device of `other`."""
    if x.shape != other.shape or x.dtype != other.dtype or x.device != other.device:
        raise ValueError(f"{name}: must be {other.dtype}, {list(other.shape)}, on {other.device}")


def step_op(name: str, x: Tensor, step: int, most: int | None) -> None:
    """Require what the kernels of a decode step read: 16-bit rows of whole steps, aligned, at most `most` elements."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: is {x.dtype}; the kernels take bfloat16 and float16")
    size = x.shape[-1]
    if size == 0 or size % step or (most is not None and size > most):
        limit = "" if most is None else f" up to {most}"
        raise ValueError(f"{name}: has rows of {size} elements; the kernels take multiples of {step}{limit}")
    steps(name, x)


def index(name: str, x: Tensor, like: Tensor) -> None:
    """Require a contiguous int32 vector on the device of `like`."""
    if x.dtype != torch.int32 or x.dim() != 1 or not x.is_contiguous() or x.device != like.device:
        raise ValueError(f"{name}: must be a contiguous int32 vector on {like.device}")


def shaped(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> None:
    """Require a contiguous tensor of this shape and dtype on the device of `like`."""
    if x.shape != shape or x.dtype != dtype or not x.is_contiguous() or x.device != like.device:
        raise ValueError(f"{name}: must be contiguous, {dtype}, {list(shape)}, on {like.device}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Require one of the known words."""
    if value not in known:
        raise ValueError(f"{name}={value}: must be one of {', '.join(known)}")


def sixteen_bit(name: str, x: Tensor) -> None:
    """Require a dtype that the kernels read, and a head dimension of whole 16-byte steps."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{name}: is {x.dtype}; the kernels take bfloat16 and float16")
    if x.shape[-1] % _STEP:
        raise ValueError(f"{name}: has head dimension {x.shape[-1]}; the kernels take multiples of {_STEP}")


def head_dim(name: str, x: Tensor) -> None:
    """Require a head dimension that the kernels are compiled for."""
    if x.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(f"{name}: has head dimension {x.shape[-1]}; the kernels are compiled for {known}")


def steps(name: str, x: Tensor) -> None:
    """Require rows that can be read 16 bytes at a time."""
    if not _in_steps(x):
        raise ValueError(f"{name}: rows must be contiguous and aligned to 16 bytes")


def _in_steps(x: Tensor) -> bool:
    *outer, last = x.stride()
    return (
        (last == 1 or x.shape[-1] == 1)
        and all(stride % _STEP == 0 for stride, size in zip(outer, x.shape, strict=False) if size > 1)
        and x.data_ptr() % 16 == 0
    )


def scratch(workspace: Tensor, like: Tensor) -> None:
    """Require a workspace from `ops.workspace`."""
    if workspace.dtype != torch.uint8 or not workspace.is_contiguous() or workspace.device != like.device:
        raise ValueError(f"workspace: must be what ops.workspace gives for {like.device}")
