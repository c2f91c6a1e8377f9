"""Rows of a ragged cache on a CPU, written by our own C++.

Shape suffixes: U KV heads, T tokens, S segments of an arena, S1 = S + 1, R slots, D head dimension, Y rows with a
decode policy, X places of what their policies know of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvbench_kernels.ops.launch import gather_fields
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import CPU_DTYPE


class Places(NamedTuple):
    """Positions, states and counts of the tokens of rows with a decode policy. All are contiguous, and change in place.

    Attributes:
        pos_X: int32, positions.
        state_X: float32, the policies' own.
        live_X: bool, True where a token is.
        length_YU: int64, tokens of each head.
        seen_Y: int32, tokens of the sequence.
        first_YU: int64, the place of each head's first token.
    """

    pos_X: Tensor
    state_X: Tensor
    live_X: Tensor
    length_YU: Tensor
    seen_Y: Tensor
    first_YU: Tensor


class HostRows:
    """The functions of a library for CPUs that write rows of an arena."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def takes(self, *tensors: Tensor) -> bool:
        """Return True if `gather` takes keys and values like these."""
        return all(x.is_cpu and x.dtype in CPU_DTYPE and x.stride(-1) == 1 for x in tensors)

    def gather(
        self, k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, k_RD: Tensor,
        v_RD: Tensor,
    ) -> None:  # fmt: skip
        """Write the kept tokens of every segment to its slots, and 0 to its other slots.

        Args:
            keep_ST: bool, contiguous.
            head_S: int32, the KV head of each segment.
            start_S1: int32, the first slot of each segment, and the end of the last one.
            k_RD, v_RD: contiguous; the slots of all segments are written, and no others.

        Raises:
            RuntimeError: a segment has fewer slots than tokens.
        """
        assert keep_ST.dtype == torch.bool
        assert keep_ST.is_contiguous()
        fields = gather_fields(k_UTD, v_UTD, keep_ST, head_S, start_S1, k_RD, v_RD)
        self._library.call("cpu_gather", None, **fields, dtype=CPU_DTYPE[k_RD.dtype])

    def append(self, places: Places, tokens: int) -> None:
        """Give the newest tokens of every head their positions and an empty state."""
        self._library.call(
            "cpu_append_slots",
            None,
            **_pointers(places),
            seen=places.seen_Y.data_ptr(),
            rows=places.length_YU.shape[0],
            heads=places.length_YU.shape[1],
            tokens=tokens,
        )

    def drop(
        self, places: Places, k_RD: Tensor, v_RD: Tensor, length_S: Tensor, *, start_YU: Tensor, segment_YU: Tensor,
        column_YU: Tensor, limit_YU: Tensor, buffer_Y: Tensor,
    ) -> None:  # fmt: skip
        """Drop a column of each head that holds more than its limit and its buffer; its last one takes the place.

        Args:
            length_S: int32, the live slots of every segment.
            start_YU: the first slot of each head; this and what follows is int64 and contiguous.
            segment_YU: the segment of each head.
        """
        self._library.call(
            "cpu_drop_slots",
            None,
            **_pointers(places),
            k=k_RD.data_ptr(),
            v=v_RD.data_ptr(),
            stored=length_S.data_ptr(),
            start=start_YU.data_ptr(),
            segment=segment_YU.data_ptr(),
            column=column_YU.data_ptr(),
            limit=limit_YU.data_ptr(),
            buffer=buffer_Y.data_ptr(),
            rows=places.length_YU.shape[0],
            heads=places.length_YU.shape[1],
            bytes=k_RD.shape[1] * k_RD.itemsize,
        )

    def hand_on(
        self, x_RD: Tensor, start_BU: Tensor, column_BU: Tensor, due_BU: Tensor, into_BUM: Tensor, share_BUM: Tensor
    ) -> None:
        """Add shares of the row in a column to other rows of its head, for heads where it is due.

        Args:
            x_RD: float32; changed in place.
            start_BU: int64, the first slot of each head.
            into_BUM: int64, the columns that take over something.
            share_BUM: float32, the share of each.
        """
        tensors = (start_BU, column_BU, due_BU, into_BUM, share_BUM)
        start, column, due, into, share = (x.contiguous() for x in tensors)
        self._library.call(
            "cpu_hand_on",
            None,
            x=x_RD.data_ptr(),
            start=start.data_ptr(),
            column=column.data_ptr(),
            due=due.data_ptr(),
            into=into.data_ptr(),
            share=share.data_ptr(),
            heads=due.numel(),
            takers=share.shape[2],
            dim=x_RD.shape[1],
        )


def _pointers(places: Places) -> dict[str, int]:
    """Return the pointers that both calls take."""
    return {
        "pos": places.pos_X.data_ptr(),
        "state": places.state_X.data_ptr(),
        "live": places.live_X.data_ptr(),
        "length": places.length_YU.data_ptr(),
        "first": places.first_YU.data_ptr(),
    }
