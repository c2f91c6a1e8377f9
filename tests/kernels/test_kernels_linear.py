"""The product of few rows: drawn cases on the emulator against float64, its rounding, its order, and planted bugs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench_kernels import build, ops
from kvbench_kernels.ops import launch, library
from kvbench_kernels.parity import bound_of, error
from kvbench_kernels.parity.rounded import rounded, silu_mul, turned
from tests.helpers.kernels_prefill import (
    DTYPES,
    compiled,
    draw,
    emulated,
    fixed_generator,
    generator,
    needs_gxx,
    pick,
    poisoned,  # noqa: F401
    shows,
    shuffled,
    surrounded,
    with_bug,
)

pytestmark = needs_gxx
BUGS = {
    "min(8 * block + thread_row(), args.tokens - 1)": "min(8 * block + thread_column(), args.tokens - 1)",
    "(row < kOutputs<kKind> ? 0 : rows.y)": "0",
    "output + output / args.half * args.half": "output",
    "head >= args.heads": "head > args.heads",
    "rounded<T>(-high * to_float(sin[0]))": "rounded<T>(high * to_float(sin[0]))",
    "rounded<T>(low * to_float(sin[args.half]))": "rounded<T>(low * to_float(sin[0]))",
    "const T *const cos = args.cos + token * args.cos_stride + dim": "const T *const cos = args.cos + dim",
    "left - distance<kWarps>(i + kDepthX)": "left - distance<kWarps>(i)",
    "int left = args.inputs - first;": "int left = args.inputs - 64 * warp_number();",
    "if (output >= args.outputs) continue;": "",
    "mma16816<T>(sum[tile][block], a.z, b.z, a.w, b.w, column.z, column.w);": "",
    "for (int other = 0; other < kWarps; ++other)": "for (int other = 1; other < kWarps; ++other)",
    "to_float(args.bias[rows.x + second * rows.y]);": "to_float(args.bias[rows.x]);",
    "high * rounded<T>(low / (1 + expf(-low)))": "high * rounded<T>(high / (1 + expf(-low)))",
}


@dataclass(frozen=True)
class Case:
    x_NC: Tensor
    weight_OC: Tensor
    bias_O: Tensor | None
    gated: bool
    turn: tuple[Tensor, Tensor, int] | None = None  # cos, sin, and heads that are rotated

    def run(self, kernels: library.Library) -> Tensor:
        if self.turn is not None:
            return launch.linear_rope(kernels, None, self.x_NC, self.weight_OC, self.bias_O, *self.turn, True)
        return launch.linear(kernels, None, self.x_NC, self.weight_OC, self.bias_O, self.gated, True)

    def differs(self, kernels: library.Library) -> bool:
        """Return True if the kernel's result is not that of double precision, or not the same in another order."""
        out, dtype = self.run(kernels), self.x_NC.dtype
        wide = [None if x is None else x.double() for x in (self.x_NC, self.weight_OC, self.bias_O)]
        exact = rounded(F.linear(*wide), dtype)  # type: ignore[arg-type]
        if self.turn is not None:
            cos_ND, sin_ND, heads = self.turn
            head_NHD = exact[:, : heads * cos_ND.shape[1]].unflatten(1, (heads, cos_ND.shape[1]))
            head_NHD.copy_(turned(head_NHD, cos_ND.double(), sin_ND.double(), None, 0.0, dtype))
        if self.gated:
            exact = silu_mul(exact, dtype)
        with shuffled(3):
            again = self.run(kernels)
        return not error(out, exact) <= bound_of(dtype, out.numel()) or not torch.equal(out, again)


KINDS = ("plain", "gated", "rotated")


def drawn(g: torch.Generator, dtype: torch.dtype, kind: str | None = None, full: bool = False) -> Case:
    """Draw a case: rows of x surrounded by NaN, memory next to the weight that belongs to others.

    Args:
        full: the case has all that the kernel treats in its own way. There are several tokens and a bias. A warp takes
            another round over K, with elements for some of its lanes. Some of the heads are rotated, and some are not.
    """
    kind = kind or pick(g, *KINDS)
    gated = kind == "gated"
    tokens, inputs = pick(g, 1, 2, 7, 8, 9, 15, 16), 8 * pick(g, 1, 7, 8, 9, 63, 64, 65, draw(g, 1, 300))
    if full:  # all rounds of 8 or 16 warps are 512 or 1024 elements of K, and those of a warp's lanes are 64
        tokens, inputs = pick(g, 2, 7, 8, 9, 15, 16), 1024 + 64 * draw(g, 0, 4) + 8 * draw(g, 1, 7)
    outputs = (2 if gated else 1) * pick(g, 1, 15, 16, 17, 33, draw(g, 1, 70))
    turn = None
    if kind == "rotated":
        dim, heads = pick(g, 2, 16, 80, 2 * draw(g, 1, 60)), draw(g, 2 if full else 1, 4)
        outputs = heads * dim
        cos_ND, sin_ND = (torch.randn(tokens, dim + 8, generator=g).to(dtype)[:, :dim] for _ in range(2))
        turn = cos_ND, sin_ND, draw(g, 1, heads - 1) if full else draw(g, 0, heads)
    x_NC = surrounded(torch.randn(tokens, inputs, generator=g).to(dtype))
    room_OC = torch.full((outputs + 2, inputs), torch.nan, dtype=dtype)
    room_OC[1:-1] = torch.randn(outputs, inputs, generator=g) / inputs**0.5
    bias_O = torch.randn(outputs, generator=g).to(dtype) if full or draw(g, 0, 1) else None
    return Case(x_NC, room_OC[1:-1], bias_O, gated, turn)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
def test_drawn_cases_against_double_precision(seed: int, dtype: torch.dtype) -> None:
    case = drawn(generator(seed), dtype, full=seed % 2 == 1)
    assert not case.differs(emulated()), (case.x_NC.shape, case.weight_OC.shape, case.gated, case.turn)


@pytest.mark.parametrize("right", BUGS)
def test_planted_bugs_are_found(right: str) -> None:
    """A full case of the right kind shows nearly every bug by itself; any case may."""
    wrong = with_bug("linear.cu", right, BUGS[right])
    g = fixed_generator(70)
    cases = [drawn(g, torch.bfloat16, kind, full=True) for kind in KINDS * 5]
    assert shows(lambda: any(case.differs(wrong) for case in cases))


def test_a_gated_product_rounds_like_three_operations() -> None:
    """A sum in another order may move a result to the next number, which must be rare."""
    for dtype in DTYPES:
        g = generator(80)
        x_NC, weight_OC = (torch.randn(rows, 256, generator=g).to(dtype) for rows in (16, 256))
        with ops.emulated(build.host()):
            ours = torch.ops.kvb.linear(x_NC, weight_OC, None, True, True)
        own = torch.ops.kvb.silu_mul(*F.linear(x_NC, weight_OC).chunk(2, dim=1))
        assert float((ours != own).float().mean()) < 0.05
        torch.testing.assert_close(ours, own, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize(
    "values",
    [{"TILES": 4, "WARPS_ALONE": 8}, {"WARPS": 4, "DEPTH": 4}, {"WARPS_ALONE": 8, "DEPTH": 6}],
    ids=str,
)
def test_other_sizes_give_the_same_products(values: dict[str, int], tmp_path: Path) -> None:
    flags = ["-O1", *(f"-DKVB_LINEAR_{key}={value}" for key, value in values.items())]
    other = library.Library(compiled(tmp_path, ["linear.cu"], flags, {64}))
    g = generator(90)
    assert not any(drawn(g, dtype).differs(other) for dtype in DTYPES for _ in range(3))


def test_a_rotated_product_rounds_like_two_operations() -> None:
    """Query, key and value heads of one product; the values stay as they are."""
    for dtype in DTYPES:
        g = generator(81)
        x_NC, weight_OC = (torch.randn(rows, 256, generator=g).to(dtype) for rows in (9, 6 * 64))
        cos_ND, sin_ND = (torch.randn(9, 64, generator=g).to(dtype) for _ in range(2))
        with ops.emulated(build.host()):
            ours = torch.ops.kvb.linear_rope(x_NC, weight_OC, None, cos_ND, sin_ND, 5, True)
            own = torch.ops.kvb.linear(x_NC, weight_OC, None, False, True)
            q_NHD, k_NUD = own.unflatten(1, (6, 64))[:, :4], own.unflatten(1, (6, 64))[:, 4:5]
            torch.ops.kvb.rope(q_NHD, k_NUD, cos_ND, sin_ND, None, None, 0.0)
        assert torch.equal(ours, own)


def test_no_tokens_give_an_empty_result() -> None:
    none_NC, weight_OC = torch.zeros(0, 64).bfloat16(), torch.zeros(6, 64).bfloat16()
    with ops.emulated(build.host()):
        assert torch.ops.kvb.linear(none_NC, weight_OC, None, False, False).shape == (0, 6)
        assert torch.ops.kvb.linear(none_NC, weight_OC, None, True, False).shape == (0, 3)
        cos = torch.zeros(0, 2).bfloat16()
        assert torch.ops.kvb.linear_rope(none_NC, weight_OC, None, cos, cos, 2, False).shape == (0, 6)
