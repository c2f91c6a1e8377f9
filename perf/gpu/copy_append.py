"""The scheme that Ada-KV's users know, built from its description, as what to compare with.

Per layer and step it makes new flat tensors, one token of every head longer, copies all old rows and writes the new
ones, for keys and values in one launch each; then flash-attention reads the packed rows, every head a sequence.

`described` launches as the description says: 1024 blocks of 128 threads for every head, each thread moving one element
of 2 bytes per turn. `wide` is the same scheme as well as it can be done: 16 bytes per access, no more blocks than
there is work for. Shape suffixes as in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from layers import Layer
from rivals import Attend, flat_queries, one_each, varlen
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU goes without
    triton = None

Copy = Callable[[Tensor, Tensor, Tensor, int], Tensor]

if triton is not None:

    @triton.jit
    def _copy(old, new, out, start, DIM: tl.constexpr, BLOCK: tl.constexpr):
        segment = tl.program_id(0).to(tl.int64)
        first = tl.load(start + segment).to(tl.int64)
        count = (tl.load(start + segment + 1).to(tl.int64) - first) * DIM
        source, target = old + first * DIM, out + (first + segment) * DIM
        element = tl.arange(0, BLOCK)
        for at in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
            inside = at + element < count
            tl.store(target + at + element, tl.load(source + at + element, inside), inside)
        if tl.program_id(1) == 0:
            column = tl.arange(0, DIM)
            tl.store(target + count + column, tl.load(new + segment * DIM + column))


def described(old_RD: Tensor, new_SD: Tensor, packed_S1: Tensor, longest: int) -> Tensor:
    """Return every segment with its new row after it: [R + S, D]."""
    out, (segments, dim) = _longer(old_RD, new_SD), new_SD.shape
    _copy[(segments, 1024)](old_RD, new_SD, out, packed_S1, dim, 128, num_warps=4)
    return out


def wide(old_RD: Tensor, new_SD: Tensor, packed_S1: Tensor, longest: int) -> Tensor:
    """Copy with 16-byte accesses."""
    out, (segments, dim) = _longer(old_RD, new_SD), new_SD.shape
    blocks = max(1, min(1024, -(-longest * dim // 4096)))
    _copy[(segments, blocks)](old_RD, new_SD, out, packed_S1, dim, 4096, num_warps=8)
    return out


def by_torch(old_RD: Tensor, new_SD: Tensor, packed_S1: Tensor, longest: int) -> Tensor:
    """Copy in plain torch; a dry run uses it, and the kernels are checked against it."""
    segments = len(new_SD)
    shift_S = torch.arange(segments, device=old_RD.device)
    out, count_S = _longer(old_RD, new_SD), packed_S1.diff()
    row_R = torch.arange(len(old_RD), device=old_RD.device) + shift_S.repeat_interleave(count_S)
    out[row_R] = old_RD
    out[packed_S1[1:].long() + shift_S] = new_SD
    return out


def copies(device: torch.device) -> dict[str, Copy]:
    """Return the ways to copy on a device, by name."""
    if device.type != "cuda":
        return {"described": by_torch}
    return {} if triton is None else {"described": described, "wide": wide}


def scheme(layer: Layer, copy: Copy) -> Attend:
    """Run a decode step of a layer: both copies, the new boundaries, attention. The sets' rows count as packed."""
    attention, _ = varlen(layer.device)
    q_SGD, first_S1, tokens = flat_queries(layer), one_each(layer), layer.tokens
    k_SD, v_SD = (x.reshape(-1, layer.shape.dim) for x in (layer.k_BUTD, layer.v_BUTD))
    old_CS = torch.full_like(layer.length_CS, 0) + layer.packed_S1.diff()

    def work(i: int) -> Tensor:
        k_RD = copy(layer.k_CRD[i][:tokens], k_SD, layer.packed_S1, layer.longest)
        v_RD = copy(layer.v_CRD[i][:tokens], v_SD, layer.packed_S1, layer.longest)
        start_S1, length_S = layer.packed_S1 + first_S1, old_CS[i] + 1
        most = (1, layer.longest + 1)
        return attention(q_SGD, k_RD[:, None], v_RD[:, None], (first_S1, start_S1), most, length_S, layer.scaling)

    return work


def _longer(old_RD: Tensor, new_SD: Tensor) -> Tensor:
    return old_RD.new_empty(len(old_RD) + len(new_SD), old_RD.shape[1])
