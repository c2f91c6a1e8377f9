"""Decode for more than 8 query columns of a KV head, which one tile of keys and values serves, run on the CPU.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from kvbench_kernels import build, ops
from kvbench_kernels.build import compilers
from kvbench_kernels.ops import launch_decode, library
from tests.helpers import kernels_cases
from tests.helpers.kernels_cases import Case, appended, decode, make_case, problems, same_cache
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
from tests.helpers.kernels_sources import unit

pytestmark = needs_gxx

# Query heads of a KV head and tokens: columns at the edges of panels (8), of pairs of panels (16), of the panels of one
# warp (32), and of items (32 at head dimension 256, else 64)
SHAPES = (
    (9, 1), (15, 1), (16, 1), (17, 1), (31, 1), (33, 1), (3, 3), (5, 3), (4, 4), (1, 17), (2, 12), (7, 5), (4, 8),
    (5, 7), (3, 19), (4, 16), (5, 13), (4, 32),
)  # fmt: skip
LENGTHS = (0, 1, 15, 16, 17, 64, 127, 128, 129, 300)


def no_status() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32)


def drawn(g: torch.Generator, dtype: torch.dtype, dim: int, group: int, tokens: int) -> Case:
    """Draw two lanes, or one if it has very many columns; a segment is full or not."""
    lengths = [pick(g, pick(g, *LENGTHS), tokens + draw(g, 0, 200)) for _ in range(1 if group * tokens > 64 else 2)]
    room, spare = pick(g, tokens, tokens - 1), pick(g, 0, 20)
    return make_case(g, dtype, dim, lengths, 1, group, tokens, room, draw(g, 0, 2), pick(g, 1, 4), spare)


@pytest.mark.parametrize("dim", DIMS)
def test_columns_at_the_edges_of_panels(dim):
    """Plain, and with the append in the same launch: equal to the bit to a plain decode over what was appended."""
    g = generator(dim)
    for number, (group, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            case, ctas = drawn(g, dtype, dim, group, tokens), pick(g, 1, 2, 3, 5, 9)
            if (number + (dtype == torch.float16)) % 2:
                assert problems(case, decode(emulated(), case, ctas)) == [], f"{case}, {ctas} CTAs"
                continue
            (expected, statuses), status = appended(case), no_status()
            result = decode(emulated(), case, ctas, status)
            assert same_cache(case, expected), f"{case}, {ctas} CTAs"
            assert int(status) in statuses and problems(expected, result) == [], f"{case}, {ctas} CTAs"
            assert result.same_bits(decode(emulated(), expected, ctas)), f"{case}, {ctas} CTAs"


@pytest.mark.parametrize(("ctas", "dim"), [(4, 128), (9, 64), (17, 256), (40, 64), (80, 64)])
def test_pieces_of_a_long_lane_are_merged(ctas, dim):
    """Up to 8 at once, more in two levels; short lanes on both sides share CTAs with it."""
    g = generator(ctas)
    group, tokens = [(16, 1), (5, 3), (4, 8), (3, 11)][draw(g, 0, 3)]
    lengths = [30, 128 * ctas - 200, 10]
    case = make_case(g, DTYPES[draw(g, 0, 1)], dim, lengths, group=group, tokens=tokens, room=tokens)
    assert problems(case, decode(emulated(), case, ctas)) == [], str(case)
    expected, status = appended(case)[0], no_status()
    assert problems(expected, decode(emulated(), case, ctas, status)) == [] and same_cache(case, expected), str(case)


def test_more_lanes_than_a_cta_holds():
    g = generator(1)
    lengths = [draw(g, 0, 20) for _ in range(270)]
    lengths[200] = 400
    case = make_case(g, torch.bfloat16, 64, lengths, batch=2, group=9, room=1)
    for ctas in (5, 300):
        before = case.copy()
        expected, _ = appended(before)
        assert problems(expected, decode(emulated(), before, ctas, no_status())) == [], f"{case}, {ctas} CTAs"
        assert same_cache(before, expected)


@pytest.mark.parametrize("dim", (64, 256))
def test_scores_that_rise_and_fall_along_the_keys(dim):
    """In one panel every tile has a new maximum, in another none has after the first."""
    for dtype in DTYPES:
        case = make_case(generator(2), dtype, dim, [400], group=33, spread=2)
        q_HD, start = case.q_BHTD[0, :, 0], int(case.start_S1[case.segment_N[0]])
        for head, slope in ((1, 60.0), (20, -60.0)):
            along_D = (q_HD[head] / q_HD[head].norm()).float()
            case.k_RD[start : start + 400] += (torch.linspace(0, slope, 400)[:, None] * along_D).to(dtype)
        assert problems(case, decode(emulated(), case, 3)) == []


@pytest.mark.parametrize("dim", (80, 256))
def test_the_same_bits_whatever_the_order(dim):
    g = generator(dim)
    for (group, tokens), dtype in zip(((16, 1), (4, 9), (5, 13)), (*DTYPES, DTYPES[0]), strict=True):
        before = make_case(g, dtype, dim, [0, 900, 64, 1], group=group, tokens=tokens, room=tokens)
        first, ctas = before.copy(), pick(g, 5, 9)
        result = decode(emulated(), first, ctas, no_status())
        again = before.copy()
        with shuffled(draw(g, 1, 99)):
            assert decode(emulated(), again, ctas, no_status()).same_bits(result), f"{before}, {ctas} CTAs"
        assert same_cache(again, first)


def test_step_after_step():
    """A captured graph does this: the same launch over a cache that grows until it is full."""
    g = generator(3)
    case, status = make_case(g, torch.bfloat16, 128, [62, 0, 130], group=16, room=2, spare=3), no_status()
    for step in range(7):
        for x_BUTD in (case.k_BUTD, case.v_BUTD):
            x_BUTD.copy_(torch.randn(x_BUTD.shape, generator=g))
        expected, _ = appended(case)
        result = decode(emulated(), case, 7, status)
        assert same_cache(case, expected) and problems(expected, result) == [], f"step {step}: {case}"
    assert int(status) in {1 + s for s in case.segment_N.tolist()}
    assert (case.length_S == case.start_S1.diff()).all()


def test_the_workspace_suffices_for_any_number_of_columns():
    """`ops.workspace` asks for the same size, whatever a call has; other tests see what is written after it."""
    for dim, columns in ((64, 64), (128, 64), (256, 32)):
        grown = emulated().size("decode_workspace_bytes", dim, 8) - emulated().size("decode_workspace_bytes", dim, 7)
        assert grown == 2 * 4 * columns * (dim + 2)


# Mistakes that are in one library, and of which a number chooses one: (what is right, how it is with the mistake).
BUGS = {
    "queries of another panel": ("shared.query[(first + p) * kChunks", "shared.query[(first + p * ok) * kChunks"),
    "panels of another warp": ("return kWide ? sharer * kPanels : 0;", "return kWide ? sharer * kPanels * ok : 0;"),
    "causal limits of another panel": ("of_panel = column + p * kColumns;", "of_panel = column + p * kColumns * ok;"),
    "limits only for the last tile": ("tile + kTile > seen_by_all;", "tile + kTile * ok > seen_by_all;"),
    "tiles left out by sharers": ("kUnit >> sharers_log2<F>(args); }", "kUnit >> sharers_log2<F>(args) * ok; }"),
    "a pair of panels left out": ("first + p < live; };", "first + p + 1 - ok < live; };"),
    "new rows not written": ("copy_new_rows<F::D>(args, fresh,", "if (ok) copy_new_rows<F::D>(args, fresh,"),
    "new rows read too early": ("if (tile < end && !old)", "if (tile < end && !old && ok)"),
    "new rows written but for the last": ("(end - first) * kSteps;", "(end - first - 1 + ok) * kSteps;"),
    "warps of other panels merged": ("warp = first; warp < kDecodeWarps; warp += step)",
                                     "warp = first; warp < kDecodeWarps; warp += ok ? step : 1)"),
    "columns of another warp": ("F::kWide ? column / F::kOwn : 0;", "F::kWide * ok ? column / F::kOwn : 0;"),
    "sums in the place of values": ("slot_values(slot) + F::kMost * D)", "slot_values(slot) + F::kMost * D * ok)"),
    "columns written to those of the first item": ("return part.at.block * all_columns();",
                                                   "return part.at.block * all_columns() * ok;"),
    "the lane of another part": ("shared.now = Now{at, lane};", "shared.now = Now{at, ok ? lane : shared.window[0]};"),
    "a workspace for fewer columns": ("kvb::most_slot_floats(dim) * 4;",
                                      "kvb::most_slot_floats(dim) * 4 / (9 - 8 * ok);"),
}  # fmt: skip
_SMALL = (
    "static_cast<int>(kvb_host::kAllShared)",
    "kvb_planted < 0 ? 65536 : static_cast<int>(kvb_host::kAllShared)",
)


@functools.cache
def planted() -> library.Library:
    """Compile decode.cu for bf16 and D = 64, with all bugs, of which `kvb_planted` chooses one."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = kernels_cases.sources(Path(scratch), 64)
        changes = [(right, re.sub(r"\bok\b", f"(std::abs(kvb_planted) != {number + 1})", wrong), name)
                   for number, (name, (right, wrong)) in enumerate(BUGS.items())]  # fmt: skip
        for right, wrong, name in [*changes, (*_SMALL, "little shared memory")]:
            (file,) = (path for path in copy.rglob("*") if path.is_file() and right in path.read_text())
            assert file.read_text().count(right) == 1, name
            file.write_text(file.read_text().replace(right, wrong))
        first = copy / "primitives.h"
        first.write_text(first.read_text().replace("#pragma once", '#pragma once\nextern "C" int kvb_planted;', 1))
        file = unit(copy, "decode.cu")
        file.write_text(file.read_text() + "int kvb_planted = 0;\n")
        built = Path(scratch) / "libbugs.so"
        flags = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared"]
        subprocess.run([compilers.gxx(), *flags, "-I", copy, file, "-o", built], check=True)
        kernels_cases._counter_bytes(built)  # while the file is there
        return library.Library(built)


def found(number: int, g: torch.Generator) -> bool:
    """Return True if a case shows the bug of this number; if it is negative, where there is little shared memory."""
    kernels = planted()
    ctypes.c_int.in_dll(ctypes.CDLL(str(kernels.path)), "kvb_planted").value = number
    for trial in range(12):
        group, tokens = ((16, 1), (4, 11), (5, 13), (3, 7))[trial % 4]
        lengths = [128 * pick(g, 2, 6), 128 * pick(g, 5, 12), tokens + draw(g, 0, 90)]
        case = make_case(g, torch.bfloat16, 64, lengths, group=group, tokens=tokens, room=tokens, spread=4)
        expected, status = appended(case)[0], no_status()
        with shuffled(trial):
            result = decode(kernels, case, pick(g, 3, 5, 12), status if trial % 3 else None)
        if problems(expected if trial % 3 else case, result) or (trial % 3 and not same_cache(case, expected)):
            return True
    return False


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    planted()  # in this process, once for all
    assert shows(lambda: found(list(BUGS).index(bug) + 1, fixed_generator(5)))


def test_without_a_bug_nothing_is_found():
    planted()
    assert not shows(lambda: found(0, generator(5)))


def test_a_device_with_little_shared_memory_gets_the_kernels_for_few_columns():
    """So a bug in the others does not show."""
    planted()
    assert not shows(lambda: found(-1 - list(BUGS).index("queries of another panel"), generator(6)))


@pytest.mark.parametrize(
    ("group", "slots", "wide"), [(16, 2304, True), (16, 2296, False), (17, 1536, True), (8, 9000, False)]
)
def test_the_work_chooses_the_kernel(group: int, slots: int, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes on the emulator's 3 blocks: from 9216 pairs of a slot and a panel on, if there are several panels."""
    calls: list[dict[str, int]] = []
    call = library.Library.call

    def noted(self: library.Library, *arguments: object, **fields: int) -> None:
        calls.append(fields)
        call(self, *arguments, **fields)

    monkeypatch.setattr(library.Library, "call", noted)
    k_RD = torch.zeros(2 * slots, 64).bfloat16()
    start_S1, length_S, segment_N = torch.tensor([0, slots, 2 * slots]), torch.tensor([3, 5]), torch.tensor([0, 1])
    arena = k_RD, k_RD, start_S1.int(), length_S.int(), segment_N.int()
    q_BHTD, device = torch.zeros(1, 2 * group, 1, 64).bfloat16(), torch.device("cpu")
    with ops.emulated(build.host()):
        for context in (nullcontext(), launch_decode.always(not wide)):
            with context:
                out_BHTD, workspace = torch.empty_like(q_BHTD), ops.workspace(64, device)
                torch.ops.kvb.ragged_decode(q_BHTD, *arena, 0.1, out_BHTD, workspace)
    assert [fields["wide"] for fields in calls] == [wide, not wide and group > 8]


def test_more_than_32_bits_can_count_is_refused() -> None:
    """The slots, and what all items of a call cost together; nothing of this size is allocated."""
    q_BHTD = torch.empty(1, 8192, 1, 64, dtype=torch.bfloat16, device="meta")
    start_S1, segment_N = torch.empty(2, device="meta"), torch.empty(1, device="meta")
    with ops.emulated(build.host()):
        workspace = ops.workspace(64, torch.device("cpu"))
    for queries, slots in ((8192, 2**26), (1, 2**31 - 1024)):
        for spare, refused in ((0, True), (2**20, False)):
            k_RD = torch.empty(slots - spare, 64, dtype=torch.bfloat16, device="meta")
            arguments = (workspace, q_BHTD[:, :queries], k_RD, start_S1, segment_N, False)
            with pytest.raises(ValueError, match=f"k_RD: {slots} slots") if refused else nullcontext():
                launch_decode._form(emulated(), *arguments)


def test_columns_and_lanes_that_32_bits_cannot_count_are_refused() -> None:
    case = make_case(generator(4), torch.bfloat16, 64, [5])
    arena = dict.fromkeys(("k", "v", "start", "length", "segment"), case.k_RD.data_ptr())
    nothing = dict.fromkeys(("q", "out", "k_new", "v_new"), launch_decode.NO_TENSOR)
    nothing |= dict.fromkeys(("lse", "workspace", "status")) | {"scaling": 1.0, "settled": 0, "wide": 1, "dtype": 0}
    sizes = {"batch": 1, "kv_heads": 1, "group": 1, "tokens": 1, "dim": 64, "ctas": 1}
    for large in (("tokens", "group"), ("batch", "kv_heads")):
        with pytest.raises(RuntimeError, match="a size is 0 or too large"):
            emulated().call("ragged_decode", None, **arena, **nothing, **sizes | dict.fromkeys(large, 2**16))
