"""Attention weights for decode policies, and the slot worth least: every backend against the reference in float64.

Shape suffixes: B rows, U KV heads, N lanes, G query heads per KV head, T tokens, C slots, R slots of the arena, D head
dimension.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kvbench.cache.arena import Segment, lay_out
from kvbench_kernels.backends import Buffers, Lanes, make_backend
from kvbench_kernels.ops import weights as reference
from tests.helpers.kernels_prefill import DTYPES, emulated, needs_gxx

BACKENDS = ["torch", "sdpa", "cuda", pytest.param("cpu", marks=pytest.mark.gxx)]
DIMS = (16, 32, 64, 80, 96, 128, 256, 24)


def drawn(seed: int) -> SimpleNamespace:
    """Return an arena of segments of different lengths, some of them as lanes, and queries."""
    g = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    dim, group, tokens = DIMS[seed % len(DIMS)], number(1, 6), number(1, 30) if seed % 3 == 0 else 1
    segments = [Segment(row, 0, 0, number(tokens, 600)) for row in range(number(1, 6))]
    slabs, slots = lay_out(segments)
    length_S = torch.tensor([number(tokens, s.capacity + 1) for s in segments], dtype=torch.int32)
    start_S1 = torch.tensor([*(s.start for s in segments), slots], dtype=torch.int32)
    k_RD = torch.randn(slots, dim, generator=g)
    index = torch.randperm(len(segments), generator=g)[: number(1, len(segments) + 1)]
    return SimpleNamespace(
        buffers=Buffers(k_RD, k_RD, start_S1, length_S, max(s.capacity for s in segments), slabs),
        lanes=Lanes(index.tolist(), len(segments), k_RD.device),
        q=2 * torch.randn(len(index), group, tokens, dim, generator=g),
        start=start_S1[index],
        length=length_S[index],
        width=int(length_S[index].max()) + number(0, 20),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("seed", range(24))
def test_weights_are_the_softmax_over_visible_slots(name: str, seed: int, dtype: torch.dtype) -> None:
    case = drawn(seed)
    q, k_RD = case.q.to(dtype), case.buffers.k_RD.to(dtype)
    buffers = dataclasses.replace(case.buffers, k_RD=k_RD, v_RD=k_RD)
    out = make_backend(name).weights(q, buffers, case.lanes, 0.3, case.width)
    arguments = q.double(), k_RD.double(), case.start, case.length, 0.3, case.width
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference.weights(*arguments).float(), rtol=2e-5, atol=1e-6)
    tokens = case.q.shape[2]
    for lane, length in enumerate(case.length.tolist()):
        for token in range(tokens):
            assert bool((out[lane, :, token, length - tokens + token + 1 :] == 0).all())


def test_the_reference_is_plain_attention() -> None:
    case = drawn(3)
    out = reference.weights(case.q, case.buffers.k_RD, case.start, case.length, 0.5, case.width)
    lane, group, tokens = 0, 0, case.q.shape[2]
    for token in range(tokens):
        seen = int(case.length[lane]) - tokens + token + 1
        keys = case.buffers.k_RD[int(case.start[lane]) :][:seen]
        wanted = (keys @ case.q[lane, group, token] * 0.5).softmax(0)
        torch.testing.assert_close(out[lane, group, token, :seen], wanted, rtol=1e-5, atol=1e-6)


@needs_gxx
@pytest.mark.parametrize("seed", range(6))
def test_the_cuda_kernel_on_the_emulator(seed: int) -> None:
    """Slots without a token hold NaN: to read one would show."""
    case, dtype = drawn(seed), DTYPES[seed % 2]
    buffers, lanes = case.buffers, case.lanes
    q, k_RD = case.q.to(dtype), buffers.k_RD.to(dtype)
    exact = reference.weights(q.double(), k_RD.double(), case.start, case.length, 0.3, case.width)
    for start, length, end in zip(
        buffers.start_S1.tolist(), buffers.length_S.tolist(), buffers.start_S1.tolist()[1:], strict=False
    ):
        k_RD[start + length : end] = torch.nan
    arguments = q, k_RD, buffers.start_S1, buffers.length_S, lanes.segment_N, 0.3, case.width
    reference.check(*arguments, compiled=True)
    out = reference.launch(emulated(), None, *arguments)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.gxx
def test_a_lane_of_the_cpu_backend_does_not_depend_on_the_others() -> None:
    case = drawn(6)
    backend = make_backend("cpu")
    together = backend.weights(case.q, case.buffers, case.lanes, 0.3, case.width)
    for lane, segment in enumerate(case.lanes.index_N.tolist()):
        alone = Lanes([segment], len(case.lanes.query_S), case.q.device)
        assert torch.equal(backend.weights(case.q[lane, None], case.buffers, alone, 0.3, case.width)[0], together[lane])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("seed", range(8))
def test_the_slot_worth_least(name: str, seed: int) -> None:
    """Ties go to the latest token; protected tokens leave when there are no others; empty slots never do."""
    g = torch.Generator().manual_seed(seed)
    worth_BUC = torch.randint(0, 4, (3, 2, 20), generator=g).float()
    worth_BUC[torch.rand(3, 2, 20, generator=g) < 0.3] = torch.inf
    worth_BUC[0, 0] = torch.inf
    pos_BUC = torch.rand(3, 2, 20, generator=g).argsort(-1).int()
    length_BU = torch.randint(1, 21, (3, 2), generator=g)
    got = make_backend(name).least(worth_BUC, pos_BUC, length_BU)
    for row in range(3):
        for head in range(2):
            live = range(int(length_BU[row, head]))
            wanted = min(live, key=lambda c: (float(worth_BUC[row, head, c]), -int(pos_BUC[row, head, c])))
            assert int(got[row, head]) == wanted
