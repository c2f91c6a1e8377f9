"""Kernels that start before the stream's previous one ends: the same bits as without, in a chain like a model's step.

Shape suffixes as in kvbench_kernels.ops.reference; N tokens (one of each row), C hidden size, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kvbench_kernels import build, ops
from kvbench_kernels.ops import library
from kvbench_kernels.parity import inputs
from tests.helpers.kernels_prefill import draw, generator

CPU = torch.device("cpu")
ARENAS = 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of a chain, in which every arena gets one token in each of `rounds`."""

    rounds: int
    longest: int
    rows: int
    heads: int
    kv_heads: int
    dim: int
    hidden: int


SMALL = Sizes(rounds=2, longest=300, rows=2, heads=4, kv_heads=2, dim=64, hidden=128)
REAL = Sizes(rounds=20, longest=3000, rows=4, heads=32, kv_heads=8, dim=128, hidden=4096)


@dataclass
class Layer(inputs.Arena):
    """Keys and values of one layer, and the weights of its products."""

    qkv_OC: Tensor
    out_CO: Tensor
    status: Tensor

    def changed(self) -> list[Tensor]:
        """Return what a chain changes."""
        return [self.k_RD, self.v_RD, self.length_S, self.status]


class Chain:
    """Product with RoPE, append and attention, product: through all arenas, again and again, with one workspace."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, g = sizes, generator(0)
        self.arenas = [self._layer(g, device) for _ in range(ARENAS)]
        self.first_NC, self.cos_ND, self.sin_ND = (
            torch.randn(sizes.rows, width, generator=g).bfloat16().to(device)
            for width in (sizes.hidden, sizes.dim, sizes.dim)
        )
        self.workspace = ops.workspace(sizes.dim, device)
        self._before = [[x.clone() for x in arena.changed()] for arena in self.arenas]

    def _layer(self, g: torch.Generator, device: torch.device) -> Layer:
        sizes = self.sizes
        segments, width = sizes.rows * sizes.kv_heads, (sizes.heads + 2 * sizes.kv_heads) * sizes.dim
        length_S = torch.tensor([draw(g, 1, sizes.longest) for _ in range(segments)], dtype=torch.int32)
        start_S1 = torch.tensor([0, *(length_S + sizes.rounds).tolist()]).cumsum(0).int()
        k_RD, v_RD = (torch.randn(int(start_S1[-1]), sizes.dim, generator=g).bfloat16() for _ in range(2))
        qkv_OC = (torch.randn(width, sizes.hidden, generator=g) / sizes.hidden**0.5).bfloat16()
        out_CO = torch.randn(sizes.hidden, sizes.heads * sizes.dim, generator=g).bfloat16()
        segment_N, status = torch.randperm(segments, generator=g).int(), torch.zeros(1, dtype=torch.int32)
        parts = (k_RD, v_RD, start_S1, length_S, segment_N, qkv_OC, out_CO, status)
        return Layer(*(x.to(device) for x in parts))

    def set_back(self) -> None:
        """Restore the arenas as they were before the first run."""
        for arena, before in zip(self.arenas, self._before, strict=True):
            for x, old in zip(arena.changed(), before, strict=True):
                x.copy_(old)

    def run(self, early: bool) -> list[Tensor]:
        """Return the attention and the product of every call.

        Args:
            early: kernels start before the previous one ends, where they may.
        """
        sizes, results, x_NC = self.sizes, [], self.first_NC
        rotated = sizes.heads + sizes.kv_heads
        for _ in range(sizes.rounds):
            for arena in self.arenas:
                qkv_NO = torch.ops.kvb.linear_rope(
                    x_NC, arena.qkv_OC, None, self.cos_ND, self.sin_ND, rotated, early
                )  # fmt: skip
                qkv_NHD = qkv_NO.unflatten(1, (-1, sizes.dim))[:, :, None]
                q_BHTD, k_BUTD, v_BUTD = qkv_NHD.split([sizes.heads, sizes.kv_heads, sizes.kv_heads], 1)
                out_NHTD = torch.empty_like(q_BHTD, memory_format=torch.contiguous_format)
                torch.ops.kvb.ragged_append_decode(
                    q_BHTD, k_BUTD, v_BUTD, arena.k_RD, arena.v_RD, arena.start_S1, arena.length_S, arena.segment_N,
                    sizes.dim**-0.5, out_NHTD, self.workspace, arena.status, early,
                )  # fmt: skip
                x_NC = torch.ops.kvb.linear(out_NHTD.flatten(1), arena.out_CO, None, False, early)
                results += [out_NHTD, x_NC]
        return results

    def state(self, results: list[Tensor]) -> list[Tensor]:
        """Return copies of the results and of all that has changed."""
        return [x.clone() for x in [*results, *(x for arena in self.arenas for x in arena.changed())]]

    def is_sound(self) -> bool:
        """Return True if every segment has grown by a token for each round and nothing was refused."""
        pairs = zip(self.arenas, self._before, strict=True)
        grown = [(arena.length_S - before[2]).eq(self.sizes.rounds).all() for arena, before in pairs]
        return all(bool(x) for x in grown) and not any(int(arena.status) for arena in self.arenas)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(first, second, strict=True))


@pytest.mark.gxx
def test_a_chain_of_early_kernels_gives_the_bits_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU nothing overlaps: the chain is right, and the kernels are told that they may start early."""
    told: list[int] = []
    call = library.Library.call

    def noted(self: library.Library, op: str, *arguments: object, **fields: int) -> None:
        told.extend(value for name, value in fields.items() if name in ("early", "settled"))
        call(self, op, *arguments, **fields)

    monkeypatch.setattr(library.Library, "call", noted)
    with ops.emulated(build.host()):
        chain = Chain(SMALL, CPU)
        expected = chain.state(chain.run(early=False))
        assert chain.is_sound() and not any(told)
        told.clear()
        chain.set_back()
        assert same(expected, chain.state(chain.run(early=True))) and chain.is_sound()
    assert len(told) == 3 * ARENAS * SMALL.rounds and all(told)


@pytest.mark.cuda
def test_early_kernels_of_a_graph_that_overlap_give_the_bits_of_others() -> None:
    chain = Chain(REAL, torch.device("cuda"))
    expected = chain.state(chain.run(early=False))  # compiles, before the capture
    assert chain.is_sound()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = chain.run(early=True)
    for replay in range(10):
        chain.set_back()
        graph.replay()
        assert same(expected, chain.state(results)) and chain.is_sound(), f"replay {replay}"
