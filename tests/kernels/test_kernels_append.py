"""The ops `ragged_append` and `ragged_append_decode`, run on the CPU.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import pytest
import torch

from tests.helpers.kernels_cases import append, appended, decode, make_case, problems, same_cache, with_bug
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
from tests.kernels.test_kernels_decode import CTAS, GROUPS, TOKENS, random_case

pytestmark = needs_gxx


def no_status() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize("dim", DIMS)
def test_append_writes_the_new_rows_and_nothing_else(dim):
    g = generator(dim)
    for tokens in (*TOKENS, 300):
        dtype = DTYPES[draw(g, 0, 1)]
        lengths = [draw(g, 0, 90) for _ in range(6)]
        room, spare = pick(g, 0, tokens, tokens), pick(g, 0, 20)
        case = make_case(g, dtype, dim, lengths, 2, tokens=tokens, room=room, others=2, spare=spare)
        (expected, statuses), status = appended(case), no_status()
        append(emulated(), case, status)
        assert same_cache(case, expected), str(case)
        assert int(status) in statuses, str(case)


def test_a_status_that_is_set_stays():
    case = make_case(generator(1), torch.bfloat16, 64, [3, 4], tokens=50)
    status = torch.tensor([77], dtype=torch.int32)
    append(emulated(), case, status)
    assert int(status) == 77
    decode(emulated(), case, 2, status)
    assert int(status) == 77


@pytest.mark.parametrize("dim", DIMS)
def test_one_launch_does_what_two_do(dim):
    """To the bit: the cache, its lengths and the output; also where a segment is full."""
    g = generator(dim + 1)
    for group in GROUPS:
        tokens, ctas, dtype = pick(g, *TOKENS), pick(g, *CTAS), DTYPES[draw(g, 0, 1)]
        case = random_case(g, dtype, dim, group, tokens, room=pick(g, 0, tokens, tokens))
        (expected, statuses), status = appended(case), no_status()
        result = decode(emulated(), case, ctas, status)
        assert same_cache(case, expected), f"{case}, {ctas} CTAs"
        assert int(status) in statuses, str(case)
        assert problems(expected, result) == [], f"{case}, {ctas} CTAs"
        assert result.same_bits(decode(emulated(), expected, ctas)), f"{case}, {ctas} CTAs"


def test_the_same_bits_whatever_the_order():
    g = generator(2)
    for dtype in DTYPES:
        before = make_case(g, dtype, 96, [0, 500, 63, 1], group=4, tokens=3, room=3)
        first = before.copy()
        result = decode(emulated(), first, 5, no_status())
        for seed in (1, 2):
            again = before.copy()
            with shuffled(seed):
                assert decode(emulated(), again, 5, no_status()).same_bits(result)
            assert same_cache(again, first)


def test_step_after_step():
    """A captured graph does this: the same launch over a cache that grows until it is full."""
    g = generator(3)
    case = make_case(g, torch.bfloat16, 64, [62, 0, 130], group=4, room=4)
    status = no_status()
    for step in range(30):
        for x_BUTD in (case.k_BUTD, case.v_BUTD):
            x_BUTD.copy_(torch.randn(x_BUTD.shape, generator=g))
        expected, statuses = appended(case)
        result = decode(emulated(), case, 7, status)
        assert same_cache(case, expected) and problems(expected, result) == [], f"step {step}: {case}"
        assert (int(status) == 0) == (statuses == {0}) or step > 4
    assert int(status) in {1 + s for s in case.segment_N.tolist()}
    assert (case.length_S == case.start_S1.diff()).all()


@pytest.mark.parametrize("arrived", (1, 2, 3, 4, 1000))
def test_another_launch_with_the_same_workspace_is_noticed(arrived: int) -> None:
    """Some CTAs of another launch have arrived and this launch's CTAs count on from there."""
    case = make_case(generator(5), torch.bfloat16, 64, [30, 300, 64], room=4)
    status, launch = no_status(), 0x54321
    decode(emulated(), case, 4, status, left=[(launch * arrived & 0x7FFFF) << 12 | arrived])
    assert int(status) == -1


BUGS = {
    "room for one less": ("append.cu", "bool room = length + args.tokens <=", "bool room = length + args.tokens <"),
    "rows of another token": ("append.cu", "k_new + token * k.stride_t", "k_new + (token ^ 1) * k.stride_t"),
    "written by who does not read": ("decode.cu", "at.block == args.blocks - 1;", "at.block == 0;"),
    "lengths advance too early": ("decode.cu", "shared.last = others == all - 1;", "shared.last = others == 0;"),
    "keys are read before they are written": (
        "decode.cu",
        "if (kAppend && !kWide && slot >= fresh.slot) k_row",
        "if (false) k_row",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    file, right, wrong = BUGS[bug]
    kernels, g = with_bug(right, wrong, file=file), fixed_generator(4)

    def found() -> bool:
        for trial in range(40):  # with more room than needed, just enough, and one slot less
            tokens = pick(g, 1, 5)
            room, spare = ((tokens, 20), (tokens, 0), (tokens - 1, 0))[trial % 3]
            case = make_case(g, torch.bfloat16, 64, [30, 300, 64], group=3, tokens=tokens, room=room, spare=spare)
            expected, statuses = appended(case)
            status = no_status()
            if file == "append.cu":
                append(kernels, case, status)
                wrong_output = False
            else:
                wrong_output = problems(expected, decode(kernels, case, 3, status)) != []
            if wrong_output or not same_cache(case, expected) or int(status) not in statuses:
                return True
        return False

    assert shows(found)
