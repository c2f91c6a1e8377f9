"""The op `ragged_decode`, run on the CPU, against float64: shapes, cuts and orders that GPUs would meet.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.helpers.kernels_cases import EDGES, Case, append, decode, make_case, problems, with_bug
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
)

pytestmark = needs_gxx

GROUPS = (1, 3, 4, 5, 7, 8, 16)
TOKENS = (1, 2, 5, 16, 33)
CTAS = (1, 2, 3, 5, 7, 11, 64)


def random_case(g: torch.Generator, dtype: torch.dtype, dim: int, group: int, tokens: int, room: int = 0) -> Case:
    """Draw up to six lanes, fewer if each has many columns; lengths around the sizes of tiles and units, and others."""
    batch, kv_heads = (1, 1) if group * tokens > 64 else (draw(g, 1, 2), draw(g, 1, 3))
    lengths = [pick(g, pick(g, *EDGES), draw(g, 0, 300), tokens + draw(g, 0, 200)) for _ in range(batch * kv_heads)]
    return make_case(g, dtype, dim, lengths, batch, group, tokens, room, draw(g, 0, 3), pick(g, 1, 4))


@pytest.mark.parametrize("dim", DIMS)
def test_attention_over_random_caches(dim):
    g = generator(dim)
    for group, dtype, tokens in itertools.product(GROUPS, DTYPES, TOKENS):
        case, ctas = random_case(g, dtype, dim, group, tokens), pick(g, *CTAS)
        assert problems(case, decode(emulated(), case, ctas)) == [], f"{case}, {ctas} CTAs"


@pytest.mark.parametrize("ctas", (1, 3, 7, 100))
def test_lengths_around_tiles_and_units(ctas):
    g = generator(ctas)
    for dtype in DTYPES:
        case = make_case(g, dtype, 64, EDGES, group=3, tokens=pick(g, 1, 2))
        assert problems(case, decode(emulated(), case, ctas)) == [], str(case)


def test_more_lanes_than_threads():
    """A CTA holds 256 lanes at a time. A CTA each is enough for all pieces, or not."""
    g = generator(1)
    for lanes, grids in ((300, (1, 5, 90, 400)), (200, (3, 260))):
        lengths = [draw(g, 0, 40) for _ in range(lanes)]
        lengths[lanes - 100] = 700
        case = make_case(g, torch.bfloat16, 64, lengths, batch=2)
        for ctas in grids:
            assert problems(case, decode(emulated(), case, ctas)) == [], f"{case}, {ctas} CTAs"


@pytest.mark.parametrize("ctas", (16, 17, 45, 300))
def test_pieces_of_a_long_lane_are_merged(ctas):
    """At once up to 16, in two levels beyond; short lanes on both sides share CTAs with it."""
    g = generator(ctas)
    case = make_case(g, pick_dtype(g), 64, [30, 128 * ctas - 200, 10], group=2)
    assert problems(case, decode(emulated(), case, ctas)) == [], str(case)


@pytest.mark.parametrize("ctas", (1, 2, 4, 9, 20, 70))
def test_pieces_of_every_size(ctas):
    """Larger grids suffice for smaller pieces; a lane has one block of columns or several."""
    g = generator(ctas)
    for group, tokens in ((2, 1), (5, 3)):
        lengths = [draw(g, 600, 1300), draw(g, 0, 130), draw(g, 200, 500)]
        case = make_case(g, pick_dtype(g), 64, lengths, group=group, tokens=tokens)
        assert problems(case, decode(emulated(), case, ctas)) == [], f"{case}, {ctas} CTAs"


def long_lanes(g: torch.Generator) -> tuple[list[int], int]:
    """Draw lengths, and so few CTAs that all work is split evenly: one has the end of a lane and the start of the next.

    It keeps two pieces at the same time, unless the other CTAs of the first lane are done before it.
    """
    return [128 * draw(g, 20, 30), 128 * draw(g, 30, 40), draw(g, 1, 90)], pick(g, 3, 4, 5)


def test_a_cta_with_pieces_of_two_lanes():
    g = generator(3)
    for seed in range(6):
        lengths, ctas = long_lanes(g)
        case = make_case(g, DTYPES[seed % 2], 64, lengths, group=2)
        with shuffled(draw(g, 1, 10**6)):
            assert problems(case, decode(emulated(), case, ctas)) == [], f"{case}, {ctas} CTAs"


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_rise_and_fall_along_the_keys(dtype):
    """Every tile has a new maximum, or none has after the first."""
    g = generator(2)
    case = make_case(g, dtype, 64, [400, 400], group=2, spread=2)
    q_HD = case.q_BHTD[0, :, 0]
    for lane, slope in enumerate((1.0, -1.0)):
        start = int(case.start_S1[case.segment_N[lane]])
        along_D = (q_HD[2 * lane] / q_HD[2 * lane].norm()).float()
        rising_L = torch.linspace(0, 60 * slope, 400)
        case.k_RD[start : start + 400] += (rising_L[:, None] * along_D).to(dtype)
    assert problems(case, decode(emulated(), case, 3)) == []


@pytest.mark.parametrize("tokens", (1, 5))
def test_the_same_bits_whatever_the_order(tokens):
    g = generator(tokens)
    for dtype in DTYPES:
        case, ctas = make_case(g, dtype, 80, [0, 900, 64, 1, 200], group=5, tokens=tokens), pick(g, 5, 9)
        first = decode(emulated(), case, ctas)
        for seed in (1, 2):
            with shuffled(seed):
                assert decode(emulated(), case, ctas).same_bits(first), f"{case}, {ctas} CTAs"


def test_a_nan_that_is_alive_is_not_hidden():
    case = make_case(generator(3), torch.float16, 64, [100, 100])
    case.v_RD[case.start_S1[case.segment_N[1]] + 50] = torch.nan
    out_BHTD = decode(emulated(), case, 2).out_BHTD
    assert out_BHTD[0, 0].isfinite().all() and out_BHTD[0, 1].isnan().all()


def test_what_is_not_supported_is_refused():
    case = make_case(generator(4), torch.float16, 72, [5])
    with pytest.raises(RuntimeError, match="kvb::ragged_decode: not compiled for this dtype, head dimension"):
        decode(emulated(), case, 1)
    assert emulated().size("decode_workspace_bytes", 64, 2049) == -2
    with pytest.raises(RuntimeError, match="kvb::ragged_append: a size is 0 or too large"):
        append(emulated(), replace(case, q_BHTD=case.q_BHTD[:, :, :0], k_BUTD=case.k_BUTD[:, :, :0]), torch.zeros(1))


BUGS = {
    "a piece in the slot of another": ("shared.ctas) < part.at.item);", "shared.ctas) < 0);"),
    "pieces that overlap": ("first_unit_of_piece = piece << choice", "first_unit_of_piece = piece"),
    "a piece too long": ("each == 1 ? units_of(found) : first_unit_of_piece + (1 << choice)", "units_of(found)"),
    "the start of an item not paid for": ("at.item + cost + kStartCost;", "at.item + cost;"),
    "pieces of a share in the place of another": ("if (active && share > 0) others[(share - 1) * all + i] = sum;", ""),
    "pieces of too few CTAs": (
        "first = cta - shared.piece, number = shared.pieces",
        "first = cta, number = shared.pieces",
    ),
    "the segment ignored": ("found.segment = args.segment[lane];", "found.segment = lane;"),
    "a barrier left out": ("__syncthreads();  // the warps' results are there", ""),
    "a row too far": ("min(tile + value_key(i), end - 1)", "min(tile + value_key(i), end)"),
    "a sum not rescaled": ("        l[p][0] *= shrink0;\n", ""),
    "a counter not set back": ("if (last) args.counters[counter] = 0;", ""),
    "the new token not seen": ("args.tokens + token + 1", "args.tokens + token"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    kernels, g = with_bug(*BUGS[bug]), fixed_generator(5)

    def found() -> bool:
        for seed in range(60):
            lengths, ctas = [128 * pick(g, 2, 30), 128 * pick(g, 5, 40), draw(g, 1, 90)], pick(g, 3, 5, 7, 12)
            if seed % 2:
                lengths, ctas = long_lanes(g)
            case = make_case(g, torch.bfloat16, 64, lengths, group=2, spread=4)
            with shuffled(seed):
                if problems(case, decode(kernels, case, ctas)):
                    return True
        return False

    assert shows(found)


def pick_dtype(g: torch.Generator) -> torch.dtype:
    return DTYPES[draw(g, 0, 1)]
