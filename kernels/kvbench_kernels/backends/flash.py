"""Backend `flash_attn`: flash-attention's function for sequences of different lengths, one sequence per segment.

The starts of the segments are the boundaries of the keys, and the live lengths say how much of each sequence is read
(`seqused_k`). So the arena is read in place. The function comes from an installed flash-attn if that accepts live
lengths, else from torch: `varlen_attn`, or in versions before 2.12 the private op that it calls.

New tokens are appended by the op `ragged_append`, or by torch if its kernel cannot be compiled.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.backends.base import Backend, Buffers, Lanes, append, queries
from kvbench_kernels.ops.weights import weights

# flash-attention 3, then 2; of version 2 only the inner function accepts live lengths.
_PACKAGES = (
    ("flash_attn_interface", "flash_attn_varlen_func"),
    ("flash_attn", "flash_attn_varlen_func"),
    ("flash_attn.flash_attn_interface", "_flash_attn_varlen_forward"),
)
# Arguments that torch's public function must have; it has had all of them since 2.12.
_PUBLIC = {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa",
           "seqused_k"}  # fmt: skip
# Arguments that the private op is called with.
_GIVEN = {
    "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
    "scale", "seqused_k",
}  # fmt: skip


class Varlen(Protocol):
    """Attention of S sequences, causal up to the last query and key. `q` [S * T, G, D], `k` and `v` [R, 1, D]."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor], most: tuple[int, int], used_S: Tensor,
        scaling: float,
    ) -> Tensor: ...  # fmt: skip


Append = Callable[[Buffers, Lanes, Tensor, Tensor], None]
"""Append new keys and values [B, U, T, D] to the segments of the lanes."""


class FlashBackend(Backend):
    """Attention in one call for all segments. The lengths do not change the call, so a CUDA graph can capture it.

    Args:
        varlen: the attention.
        append: how new tokens are appended; by default as `find_append` says for the device.
    """

    name = "flash_attn"
    needs_bias = False

    def __init__(self, varlen: Varlen, append: Append | None = None) -> None:
        self._varlen, self._append = varlen, append

    def append_and_attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        buffers: Buffers,
        lanes: Lanes,
        scaling: float,
        lengths: Callable[[], Sequence[int]] | None = None,
        settled: bool = False,
    ) -> Tensor:
        append = self._append or find_append(k_BUTD.device)[0]
        append(buffers, lanes, k_BUTD, v_BUTD)
        q_SGTD = queries(lanes, q_BHTD, q_BHTD.shape[1] // k_BUTD.shape[1])
        segments, group, tokens, dim = q_SGTD.shape
        # With a single token the function needs a query of every sequence. Segments outside the call have a query too,
        # but no keys.
        used_S = buffers.length_S if lanes.wanted is None else buffers.length_S * lanes.live_S
        first_S1 = torch.arange(0, (segments + 1) * tokens, tokens, dtype=torch.int32, device=q_BHTD.device)
        out = self._varlen(
            q_SGTD.transpose(1, 2).reshape(segments * tokens, group, dim),
            buffers.k_RD[:, None],
            buffers.v_RD[:, None],
            (first_S1, buffers.start_S1),
            (tokens, buffers.capacity),
            used_S,
            scaling,
        )
        out_SGTD = out.view(segments, tokens, group, dim).transpose(1, 2)
        return out_SGTD[lanes.index_N].reshape(q_BHTD.shape)

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        start_N, length_N = buffers.start_S1[lanes.index_N], buffers.length_S[lanes.index_N]
        return weights(q_NGTD, buffers.k_RD, start_N, length_N, scaling, width)


def append_by_op(buffers: Buffers, lanes: Lanes, k_BUTD: Tensor, v_BUTD: Tensor) -> None:
    """Append by the op `ragged_append`, in one launch. A segment without room for all tokens sets the status."""
    torch.ops.kvb.ragged_append(
        buffers.k_RD,
        buffers.v_RD,
        buffers.start_S1,
        buffers.length_S,
        lanes.segment_N,
        ops.rows(k_BUTD),
        ops.rows(v_BUTD),
        buffers.status,
    )


@cache
def find_append(device: torch.device) -> tuple[Append, str]:
    """Find the function that appends on a device, and describe it. The kernels are compiled if that is necessary.

    Without the kernels, torch appends: it takes several launches and does not check that the segments have room.
    """
    if device.type == "cuda":
        try:
            ops.prepare(device)
        except (ValueError, RuntimeError, OSError) as error:  # a full disk, too
            return append, f"torch, without kvb.ragged_append: {str(error).splitlines()[0]}"
    return append_by_op, "kvb.ragged_append"


def find() -> tuple[Varlen, str]:
    """Find the function to use, and say where it comes from.

    Raises:
        ValueError: neither an installed flash-attn nor this torch accepts live lengths.
    """
    for module, name in _PACKAGES:
        try:
            function = getattr(importlib.import_module(module), name, None)
        except (ImportError, OSError, RuntimeError):  # not installed, or built for another torch
            continue
        if function is not None and {"seqused_k", "cu_seqlens_k"} <= _parameters(function):
            return _of_package(function), f"{module}.{name}"
    public = _public_of_torch()
    if public is not None:
        return public, f"varlen_attn of torch {torch.__version__}"
    try:
        return private_of_torch()
    except ValueError as error:
        raise ValueError(f"no flash-attn that accepts live lengths, and {error}") from error


def private_of_torch() -> tuple[Varlen, str]:
    """Return the private op of torch that `varlen_attn` calls, without what that function adds, and its origin.

    Raises:
        ValueError: this torch has no such op, or the op has other arguments.
    """
    if (reason := _missing_in_torch()) is not None:
        raise ValueError(reason)
    return _of_torch, f"_flash_attention_forward of torch {torch.__version__}"


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _of_package(function: Callable[..., Any]) -> Varlen:
    has = _parameters(function)
    more = {"dropout_p": 0.0} if "dropout_p" in has else {}

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor], most: tuple[int, int], used_S: Tensor,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        out = function(
            q,
            k,
            v,
            cu_seqlens_q=starts[0],
            cu_seqlens_k=starts[1],
            max_seqlen_q=most[0],
            max_seqlen_k=most[1],
            softmax_scale=scaling,
            causal=most[0] > 1,
            seqused_k=used_S,
            **more,
        )
        return out if isinstance(out, Tensor) else out[0]

    return varlen


def _public_of_torch() -> Varlen | None:
    """Return the attention by torch's public function; None if this torch has none that accepts live lengths."""
    try:
        function = getattr(importlib.import_module("torch.nn.attention.varlen"), "varlen_attn", None)
    except (ImportError, OSError, RuntimeError):
        return None
    if function is None or not _parameters(function) >= _PUBLIC:
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor], most: tuple[int, int], used_S: Tensor,
        scaling: float,
    ) -> Tensor:  # fmt: skip
        # A window of (-1, 0) is how this function is told to be causal; it compares the tuple.
        out: Tensor = function(
            q,
            k,
            v,
            *starts,
            *most,
            scale=scaling,
            window_size=(-1, 0) if most[0] > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=used_S,
        )
        return out

    return varlen


def _of_torch(
    q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor], most: tuple[int, int], used_S: Tensor,
    scaling: float,
) -> Tensor:  # fmt: skip
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, *starts, *most, 0.0, most[0] > 1, False, scale=scaling, seqused_k=used_S
    )[0]
    return out


def _missing_in_torch() -> str | None:
    op = getattr(torch.ops.aten, "_flash_attention_forward", None)
    arguments = {} if op is None else {argument.name: argument for argument in op.default._schema.arguments}
    more = [name for name, argument in arguments.items() if name not in _GIVEN and not argument.has_default_value()]
    if _GIVEN - set(arguments) or more:
        return f"torch {torch.__version__} has no _flash_attention_forward with seqused_k"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without flash-attention"
    return None
