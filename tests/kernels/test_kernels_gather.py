"""The ops `ragged_gather` and `ragged_relayout`, run on the CPU: every byte in its place, and no other changed.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvbench_kernels.ops import launch, library
from kvbench_kernels.ops import reference as ops
from tests.helpers.kernels_prefill import (
    DIMS,
    DTYPES,
    draw,
    emulated,
    fixed_generator,
    generator,
    needs_gxx,
    pick,
    shows,
    shuffled,
    surrounded,
    with_bug,
)

pytestmark = needs_gxx

# around the steps in which the mask is read (16 bytes, 32 lanes) and handed to blocks (2048 tokens)
TOKENS = (1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4100)


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def blank(slots: int, dim: int, dtype: torch.dtype) -> Tensor:
    return torch.full((slots, dim), torch.nan, dtype=dtype)


def untouched(slots: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return an arena for results, full of a number that no input has: a NaN read from too far shows as well."""
    k_RD, v_RD = torch.full((2, slots, dim), 1000.0, dtype=dtype).unbind()
    return k_RD, v_RD


def same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    """Return True if both are equal bit for bit, NaN included."""
    return all(a.view(torch.int16).equal(b.view(torch.int16)) for a, b in zip(got, wanted, strict=True))


def gather_differs(
    kernels: library.Library, g: torch.Generator, tokens: int, dim: int, dtype: torch.dtype, tight: bool = False
) -> bool:
    """Return True if the op differs from the reference on a random prompt and mask.

    Args:
        tight: the last segment keeps all tokens and lacks a slot, so a row too many overwrites what is after it. The
            segment before has free slots, for what is read after the end of its mask.
    """
    kv_heads, segments = draw(g, 1, 3), draw(g, 2 if tight else 1, 5)
    k_UTD, v_UTD = (  # of different strides
        surrounded(torch.randn(kv_heads, tokens, dim, generator=g).to(dtype), extra) for extra in (16, 32)
    )
    density_S1 = torch.tensor([0.0, 0.02, 0.5, 1.0])[torch.randint(4, (segments, 1), generator=g)]
    slack_S = [pick(g, 0, 0, 3, -1) for _ in range(segments)]  # now and then too small
    if tight:
        density_S1[-1], slack_S[-2:] = 1.0, [3, -1]
    keep_ST = torch.rand(segments, tokens, generator=g) < density_S1
    head_S = torch.randint(kv_heads, (segments,), generator=g, dtype=torch.int32)
    kept = keep_ST.sum(1).tolist()
    start_S1 = starts([max(0, n + slack) for n, slack in zip(kept, slack_S, strict=True)])
    arenas = [untouched(int(start_S1[-1]) + 2, dim, dtype) for _ in range(2)]
    launch.ragged_gather(kernels, None, k_UTD, v_UTD, keep_ST, head_S, start_S1, *arenas[0])
    ops.ragged_gather(k_UTD, v_UTD, keep_ST, head_S, start_S1, *arenas[1])
    return not same(*arenas)


def relayout_differs(
    kernels: library.Library, g: torch.Generator, longest: int, dim: int, dtype: torch.dtype, tight: bool = False
) -> bool:
    """Return True if the op differs from the reference on random arenas; the old one has NaN after its live slots.

    Args:
        tight: the last segment of the new arena has live slots, and lacks one.
    """
    segments = draw(g, 1, 9)
    lengths = [pick(g, 0, 1, draw(g, 0, longest)) for _ in range(segments)]
    source_M = torch.randperm(segments, generator=g)[: draw(g, 1, segments)].int()
    slack_M = [pick(g, 0, 5, -1) for _ in source_M]
    if tight:
        lengths[int(source_M[-1])], slack_M[-1] = draw(g, 1, longest), -1
    start_S1 = starts([n + draw(g, 0, 9) for n in lengths])
    old = tuple(blank(int(start_S1[-1]), dim, dtype) for _ in range(2))
    for segment, length in enumerate(lengths):
        for x_RD in old:
            begin = int(start_S1[segment])
            x_RD[begin : begin + length] = torch.randn(length, dim, generator=g).to(dtype)
    length_S = torch.tensor(lengths, dtype=torch.int32)
    start_M1 = starts([max(0, lengths[s] + slack) for s, slack in zip(source_M.tolist(), slack_M, strict=True)])
    arenas = [untouched(int(start_M1[-1]) + 2, dim, dtype) for _ in range(2)]
    launch.ragged_relayout(kernels, None, *old, start_S1, length_S, source_M, start_M1, *arenas[0])
    ops.ragged_relayout(*old, start_S1, length_S, source_M, start_M1, *arenas[1])
    return not same(*arenas)


@pytest.mark.parametrize("dim", [8, *DIMS])
def test_kept_tokens_come_in_order_and_nothing_else_is_written(dim: int) -> None:
    g = generator(10)
    for tokens, dtype in itertools.product(TOKENS, DTYPES):
        if dim <= 80 or tokens <= 300:
            tight = draw(g, 0, 1) == 1
            assert not gather_differs(emulated(), g, tokens, dim, dtype, tight), (tokens, dtype, tight)


@pytest.mark.parametrize("dim", [8, *DIMS])
def test_live_slots_move_and_nothing_else_is_written(dim: int) -> None:
    g = generator(20)
    for longest, dtype in itertools.product((1, 17, 60, 900), DTYPES):
        tight = draw(g, 0, 1) == 1
        assert not relayout_differs(emulated(), g, longest, dim, dtype, tight), (longest, dtype, tight)


def test_random_orders_of_threads_and_blocks_change_nothing() -> None:
    g = generator(30)
    for _ in range(6):
        with shuffled(draw(g, 0, 10**6)):
            assert not gather_differs(emulated(), g, 2300, 64, torch.bfloat16)
            assert not relayout_differs(emulated(), g, 300, 64, torch.float16)


def test_nothing_to_move() -> None:
    k_UTD, k_RD = torch.zeros(1, 4, 64, dtype=torch.bfloat16), blank(2, 64, torch.bfloat16)
    none, start_1 = torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    launch.ragged_gather(emulated(), None, k_UTD, k_UTD, torch.zeros(0, 4, dtype=torch.bool), none, start_1, k_RD, k_RD)
    launch.ragged_relayout(emulated(), None, k_RD, k_RD, start_1, none, none, start_1, k_RD, k_RD)
    empty_UTD = k_UTD[:, :0]
    mask, head, start = torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, dtype=torch.int32), starts([2])
    launch.ragged_gather(emulated(), None, empty_UTD, empty_UTD, mask, head, start, k_RD, k_RD)
    assert k_RD.isnan().all()


def test_slots_beyond_two_to_the_31_elements_are_addressed() -> None:
    dim, dtype, far = 256, torch.bfloat16, 2**31 // 256 + 5
    k_RD, v_RD = torch.empty(2, far + 3, dim, dtype=dtype).unbind()  # memory is only touched where it is written
    k_UTD = torch.arange(8 * dim).reshape(1, 8, dim).to(dtype)
    keep_ST = torch.tensor([[0, 1, 0, 0, 0, 0, 1, 1]]).bool()
    start_S1, head_S = torch.tensor([far, far + 3], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    launch.ragged_gather(emulated(), None, k_UTD, -k_UTD, keep_ST, head_S, start_S1, k_RD, v_RD)
    assert k_RD[far:].equal(k_UTD[0, [1, 6, 7]]) and v_RD[far:].equal(-k_UTD[0, [1, 6, 7]])
    k_QD, v_QD = torch.zeros(2, 3, dim, dtype=dtype).unbind()
    length_S, start_M1 = torch.tensor([3], dtype=torch.int32), starts([3])
    launch.ragged_relayout(emulated(), None, k_RD, v_RD, start_S1, length_S, head_S, start_M1, k_QD, v_QD)
    assert k_QD.equal(k_RD[far:]) and v_QD.equal(v_RD[far:])


@pytest.mark.parametrize(
    ("differs", "right", "wrong"),
    [
        (gather_differs, "kept = min(kept, capacity - before);", ""),  # runs over into the next segment
        (gather_differs, "int(-reinterpret_cast<uintptr_t>(mask) & 15)", "0 * int(uintptr_t(mask))"),
        (gather_differs, "token < end && keep_T[token] != 0", "keep_T[token] != 0"),
        (relayout_differs, "min(length_S[segment], start_M1[place + 1] - start_M1[place])", "length_S[segment]"),
    ],
)
def test_planted_bugs_are_found(differs: Callable[..., bool], right: str, wrong: str) -> None:
    bug = with_bug("gather.cu", right, wrong)
    g = fixed_generator(40)
    assert shows(lambda: any(differs(bug, g, n, 64, torch.bfloat16, True) for _ in range(6) for n in (9, 100, 2060)))
