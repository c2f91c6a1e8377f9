"""Ragged layers to attend to: lengths of the heads after published distributions, and rotating sets of buffers.

Shape suffixes: B batch rows, H query heads, U KV heads, G = H / U, S segments (row x KV head, in the order of the
lanes), S1 = S + 1, R slots, D head dimension, C sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench_kernels import ops

LENGTHS = ("equal", "adakv", "pareto", "one_long")
_SLACK = 16  # free slots of every segment: more than a graph appends


@dataclass(frozen=True)
class Shape:
    """A layer of Llama-3.1-8B unless said otherwise."""

    batch: int
    mean: int  # tokens of a segment, on average: what the budget is
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128

    @property
    def segments(self) -> int:
        return self.batch * self.kv_heads

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return 4 * self.segments * self.mean * self.dim


def lengths(kind: str, shape: Shape, seed: int = 0) -> list[int]:
    """Return the tokens of every segment. Their sum is that of `equal` for every kind, so the work is the same.

    equal; adakv: a fifth for every head, the rest of a row's budget by exponential weights among its heads;
    pareto: over all segments, exponent 1.2; one_long: one segment has 16 times the mean, or 3/4 of the total if less.
    """
    number, total = shape.segments, shape.segments * shape.mean
    g = torch.Generator().manual_seed(seed)
    if kind == "equal":
        return [shape.mean] * number
    if kind == "adakv":
        share = -torch.rand(shape.batch, shape.kv_heads, generator=g).clamp_min(1e-6).log()
        weight = (0.2 / shape.kv_heads + 0.8 * share / share.sum(1, keepdim=True)).flatten() / shape.batch
    elif kind == "pareto":
        share = torch.rand(number, generator=g).clamp_min(1e-4) ** (-1 / 1.2)
        weight = share / share.sum()
    elif kind == "one_long":
        long = min(0.75, 16 / number)
        weight = torch.full((number,), (1 - long) / (number - 1))
        weight[number // 3] = long
    else:
        raise ValueError(f"lengths {kind}: choose one of {', '.join(LENGTHS)}")
    result = (weight.double() * total).floor().clamp_min(1).long()
    result[int(result.argmax())] += total - int(result.sum())
    return [int(length) for length in result]


@dataclass
class Layer:
    """C sets of buffers of one layer: the same segments, other numbers. Lane n is segment n."""

    shape: Shape
    length: list[int]
    sets: int
    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    generator: torch.Generator | None = None
    k_CRD: list[Tensor] = field(init=False)
    v_CRD: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        shape, device = self.shape, self.device
        capacity = [-(-(length + _SLACK) // 8) * 8 for length in self.length]
        self.start_S1 = torch.tensor([0, *capacity], device=device).cumsum(0, dtype=torch.int32)
        self.packed_S1 = torch.tensor([0, *self.length], device=device).cumsum(0, dtype=torch.int32)
        self.segment_S = torch.arange(shape.segments, dtype=torch.int32, device=device)
        self.length_CS = torch.tensor([self.length] * self.sets, dtype=torch.int32, device=device)
        self._length_CS = self.length_CS.clone()
        slots = sum(capacity)
        self.k_CRD = [self.normal(slots, shape.dim) for _ in range(self.sets)]
        self.v_CRD = [self.normal(slots, shape.dim) for _ in range(self.sets)]
        self.q_BHTD = self.normal(shape.batch, shape.heads, 1, shape.dim)
        self.k_BUTD = self.normal(shape.batch, shape.kv_heads, 1, shape.dim)
        self.v_BUTD = self.normal(shape.batch, shape.kv_heads, 1, shape.dim)
        self.scaling = 1 / math.sqrt(shape.dim)
        self.status = torch.zeros(1, dtype=torch.int32, device=device)
        self.workspace = ops.workspace(shape.dim, device)

    @property
    def tokens(self) -> int:
        return sum(self.length)

    @property
    def longest(self) -> int:
        return max(self.length)

    @property
    def nbytes(self) -> int:
        """Bytes of the live keys and values of a set: what attention has to read."""
        return 2 * self.tokens * self.shape.dim * self.k_BUTD.element_size()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self.generator)

    def set_back(self) -> None:
        """Restore the lengths before all appends, by one copy on the device."""
        self.length_CS.copy_(self._length_CS)


def exact(q_GD: Tensor, k_LD: Tensor, v_LD: Tensor, scaling: float) -> Tensor:
    """Return one segment's attention in double precision: [G, D]."""
    weight_GL = (q_GD.double() @ k_LD.double().T * scaling).softmax(-1)
    return weight_GL @ v_LD.double()


def sample(length: list[int]) -> list[int]:
    """Return some segments to compare: the longest, the shortest, the first and the last."""
    by_length = sorted(range(len(length)), key=lambda s: length[s])
    return sorted({by_length[0], by_length[-1], 0, len(length) - 1})
