"""Attention to quantised keys and values that are not decoded first.

Shape suffixes: B batch rows, H query heads, U KV heads, T new tokens, N lanes (b * U + u), R plain slots, D head dim.

A layout is known by its name, which the methods give their storage parts:

    plain               nothing is encoded
    affine2/tokens32    keys: a scale and a minimum per channel and 32 tokens, codes of 2 bits
    affine2/tokens32/some    the same, of some channels of each lane; the others are 0
    affine2/channels32  values: a scale and a minimum per token and 32 channels
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import CPU_DTYPE, strided

_KIND = re.compile(r"affine([248])/(tokens|channels)(\d+)(/some)?")
_LANES = 16  # the CPU kernel reads as many codes at a time
_MAX_QUERIES = 64  # of a KV head, group x tokens
_MAX_DIM = 256


@dataclass(frozen=True)
class Layout:
    """A layout of quantised groups; 0 bits if nothing is encoded. With `some`, lanes hold channels of their own."""

    bits: int
    along: str
    group: int
    some: bool = False


def layout_of(kind: str | None) -> Layout | None:
    """Return the layout of that name; None if no kernel reads it."""
    if kind == "plain":
        return Layout(0, "", 0)
    match = _KIND.fullmatch(kind or "")
    return None if match is None else Layout(int(match[1]), match[2], int(match[3]), match[4] is not None)


@dataclass(frozen=True)
class PackedHalf:
    """The keys, or the values, of some segments: encoded blocks and plain tokens.

    Attributes:
        encoded: codes, scale, minimum; nothing if nothing is encoded.
        channel_NC: int16, the channels that encoded tokens of each lane have, in order; None for all.
    """

    layout: Layout
    encoded: Sequence[Tensor]
    plain_RD: Tensor
    channel_NC: Tensor | None = None


class PackedAttention(Protocol):
    """One way to attend to quantised keys and values."""

    def supports(self, keys: Layout | None, values: Layout | None, group: int, tokens: int, like: Tensor) -> bool:
        """Return True if it reads these layouts, for T new tokens of the dtype and head dimension of `like`."""
        ...

    def attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        keys: PackedHalf,
        values: PackedHalf,
        place_N6: Tensor,
        count_N3: Tensor,
        scaling: float,
    ) -> Tensor:
        """Attend to the stored tokens of every lane and, causally, to its new ones: [B, H, T, D]. Nothing is appended.

        Args:
            place_N6: int64 on the host; of the keys, first block, first plain slot, plain slots; then of the values.
            count_N3: int64 on the host; stored tokens, encoded keys, encoded values. The oldest tokens are encoded,
                and the plain token `age` lies in slot `first + age % slots`.
        """
        ...


def _is_known(keys: Layout | None, values: Layout | None, dim: int, queries: int) -> bool:
    """Return True if the kernels can read these layouts, with this head dimension and number of queries per KV head."""
    return (
        keys is not None
        and values is not None
        and keys.along in ("", "tokens")
        and values.along in ("", "channels")
        and not values.some
        and (not values.group or not dim % values.group)
        and dim <= _MAX_DIM
        and queries <= _MAX_QUERIES
    )


class CpuPacked:
    """Attention in our own C++ in float32 (csrc/packed/cpu_packed.cpp).

    Args:
        library: the compiled functions, as `host_library` returns them.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def supports(self, keys: Layout | None, values: Layout | None, group: int, tokens: int, like: Tensor) -> bool:
        """Return True if it reads these layouts, for T new tokens of the dtype and head dimension of `like`."""
        dim = like.shape[-1]
        return (
            _is_known(keys, values, dim, group * tokens)
            and all(half is None or not half.group % _LANES for half in (keys, values))
            and like.dtype == torch.float32
            and not dim % _LANES
        )

    def attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        keys: PackedHalf,
        values: PackedHalf,
        place_N6: Tensor,
        count_N3: Tensor,
        scaling: float,
    ) -> Tensor:
        """Attend to the stored tokens of every lane and, causally, to its new ones: [B, H, T, D]. Nothing is appended.

        Raises:
            RuntimeError: the sizes are not supported.
        """
        batch, heads, tokens, dim = q_BHTD.shape
        kv_heads = k_BUTD.shape[1]
        group = heads // kv_heads
        q_BHTD, k_BUTD, v_BUTD = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTD, k_BUTD, v_BUTD))
        out_BHTD = q_BHTD.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        place_N6, count_N3 = place_N6.int(), count_N3.int()
        sizes = batch * kv_heads, group, tokens, dim
        workspace = torch.empty(
            self._library.size("cpu_packed_workspace", count_N3.data_ptr(), *sizes), dtype=torch.uint8
        )
        self._library.call(
            "cpu_packed",
            None,
            q=strided(q_BHTD),
            out=strided(out_BHTD),
            k_new=strided(k_BUTD),
            v_new=strided(v_BUTD),
            keys=_pointers(keys),
            values=_pointers(values),
            place=place_N6.data_ptr(),
            count=count_N3.data_ptr(),
            workspace=workspace.data_ptr(),
            scaling=scaling,
            batch=batch,
            kv_heads=kv_heads,
            group=group,
            tokens=tokens,
            dim=dim,
            most=0,
            dtype=CPU_DTYPE[q_BHTD.dtype],
        )
        return out_BHTD


def _pointers(half: PackedHalf) -> tuple[int | None, ...]:
    """Return the fields of a PackedHalf of csrc/calls.h."""
    tensors, channel_NC = [*(half.encoded or [half.plain_RD] * 3), half.plain_RD], half.channel_NC
    some = (None, half.plain_RD.shape[1]) if channel_NC is None else (channel_NC.data_ptr(), channel_NC.shape[1])
    return *(x.data_ptr() for x in tensors), *some, half.layout.bits, half.layout.group


class CudaPacked:
    """Attention by the op `packed_decode` (csrc/packed/packed.cu), for bfloat16 and float16."""

    def supports(self, keys: Layout | None, values: Layout | None, group: int, tokens: int, like: Tensor) -> bool:
        """Return True if it reads these layouts, for T new tokens of the dtype and head dimension of `like`."""
        dim = like.shape[-1]
        return (
            _is_known(keys, values, dim, group * tokens)
            and like.dtype in (torch.bfloat16, torch.float16)
            and not dim % 8
        )

    def attend(
        self,
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        keys: PackedHalf,
        values: PackedHalf,
        place_N6: Tensor,
        count_N3: Tensor,
        scaling: float,
    ) -> Tensor:
        """Attend to the stored tokens of every lane and, causally, to its new ones: [B, H, T, D]."""
        batch, heads, tokens, dim = q_BHTD.shape
        out_BHTD = q_BHTD.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        none = torch.empty(0, dim, 1, dtype=torch.uint8, device=q_BHTD.device), q_BHTD[:0, 0, 0], q_BHTD[:0, 0, 0]
        torch.ops.kvb.packed_decode(
            ops.rows(q_BHTD),
            ops.rows(k_BUTD),
            ops.rows(v_BUTD),
            *(keys.encoded or none),
            keys.plain_RD,
            *(values.encoded or none),
            values.plain_RD,
            keys.channel_NC,
            place_N6.to(q_BHTD.device, torch.int32),
            count_N3.to(q_BHTD.device, torch.int32),
            keys.layout.bits,
            values.layout.bits,
            int(count_N3[:, 0].max()) + tokens,
            scaling,
            out_BHTD,
        )
        return out_BHTD
