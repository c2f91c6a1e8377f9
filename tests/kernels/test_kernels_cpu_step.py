"""The small ops of a decode step on a CPU: drawn cases against double precision, other vectors, threads, planted bugs.

Shape suffixes: N rows, C hidden size, F width of the MLP, H query heads, U KV heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvbench_kernels import ops
from kvbench_kernels.build import cache, compilers, recipes
from kvbench_kernels.ops import StepOps, host_step, library
from kvbench_kernels.parity.rounded import rms_norm, rounded, silu_mul, turned
from tests.helpers.kernels_prefill import draw, fixed_generator, generator, pick, shows, surrounded
from tests.helpers.kernels_sources import copy_sources, unit

pytestmark = pytest.mark.gxx
# Of a result's terms. In bfloat16 a normalised number may be rounded to the next one, and the product is rounded again.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2**-7 + 2**-8}
MOST_UNEQUAL = 0.02  # of bfloat16 results: sums in another order rarely move one to the next number
SIZES = (1, 2, 15, 16, 17, 31, 96, 130, 576)
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """Inputs of all three ops, next to memory that belongs to others."""

    dtype: torch.dtype
    stream_NC: Tensor
    update_NC: Tensor | None
    weight_C: Tensor
    q_NHD: Tensor
    k_NUD: Tensor
    turn_ND: tuple[Tensor, Tensor]
    weight_D: tuple[Tensor | None, Tensor | None]
    gate_NF: Tensor
    up_NF: Tensor

    def results(self, small: StepOps) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return results, the exact ones, and the size of the exact ones' terms; the last one is what lies around."""
        dtype = self.dtype
        stream, q, k = (surrounded(x) for x in (self.stream_NC, self.q_NHD, self.k_NUD))
        update = None if self.update_NC is None else surrounded(self.update_NC)
        normed = small.add_rms_norm(stream, update, self.weight_C, EPS)
        exact = self.stream_NC.double()
        exact = exact if update is None else rounded(exact + update.double(), dtype)
        out = [(stream, exact, exact.abs())]
        exact = rms_norm(exact, self.weight_C.double(), EPS, dtype)
        out.append((normed, exact, exact.abs()))
        cos, sin = (surrounded(x) for x in self.turn_ND)
        small.rope(q, k, cos, sin, *self.weight_D, EPS)
        for x, before, weight in zip((q, k), (self.q_NHD, self.k_NUD), self.weight_D, strict=True):
            wide = None if weight is None else weight.double()
            largest = before.double().abs().amax(-1, keepdim=True).clamp(min=1)
            exact = turned(before.double(), cos.double(), sin.double(), wide, EPS, dtype)
            out.append((x, exact, largest if wide is None else largest * wide.abs().max()))
        exact = silu_mul(torch.cat((self.gate_NF, self.up_NF), 1).double(), dtype)
        out.append((small.silu_mul(surrounded(self.gate_NF), surrounded(self.up_NF)), exact, exact.abs()))
        around = torch.cat([_around(x) for x in (stream, q, k)])
        return [*out, (around.isnan().to(dtype), torch.ones_like(around).double(), torch.ones_like(around))]

    def is_right(self, small: StepOps) -> bool:
        unequal = []
        for out, exact, terms in self.results(small):
            off = (out.double() - exact).abs() / (terms + 1e-3)
            if out.dtype != self.dtype or not bool((off <= BOUND[self.dtype]).all()):
                return False
            unequal.append(out.double() != rounded(exact, self.dtype))
        shares = [float(x.double().mean()) for x in unequal if x.numel() >= 200]
        return self.dtype == torch.float32 or all(share <= MOST_UNEQUAL for share in shares)


def drawn(g: torch.Generator, dtype: torch.dtype, rows: int | None = None, size: int | None = None) -> Case:
    rows, size = draw(g, 1, 9) if rows is None else rows, pick(g, *SIZES) if size is None else size
    heads, kv_heads, dim = draw(g, 1, 6), draw(g, 1, 3), 2 * pick(g, 1, 4, 8, 9, 16, 31, 32, 40, 64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    turn_ND = [normal(rows, dim).clamp(-1, 1) for _ in range(2)]
    weights = [normal(dim) if draw(g, 0, 1) else None for _ in range(2)]
    return Case(
        dtype,
        stream_NC=normal(rows, size),
        update_NC=normal(rows, size) if draw(g, 0, 2) else None,
        weight_C=normal(size),
        q_NHD=normal(rows, heads, dim),
        k_NUD=normal(rows, kv_heads, dim),
        turn_ND=(turn_ND[0], turn_ND[1]),
        weight_D=(weights[0], weights[1]),
        gate_NF=5 * normal(rows, size),
        up_NF=normal(rows, size),
    )


def _around(x: Tensor) -> Tensor:
    """Return the memory around a tensor of `surrounded`."""
    room = x._base
    assert room is not None
    inside = torch.zeros_like(room, dtype=torch.bool)
    inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return room[~inside]


def ops_of(compiled: library.Library) -> StepOps:
    return StepOps(*(host_step.call_of(name, lambda: compiled) for name in StepOps._fields))


@pytest.mark.parametrize("dtype", BOUND)
def test_against_double_precision(dtype: torch.dtype) -> None:
    small = ops.step_ops(torch.device("cpu"))
    for offset in range(60):
        assert drawn(generator(700 + offset), dtype).is_right(small)
    assert drawn(generator(760), dtype, rows=100, size=1536).is_right(small)  # more than one thread


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-march=x86-64-v3", "-O1"), ("-march=x86-64-v2", "-O1")], ids=["8", "4"])
def test_narrower_vectors_against_double_precision(flags: tuple[str, ...]) -> None:
    narrow = ops_of(library.load(cache.built(recipes.cpu(flags))))
    for offset in range(30):
        for dtype in BOUND:
            assert drawn(generator(770 + offset), dtype).is_right(narrow)


@pytest.mark.parametrize("dtype", BOUND)
def test_a_row_depends_neither_on_threads_nor_on_other_rows(dtype: torch.dtype) -> None:
    small, case = ops.step_ops(torch.device("cpu")), drawn(generator(800), dtype, rows=64, size=577)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            results.append([out for out, _, _ in case.results(small)])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
    stream, gate, up = case.stream_NC[7:8].clone(), case.gate_NF[7:8], case.up_NF[7:8]
    update = None if case.update_NC is None else case.update_NC[7:8]
    assert torch.equal(small.add_rms_norm(stream, update, case.weight_C, EPS), results[0][1][7:8])
    assert torch.equal(small.silu_mul(gate, up), results[0][4][7:8])


def test_values_at_the_ends_of_the_range() -> None:
    """SiLU of large numbers is 0 or the number, NaN stays NaN, and a row of zeros stays one."""
    small = ops.step_ops(torch.device("cpu"))
    gate = torch.tensor([[-1e38, -200.0, -88.0, 0.0, 88.0, 1e38, torch.inf, torch.nan]])
    expected = torch.nn.functional.silu(gate)
    torch.testing.assert_close(
        small.silu_mul(gate, torch.ones_like(gate)), expected, equal_nan=True, atol=1e-30, rtol=1e-6
    )
    for dtype in BOUND:
        zeros = torch.zeros(2, 40, dtype=dtype)
        assert torch.equal(small.add_rms_norm(zeros.clone(), None, zeros[0] + 1, EPS), zeros)
        spoiled = torch.full((1, 40), 1.0, dtype=dtype)
        spoiled[0, 39] = torch.nan
        assert small.add_rms_norm(spoiled, None, zeros[0] + 1, EPS).isnan().all()
        assert small.silu_mul(zeros[:0], zeros[:0]).shape == (0, 40)


def test_what_the_functions_cannot_read_is_refused() -> None:
    small, x = ops.step_ops(torch.device("cpu")), torch.randn(4, 32)
    for wrong in (x.double(), x.half(), torch.randn(4, 64)[:, ::2]):
        with pytest.raises(ValueError, match="^kvb::cpu_silu_mul: takes contiguous rows of float32 or bfloat16$"):
            small.silu_mul(wrong, wrong)
    with pytest.raises(ValueError, match="up_NF: must be torch.float32"):
        small.silu_mul(x, x[:3])
    with pytest.raises(ValueError, match="weight_C: must be contiguous"):
        small.add_rms_norm(x, None, torch.randn(31), EPS)
    with pytest.raises(ValueError, match="the last even"):
        small.rope(x.view(4, 1, 32)[..., :31], x.view(4, 1, 32)[..., :31], x[:, :31], x[:, :31], None, None, EPS)


@pytest.mark.parametrize("name", StepOps._fields)
def test_tracing(name: str) -> None:
    case = drawn(fixed_generator(810), torch.float32, size=32)
    arguments = {
        "add_rms_norm": (case.stream_NC, case.update_NC, case.weight_C, EPS),
        "rope": (case.q_NHD, case.k_NUD, *case.turn_ND, *case.weight_D, EPS),
        "silu_mul": (case.gate_NF, case.up_NF),
    }
    ops.prepare(torch.device("cpu"))
    torch.library.opcheck(getattr(torch.ops.kvb, f"cpu_{name}").default, arguments[name])


BUGS = {
    "if (left >= LANES) return vector_of<1>(x, 0);": "return vector_of<1>(x, 0);",
    "i < left; i++) convert": "i < LANES; i++) convert",
    "bits + 0x7fff + ((bits >> 16) & 1)": "bits",
    "sum(squares) / static_cast<float>(dim) + eps": "sum(squares) / static_cast<float>(dim + LANES - 1) + eps",
    "sum(squares) / static_cast<float>(dim)": "squares[0] / static_cast<float>(dim)",
    "next(stream + d, dim - d) + next(x + d, dim - d)": "next(x + d, dim - d)",
    "rounded<T>(next(stream + d, dim - d) * scale)": "next(stream + d, dim - d) * scale",
    "static_cast<T*>(call.out) + row * dim;\n        if": "static_cast<T*>(call.out) + (row & 3) * dim;\n        if",
    "next(weight + up, left) * rounded<T>(high * scale)": "next(weight + d, left) * rounded<T>(high * scale)",
    "next(weight + d, left) * rounded<T>(low * scale)": "next(weight + d, left) * (low * scale)",
    "next(cos + d, left)) - rounded": "next(cos + d, left)) + rounded",
    "high * next(cos + up, left)": "high * next(cos + d, left)",
    "low * next(sin + up, left)": "low * next(sin + d, left)",
    "is_query ? h : h - call.heads": "h",
    "is_query ? call.q_weight : call.k_weight": "call.q_weight",
    "row * x.stride_0 +": "row * x.stride_1 +",
    "x < 0 ? small : Vec{} + 1.0f": "small",
    "size * -1.44269504f": "size * -1.0f",
    "rounded<T>(x * sigmoid(x))": "x * sigmoid(x)",
    "static_cast<T*>(x.data) + row * x.stride_0;": "static_cast<T*>(x.data) + row * x.stride_0 + (row > 3);",
}


@pytest.mark.parametrize("right", BUGS)
def test_planted_bugs_are_found(right: str, tmp_path: Path) -> None:
    """The cases have rows shorter than a vector, with and without a tail, several heads, and norms of heads."""
    copy = copy_sources(tmp_path, right, BUGS[right])
    out = tmp_path / "wrong.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi", "-march=x86-64-v3", "-shared", "-I", str(copy)]
    compilers.run([compilers.gxx(), *flags, unit(copy, "cpu_step.cpp"), "-o", out], "a planted bug")
    wrong, g = ops_of(library.Library(out)), fixed_generator(820)
    cases = [drawn(g, dtype, rows=7, size=size) for dtype in BOUND for size in (1, 5, 17, 96, 130, 576, 16, 31)]
    assert shows(lambda: not all(case.is_right(wrong) for case in cases))
