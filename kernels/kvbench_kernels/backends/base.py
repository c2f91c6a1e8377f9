"""The interface of a backend: it appends new tokens to an arena in place, and attends to the live slots.

Shape suffixes, here and in the other files of this package: B batch rows, H query heads, U KV heads, G = H / U, T new
tokens, S segments of the arena (row x KV head), S1 = S + 1, R slots, N lanes of the call (lane b * U + u), D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kvbench_kernels.backends.packed import PackedAttention
from kvbench_kernels.backends.slab import Slab
from kvbench_kernels.ops.host_rows import HostRows
from kvbench_kernels.ops.host_sums import HostSums
from kvbench_kernels.ops.prompt import PromptKernels
from kvbench_kernels.ops.weights import least

NOT_OF_THE_HEAD = -2  # a status: something went to a slot that holds no token of its head that stays


@dataclass
class Buffers:
    """One layer's arena, as the backends see it. All tensors are on one device.

    `cuda` and `flash_attn` read the lengths from `length_S`, so the host does the same work in every step. `sdpa` and
    `torch` use the slabs and the lengths on the host. They need finite values in all slots, because masked values are
    multiplied by 0.
    """

    k_RD: Tensor
    v_RD: Tensor
    start_S1: Tensor  # int32, first slot of each segment, ascending; the difference is the capacity
    length_S: Tensor  # int32, live slots; a backend adds the new tokens
    capacity: int  # of the largest segment, or more
    slabs: Sequence[Slab] = ()
    bias_R: Tensor | None = None  # 0 on live slots, else -inf; `sdpa` and `torch` read it and keep it up to date
    # int32 [1]: 0; 1 + the segment that had no room; -1 if calls were seen to overlap; NOT_OF_THE_HEAD
    status: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.status = torch.zeros(1, dtype=torch.int32, device=self.k_RD.device)

    def check(self) -> None:
        """Wait for the device and check that every append had room.

        Raises:
            ValueError: a decode policy returned a slot that it must not.
            RuntimeError: a segment had no room. Its new tokens were not written, so later results are wrong. Or two
                calls used a workspace at the same time.
        """
        code = int(self.status.item())
        if code == NOT_OF_THE_HEAD:
            raise ValueError("method: the shares of a decode policy went to a slot whose token does not stay")
        if code < 0:
            raise RuntimeError("two calls of a ragged kernel used the same workspace at the same time; use one stream")
        if code > 0:
            raise RuntimeError(f"segment {code - 1} of a ragged cache had no room for the new tokens")


class Lanes:
    """The segment of each (row, KV head) of a call, in that order. One object serves all calls with the same rows."""

    def __init__(self, segments: Sequence[int], total: int, device: torch.device) -> None:
        """Prepare the indices that a call needs.

        Args:
            segments: the segment of each lane, all different.
            total: number of segments in the arena.

        Raises:
            ValueError: two lanes have the same segment.
        """
        source = [-1] * total
        for lane, segment in enumerate(segments):
            source[segment] = lane
        if sum(lane >= 0 for lane in source) != len(segments):
            raise ValueError("segments: two lanes have the same segment")
        self.wanted = None if len(segments) == total else [lane >= 0 for lane in source]
        self.segment_N = torch.tensor(segments, dtype=torch.int32, device=device)
        self.index_N = self.segment_N.long()
        # Segments outside the call get the queries of lane 0; their output is not read.
        self.query_S = torch.tensor([max(lane, 0) for lane in source], device=device)
        self.live_S = torch.tensor([lane >= 0 for lane in source], dtype=torch.int32, device=device)
        self._source = source
        self._in_slabs: list[tuple[Slab, Tensor | None, Tensor]] | None = None

    def in_slabs(self, slabs: Sequence[Slab]) -> list[tuple[Slab, Tensor | None, Tensor]]:
        """Return the slabs that hold lanes, the lanes' places in each (None: all segments of it), and the lanes."""
        if self._in_slabs is None:
            self._in_slabs = []
            for slab in slabs:
                inside = [s for s in range(slab.begin, slab.end) if self._source[s] >= 0]
                if inside:
                    device = self.segment_N.device
                    whole = len(inside) == slab.end - slab.begin
                    at = None if whole else torch.tensor([s - slab.begin for s in inside], device=device)
                    self._in_slabs.append((slab, at, torch.tensor([self._source[s] for s in inside], device=device)))
        return self._in_slabs


class Backend(Protocol):
    """One way to compute ragged attention."""

    name: str
    needs_bias: bool  # reads `Buffers.bias_R`

    prompt: PromptKernels | None = None  # kernels for prompts; None if torch does that work
    sums: HostSums | None = None  # a prompt's attention and outputs on a CPU; None if `prompt` or torch does it
    host: HostRows | None = None  # functions that write rows on a CPU; None if torch does that work
    packed: PackedAttention | None = None  # attends to quantised keys and values; None if they must be decoded first

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
        """Append T tokens to every lane's segment, then attend to it, causally among the new tokens: [B, H, T, D].

        Keys, values, bias and `length_S` of the buffers change in place. The segments must have room.

        Args:
            lengths: returns the live slots of every segment on the host, the new tokens included. `sdpa` and `torch`
                call it.
            settled: True if the stream's last kernel has not written lengths, starts, segments or tokens of the
                buffers. `cuda` then begins before that kernel ends.
        """
        ...

    def weights(self, q_NGTD: Tensor, buffers: Buffers, lanes: Lanes, scaling: float, width: int) -> Tensor:
        """Return the attention of queries to the slots of their lanes: [N, G, T, width] float32, 0 on empty slots."""
        ...

    def least(self, worth_BUC: Tensor, pos_BUC: Tensor, length_BU: Tensor) -> Tensor:
        """Return, per head, the live slot that is worth least; of equals, the one whose token came last: [B, U].

        Slots from length_BU on hold no token. pos_BUC is int32, length_BU int64.
        """
        return least(worth_BUC, pos_BUC, length_BU)


def queries(lanes: Lanes, q_BHTD: Tensor, group: int) -> Tensor:
    """Return the queries in the order of the arena's segments: [S, G, T, D]."""
    by_group: Tensor = q_BHTD.unflatten(1, (-1, group))
    return by_group.flatten(0, 1)[lanes.query_S]


def append(buffers: Buffers, lanes: Lanes, k_BUTD: Tensor, v_BUTD: Tensor) -> None:
    """Append new tokens in torch, for backends without a kernel that does it."""
    tokens = k_BUTD.shape[2]
    slot_N = buffers.start_S1[lanes.index_N] + buffers.length_S[lanes.index_N]
    if tokens > 1:
        slot_N = (slot_N[:, None] + torch.arange(tokens, device=slot_N.device)).flatten()
    slots = slot_N.long()
    buffers.k_RD.index_copy_(0, slots, k_BUTD.flatten(0, 2))
    buffers.v_RD.index_copy_(0, slots, v_BUTD.flatten(0, 2))
    if buffers.bias_R is not None:
        buffers.bias_R.index_fill_(0, slots, 0)
    buffers.length_S.index_add_(0, lanes.index_N, torch.full_like(lanes.segment_N, tokens))
