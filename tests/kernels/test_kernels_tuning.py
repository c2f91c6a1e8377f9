"""Decode with the choices of decode/tuning.h that no device has run yet, each on and off, on the CPU against float64.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import pytest
import torch

from kvbench_kernels.ops.library import Library
from tests.helpers.kernels_cases import Case, Result, appended, decode, make_case, problems, same_cache, with_values
from tests.helpers.kernels_prefill import draw, generator, needs_gxx, shuffled

pytestmark = needs_gxx

WHOLE_ITEMS, TILE_AHEAD, ONE_MERGE = "WHOLE_ITEMS=1", "TILE_AHEAD=1", "ONE_MERGE=48"
ALL = (WHOLE_ITEMS, TILE_AHEAD, ONE_MERGE)


def right(kernels: Library, case: Case, ctas: int, fused: bool) -> Result:
    """Decode, appending first if `fused`, and check the output, the cache and the status against float64."""
    before, status = case.copy(), torch.zeros(1, dtype=torch.int32)
    expected, statuses = appended(case) if fused else (case, {0})
    with shuffled(ctas):
        result = decode(kernels, before, ctas, status if fused else None)
    assert problems(expected, result) == [], f"{case}, {ctas} CTAs"
    assert same_cache(before, expected) and int(status) in statuses
    return result


# CTAs, units of each of 12 items, and whether items are cut: by even ranges, and with WHOLE_ITEMS. It leaves items of
# three units on 5 CTAs cut: three whole items take longer than an even range and a merge.
CUTS = (
    (3, 9, False, False), (5, 2, True, False), (7, 6, True, False), (5, 3, True, True), (12, 14, False, False),
    (13, 14, True, False),
)  # fmt: skip


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("only", "lanes", "group"), [("narrow", 12, 2), ("narrow", 6, 12), ("wide", 12, 9)])
def test_equal_lanes_are_not_cut(only: str, lanes: int, group: int, fused: bool) -> None:
    """A narrow kernel has two items for the columns of a lane with a group of 12."""
    for ctas, units, cut_evenly, cut in CUTS:
        g = generator(ctas)
        length = 128 * units - draw(g, 0, 31) - fused  # the last 32 keys of a unit count as a quarter of it
        case = make_case(g, torch.bfloat16, 64, [length] * lanes, group=group, room=1)
        assert (right(with_values(only), case, ctas, fused).of_pieces > 0) == cut_evenly, (ctas, units)
        assert (right(with_values(only, *ALL), case, ctas, fused).of_pieces > 0) == cut, (ctas, units)


@pytest.mark.parametrize("fused", [False, True])
def test_lanes_that_are_nearly_equal(fused: bool) -> None:
    """One lane costs a quarter of a unit more, or has no room for the new token and stays shorter."""
    g = generator(1)
    for ctas in (5, 7, 13):
        for longer in (0, 1):
            lengths = [128 * 6 - 32] * 12
            lengths[draw(g, 0, 11)] += 32 * longer
            case = make_case(g, torch.bfloat16, 64, lengths, group=2, room=1 - fused * (1 - longer), spare=fused)
            right(with_values("narrow", *ALL), case, ctas, fused)


@pytest.mark.parametrize("number", (33, 47, 48, 49))
@pytest.mark.parametrize("fused", [False, True])
def test_many_pieces_of_a_lane(number: int, fused: bool) -> None:
    """The ranges have 12 quarters of a unit: three units of the long lane, or what two of the short lanes cost."""
    few = 64
    ctas = number - 1 + (4 + 5 * few) // 12
    lengths = [128 * 3 * (number - 1) - fused] + [1 - fused] * few
    case = make_case(generator(number), torch.bfloat16, 64, lengths, group=2, room=1)
    for values in ((), (ONE_MERGE,), ALL):
        assert right(with_values("narrow", *values), case, ctas, fused).of_pieces == number * 2 * (64 + 2)


def test_a_tile_that_is_requested_ahead_changes_no_bit() -> None:
    g = generator(2)
    for ctas in (1, 4, 7, 30):  # an odd number of CTAs starts before the previous kernel ends
        case = make_case(g, torch.bfloat16, 64, [draw(g, 0, 900) for _ in range(5)], group=2, room=1)
        for fused in (False, True):
            results = [right(with_values("narrow", *values), case, ctas, fused) for values in ((), (TILE_AHEAD,))]
            assert results[0].same_bits(results[1]), f"{case}, {ctas} CTAs"
