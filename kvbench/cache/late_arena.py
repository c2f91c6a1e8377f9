"""Arenas of prompts whose lengths only the device knows, until the host reads those of all layers in one copy.

The host must not wait for the device in a layer: it would queue the next layer's work too late. All it knows of such an
arena is how many tokens its heads hold together. That is enough for the buffers. The segments lie one after the other,
and the device computes where each begins.

Shape suffixes: U KV heads, S segments (row x KV head), S1 = S + 1, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvbench.cache.arena import Arena, Segment
from kvbench.cache.base import Entry
from kvbench_kernels.backends import Buffers
from kvbench_kernels.ops.prompt import PromptKernels


class PromptLengths:
    """The lengths of segments that the host has not read yet, and what the layers of a prompt share.

    One object serves all layers of a cache.
    """

    def __init__(self) -> None:
        self._unread: list[_Unread] = []
        self._fixed: dict[tuple[tuple[int, ...], int, torch.device], tuple[Tensor, Tensor]] = {}

    def later(self, length_S: Tensor) -> Callable[[], list[int]]:
        """Return a function that returns these lengths; it reads those of all layers at once.

        It must be called before the tensor changes.
        """
        unread = _Unread(length_S)
        self._unread.append(unread)

        def lengths() -> list[int]:
            if unread.values is None:
                self._read()
            assert unread.values is not None
            return unread.values

        return lengths

    def fixed(self, reserves: tuple[int, ...], heads: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the head of every segment, and the slots reserved before each, int32 [S] and [S1].

        They are uploaded for the first layer of a prompt.
        """
        key = reserves, heads, device
        if key not in self._fixed:
            before = [0]
            for reserve in reserves:
                before += [before[-1] + reserve * (head + 1) for head in range(heads)]
            self._fixed[key] = _upload([*range(heads)] * len(reserves), device), _upload(before, device)
        return self._fixed[key]

    def _read(self) -> None:
        """Read all lengths, in one copy per device, and forget the prompt."""
        devices: dict[torch.device, list[_Unread]] = {}
        for unread in self._unread:
            devices.setdefault(unread.length_S.device, []).append(unread)
        for together in devices.values():
            values = torch.cat([unread.length_S for unread in together]).tolist()
            for unread in together:
                count = len(unread.length_S)
                unread.values, values = values[:count], values[count:]
        self._unread.clear()
        self._fixed.clear()


class _Unread:
    """Lengths on the device, and on the host once they are read."""

    def __init__(self, length_S: Tensor) -> None:
        self.length_S = length_S
        self.values: list[int] | None = None


def gather_unread(
    entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, kernels: PromptKernels, lengths: PromptLengths
) -> Arena:
    """Return an arena of the tokens of a prompt that the entries keep, without waiting for the device.

    Args:
        entries: each with its `total`.
    """
    device, (heads, tokens, _) = k_UTD.device, k_UTD.shape
    masks = [entry.keep_UT.to(device) for entry in entries]
    keep_ST = (masks[0] if len(masks) == 1 else torch.cat(masks)).contiguous()
    reserves = tuple(entry.reserve for entry in entries)
    kept = sum(entry.total or 0 for entry in entries)
    slots = kept + heads * sum(reserves)
    head_S, reserved_S1 = lengths.fixed(reserves, heads, device)
    length_S = keep_ST.sum(1, dtype=torch.int32)
    start_S1 = reserved_S1.clone()
    start_S1[1:] += length_S.cumsum(0, dtype=torch.int32)
    start_S1.clamp_(max=slots)  # the buffers end here, however many tokens a method keeps
    k_RD, v_RD = kernels.gather(k_UTD, v_UTD, keep_ST, head_S, start_S1, slots)
    read = lengths.later(length_S)

    def segments() -> list[Segment]:
        values = read()
        if sum(values) > kept:
            raise RuntimeError(f"method: keeps {sum(values)} tokens in a layer, but {kept} are its share of the budget")
        placed: list[Segment] = []
        start = 0
        for index, length in enumerate(values):
            entry, head = entries[index // heads], index % heads
            capacity = length + entry.reserve
            placed.append(Segment(entry.row, head, length, capacity, capacity, start))
            start += capacity
        return placed

    return Arena(segments, Buffers(k_RD, v_RD, start_S1, length_S, tokens + max(reserves)))


def _upload(values: Sequence[int], device: torch.device) -> Tensor:
    """Return an int32 vector on a device; a GPU copies it from pinned memory when its queue comes to it."""
    on_host = torch.tensor(values, dtype=torch.int32)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)
