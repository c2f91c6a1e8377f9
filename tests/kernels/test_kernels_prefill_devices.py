"""Score, select and gather as torch.ops.kvb: small on the CPU (emulated), at real sizes on a GPU.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kvbench_kernels import build, ops
from kvbench_kernels.ops import reference as reference
from tests.helpers.kernels_prefill import DIMS, DTYPES, draw, generator, needs_gxx

kvb = torch.ops.kvb
CLOSE = {"rtol": 3e-4, "atol": 1e-12}  # a GPU's 2^x and its sums in tensor cores are not exact


@pytest.fixture(params=[pytest.param("cpu", marks=needs_gxx), pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with ops.emulated(build.host()) if request.param == "cpu" else contextlib.nullcontext():
        yield torch.device(request.param)


def size(device: torch.device, on_cpu: int, on_gpu: int) -> int:
    return on_gpu if device.type == "cuda" else on_cpu


def prompt(
    g: torch.Generator, device: torch.device, heads: int, kv_heads: int, tokens: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, float]:
    q_HTD = torch.randn(heads, tokens, dim, generator=g).to(device, dtype)
    return q_HTD, torch.randn(kv_heads, tokens, dim, generator=g).to(device, dtype), dim**-0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", DIMS)
def test_window_score_against_float64(device: torch.device, dim: int, dtype: torch.dtype) -> None:
    tokens = size(device, 150, 20_011)
    q_HTD, k_UTD, scaling = prompt(generator(1), device, 8, 2, tokens, dim, dtype)
    q_HWD = q_HTD[:, -19:]
    for how, pool in (("mean", "max"), ("max", "avg"), ("sum", "none")):
        exact_UN = reference.window_score(q_HWD.double(), k_UTD.double(), None, scaling, how, pool, 7)
        first_UN = kvb.window_score(q_HWD, k_UTD, None, scaling, how, pool, 7)
        torch.testing.assert_close(first_UN.double(), exact_UN, **CLOSE)
        lse_HW = kvb.row_lse(q_HTD, k_UTD, scaling)[:, -19:].contiguous()
        torch.testing.assert_close(
            kvb.window_score(q_HWD, k_UTD, lse_HW, scaling, how, pool, 7).double(), exact_UN, **CLOSE
        )
        for _ in range(2):
            assert kvb.window_score(q_HWD, k_UTD, None, scaling, how, pool, 7).equal(first_UN)


def test_equal_keys_get_equal_scores(device: torch.device) -> None:
    g, tokens = generator(2), size(device, 700, 30_000)
    q_HTD, k_UTD, scaling = prompt(g, device, 12, 4, tokens, 128, torch.bfloat16)
    kind_T = torch.randint(7, (tokens,), generator=g).to(device)
    score_UN = kvb.window_score(q_HTD[:, -32:], k_UTD[:, kind_T], None, scaling, "mean", "none", 1)
    for kind in range(7):
        assert all(len(scores.unique()) == 1 for scores in score_UN[:, kind_T[:-32] == kind])


@pytest.mark.parametrize("dim", DIMS)
def test_column_sums_against_float64(device: torch.device, dim: int) -> None:
    tokens = size(device, 150, 3001)
    q_HTD, k_UTD, scaling = prompt(generator(3), device, 6, 2, tokens, dim, torch.bfloat16)
    exact_HT = reference.row_lse(q_HTD.double(), k_UTD.double(), scaling)
    lse_HT = kvb.row_lse(q_HTD, k_UTD, scaling)
    torch.testing.assert_close(lse_HT.double(), exact_HT, rtol=1e-5, atol=1e-4)
    exact_HT = reference.column_sums(q_HTD.double(), k_UTD.double(), exact_HT, scaling)
    sums_HT = kvb.column_sums(q_HTD, k_UTD, lse_HT, scaling)
    torch.testing.assert_close(sums_HT.double(), exact_HT, **CLOSE)
    for _ in range(2):
        assert kvb.column_sums(q_HTD, k_UTD, lse_HT, scaling).equal(sums_HT)


@pytest.mark.parametrize("scope", ["head", "layer"])
def test_select_is_that_of_the_reference(device: torch.device, scope: str) -> None:
    g, candidates = generator(4), size(device, 500, 32_768)
    for kind in range(4):
        score_UN = torch.rand(8, candidates, generator=g) ** 9
        if kind == 1:
            score_UN = (score_UN * 6).round() - 3  # ties, zeros of both signs
        if kind == 2:
            score_UN[torch.rand(score_UN.shape, generator=g) < 0.01] = torch.nan
        if kind == 3:
            score_UN = torch.nn.functional.max_pool1d(score_UN[None], 7, 1, 3)[0]
        total = draw(g, 0, score_UN.numel())
        keep_UN, count_U = kvb.select(score_UN.to(device), total, 0.2, scope)
        wanted_UN, wanted_U = reference.select(score_UN, total, 0.2, scope)
        assert keep_UN.cpu().equal(wanted_UN) and count_U.cpu().equal(wanted_U)


def test_a_prompt_is_compressed_the_same_every_time_and_in_a_graph(device: torch.device) -> None:
    """From the window's queries to the arena, then to another arena."""
    tokens, budget, window = size(device, 300, 16_384), size(device, 64, 1024), 16
    q_HTD, k_UTD, scaling = prompt(generator(5), device, 8, 2, tokens, 128, torch.bfloat16)
    q_HWD, v_UTD, past = q_HTD[:, -window:], k_UTD.flip(1).contiguous(), tokens - window
    head_S = torch.arange(2, dtype=torch.int32, device=device)
    start_S1 = torch.arange(3, dtype=torch.int32, device=device) * 2 * budget
    new_M1 = torch.arange(3, dtype=torch.int32, device=device) * (2 * budget + 8)

    def compress() -> tuple[Tensor, ...]:
        score_UN = kvb.window_score(q_HWD, k_UTD, None, scaling, "mean", "max", 7)
        keep_UN, count_U = kvb.select(score_UN, 2 * (budget - window), 0.2, "layer")
        keep_UT = torch.nn.functional.pad(keep_UN, (0, window), value=True)
        k_RD, v_RD = torch.zeros(2, 4 * budget, 128, dtype=k_UTD.dtype, device=device).unbind()
        kvb.ragged_gather(k_UTD, v_UTD, keep_UT, head_S, start_S1, k_RD, v_RD)
        k_QD, v_QD = torch.zeros(2, 4 * budget + 16, 128, dtype=k_UTD.dtype, device=device).unbind()
        kvb.ragged_relayout(k_RD, v_RD, start_S1, count_U + window, head_S.flip(0), new_M1, k_QD, v_QD)
        return score_UN, keep_UT, count_U, k_RD, v_RD, k_QD, v_QD

    _, keep_UT, count_U, k_RD, v_RD, k_QD, v_QD = first = compress()
    exact_UN = reference.window_score(q_HWD.double(), k_UTD.double(), None, scaling, "mean", "max", 7).cpu()
    exact_keep_UN, _ = reference.select(exact_UN, 2 * (budget - window), 0.2, "layer")
    other = (keep_UT[:, :past].cpu() != exact_keep_UN).sum().item()
    assert other <= 4, f"{other} tokens are kept or not otherwise than in float64"
    for u, count in enumerate((count_U + window).tolist()):
        begin, new = u * 2 * budget, (1 - u) * (2 * budget + 8)
        for x_RD, x_QD, x_UTD in ((k_RD, k_QD, k_UTD), (v_RD, v_QD, v_UTD)):
            assert x_RD[begin : begin + count].equal(x_UTD[u, keep_UT[u]])
            assert x_QD[new : new + count].equal(x_UTD[u, keep_UT[u]])
    for _ in range(2):
        assert all(a.equal(b) for a, b in zip(first, compress(), strict=True))
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            in_graph = compress()
        for _ in range(3):
            graph.replay()
            assert all(a.equal(b) for a, b in zip(first, in_graph, strict=True))
