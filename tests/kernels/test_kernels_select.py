"""The op `select`, run on the CPU: the choice of the methods, bit for bit.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvbench.methods.base import LayerBudget, Protected
from kvbench.methods.candidates import Candidates
from kvbench.methods.context import LayerContext
from kvbench.methods.heads.adaptive import Adaptive
from kvbench.methods.heads.uniform import Uniform
from kvbench.methods.select.top_k import TopK
from kvbench_kernels import build
from kvbench_kernels.build import compilers
from kvbench_kernels.ops import launch, library
from tests.helpers.kernels_prefill import (
    draw,
    emulated,
    fixed_generator,
    generator,
    needs_gxx,
    poisoned,
    shows,
    shuffled,
    with_bug,
)

pytestmark = [needs_gxx, pytest.mark.usefixtures(poisoned.__name__)]

SCOPES = ("head", "layer")


def quantised(g: torch.Generator, heads: int, candidates: int) -> Tensor:
    """Draw few values, each many times, with zeros of both signs."""
    score_UN = torch.randint(-3, draw(g, 0, 30), (heads, candidates), generator=g) / 2
    return torch.where(torch.rand(score_UN.shape, generator=g) < 0.5, score_UN, -score_UN.abs())


def probabilities(g: torch.Generator, heads: int, candidates: int) -> Tensor:
    """Draw scores: positive, over many orders of magnitude, a scale for each head, with runs of ties by pooling."""
    score_UN = torch.rand(heads, candidates, generator=g) ** 12 * torch.rand(heads, 1, generator=g) ** 4
    return torch.nn.functional.max_pool1d(score_UN[None], 5, 1, 2)[0]


def special(g: torch.Generator, heads: int, candidates: int) -> Tensor:
    """Draw NaN of both signs, infinities, subnormals, the largest and smallest numbers, zeros of both signs."""
    tiny, top = 1e-45, torch.finfo(torch.float32).max
    values = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, tiny, -tiny, top, -top, 1.0, -1.0])
    return values[torch.randint(len(values), (heads, candidates), generator=g)]


def bits(g: torch.Generator, heads: int, candidates: int) -> Tensor:
    """Draw any bits at all."""
    return torch.randint(-(2**31), 2**31, (heads, candidates), generator=g, dtype=torch.int64).int().view(torch.float32)


def all_equal(g: torch.Generator, heads: int, candidates: int) -> Tensor:
    return torch.full((heads, candidates), 0.25)


def equal_remainders() -> Tensor:
    """Return the scores of two heads that hold 8 and 23 of the best 31 tokens.

    With floor 0.2 they get 9.5 and 21.5 tokens, but for a rounding error that is smaller for the lower head. The lower
    head gets the odd token.
    """
    return (torch.arange(40) < torch.tensor([[8], [23]])).float()


def theirs(score_UN: Tensor, total: int, floor: float, scope: str) -> tuple[Tensor, list[int]]:
    """Return what the methods keep."""
    candidates = Candidates(score_UN)
    heads, count = score_UN.shape
    x_UTD = torch.zeros(heads, count, 1)
    ctx, part = LayerContext(x_UTD, x_UTD, x_UTD), Uniform() if scope == "head" else Adaptive(floor)
    budget = part(ctx, candidates, total, LayerBudget(total, count, 1, heads, heads))
    keep_UN = TopK()(ctx, candidates, budget, Protected(0, 0))
    return keep_UN, candidates.counts(budget)


def differs(kernels: library.Library, score_UN: Tensor, total: int, floor: float, scope: str) -> bool:
    keep_UN, count_U = launch.select(kernels, None, score_UN, total, floor, scope)
    wanted_UN, counts = theirs(score_UN, total, floor, scope)
    return not keep_UN.equal(wanted_UN) or count_U.tolist() != counts


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", [quantised, probabilities, special, bits, all_equal])
def test_the_kept_set_is_that_of_the_methods(kind: Callable[..., Tensor], scope: str) -> None:
    g = generator(1)
    for case in range(40):
        heads, candidates = draw(g, 1, 9), draw(g, 1, (5, 33, 300, 1100)[case % 4])
        score_UN = kind(g, heads, candidates)
        most = heads * candidates
        total = (0, 1, most - 1, most, *(draw(g, 0, most) for _ in range(4)))[case % 8]
        floor = (0.0, 0.2, 1.0, draw(g, 0, 10**6) / 10**6)[draw(g, 0, 3)]
        assert not differs(emulated(), score_UN, total, floor, scope), (kind.__name__, heads, candidates, total, floor)


@pytest.mark.parametrize("scope", SCOPES)
def test_many_heads_and_many_tokens(scope: str) -> None:
    g = generator(2)
    for heads, candidates in ((96, 70), (512, 3), (2, 20_000), (1, 1024), (3, 1025)):
        for kind in (probabilities, quantised, all_equal):
            score_UN = kind(g, heads, candidates)
            assert not differs(emulated(), score_UN, draw(g, 0, heads * candidates), 0.2, scope), (heads, candidates)


def test_heads_that_are_full_pass_on_what_they_cannot_take() -> None:
    score_UN = torch.zeros(4, 10)
    score_UN[0] = 9  # the layer's best ten are all of head 0
    score_UN[2, :5] = 5
    for total in range(41):
        for floor in (0.0, 0.1, 0.5):
            assert not differs(emulated(), score_UN, total, floor, "layer"), (total, floor)


def test_an_odd_token_goes_to_the_lower_of_equal_heads() -> None:
    _, count_U = launch.select(emulated(), None, equal_remainders(), 31, 0.2, "layer")
    assert count_U.tolist() == [10, 21]


def test_random_orders_of_threads_and_blocks_change_nothing() -> None:
    g = generator(3)
    score_UN = quantised(g, 5, 700)
    for scope in SCOPES:
        for seed in range(3):
            with shuffled(draw(g, 0, 10**6) + seed):
                assert not differs(emulated(), score_UN, 900, 0.2, scope)


def test_remainders_are_rounded_as_python_rounds_them(tmp_path: Path) -> None:
    source = tmp_path / "millionths.cu"
    source.write_text(
        '#include "select/apportion.h"\nextern "C" int rounded(double x) { return kvb::millionths(x); }\n'
    )
    result = tmp_path / "millionths.so"
    flags = ["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-shared", "-I", build.csrc()]
    subprocess.run([compilers.gxx(), *flags, source, "-o", result], check=True)
    rounded = ctypes.CDLL(str(result)).rounded
    rounded.argtypes = [ctypes.c_double]
    g = generator(4)
    numbers = torch.rand(3000, generator=g, dtype=torch.float64)
    numbers = torch.cat([numbers, (numbers * 1e6).round() / 1e6, ((numbers * 1e6).round() + 0.5) / 1e6])
    halves = torch.arange(1, 128, 2, dtype=torch.float64) / 128  # times a million: exactly between two integers
    beside = [halves.nextafter(torch.tensor(side, dtype=torch.float64)) for side in (-1.0, 2.0)]
    edges = torch.tensor([0.0, -0.0, -1e-6, -5e-7, -1e-18, 1.0, 1 - 1e-16, 5e-7, 4.9e-7], dtype=torch.float64)
    for x in torch.cat([numbers, halves, *beside, edges]).tolist():
        assert rounded(x) == round(round(x, 6) * 1e6), x.hex()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("threshold && rank < wanted", "threshold && rank <= wanted"),  # one tie too many
        ("if (score != score) return 0xffffffffu;", ""),  # NaN by its bits
        ("for (int h = 0; h < head; ++h) left -= tied_U[h];", ""),  # every head takes all ties
        ("before += __popc(ties);", ""),  # ties counted from zero in each 32
        ("near != half) return below + (near > half);", "true) return below;"),  # remainders cut off
        ("work.rest = double(total) - double(limit) * double(full);", ""),  # what full heads took is given out again
    ],
)
def test_planted_bugs_are_found(right: str, wrong: str) -> None:
    bug = with_bug("select.cu", right, wrong)
    g = fixed_generator(5)
    cases = [(kind(g, 6, 90), draw(g, 0, 540), 0.15) for kind in (quantised, special) for _ in range(20)]
    cases += [(all_equal(g, 1, 2500), draw(g, 900, 1600), 0.0) for _ in range(4)]  # more than 32 for each warp
    cases.append((equal_remainders(), 31, 0.2))
    cases += [(torch.cat([torch.ones(1, 9), torch.zeros(3, 9)]), total, 0.0) for total in range(36)]
    assert shows(lambda: any(differs(bug, *case, "layer") for case in cases))


def test_too_many_heads_are_refused() -> None:
    with pytest.raises(RuntimeError, match="kvb::select: a size is 0 or too large"):
        launch.select(emulated(), None, torch.zeros(513, 2), 3, 0.0, "head")
