"""Comparisons of the ops for prompts: scores, selection, and moving the kept tokens."""

from __future__ import annotations

import math

import torch

from kvbench_kernels.ops import reference
from kvbench_kernels.parity.inputs import arena, empty, error, normal, prompt, same


def window_score(
    device: torch.device, seed: int, dtype: torch.dtype, group: str, pool: str, known: bool, tokens: int = 203
) -> float:
    """Compare `window_score`, with the log-sum-exp given (`known`) or not."""
    g = torch.Generator().manual_seed(seed)
    q_HTD, k_UTD = prompt(g, tokens, dtype)
    q_HWD, scaling = q_HTD[:, -24:], 1 / math.sqrt(q_HTD.shape[2])
    lse = reference.row_lse(q_HTD, k_UTD, scaling)[:, -24:] if known else None
    lse_32 = None if lse is None else lse.to(device, torch.float32).contiguous()
    out = torch.ops.kvb.window_score(q_HWD.to(device, dtype), k_UTD.to(device, dtype), lse_32, scaling, group, pool, 7)
    return error(out, reference.window_score(q_HWD, k_UTD, lse, scaling, group, pool, 7))


def row_lse(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `row_lse`."""
    q_HTD, k_UTD = prompt(torch.Generator().manual_seed(seed), 203, dtype)
    out = torch.ops.kvb.row_lse(q_HTD.to(device, dtype), k_UTD.to(device, dtype), 0.125)
    return error(out, reference.row_lse(q_HTD, k_UTD, 0.125))


def column_sums(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `column_sums`."""
    q_HTD, k_UTD = prompt(torch.Generator().manual_seed(seed), 203, dtype)
    lse_HT = reference.row_lse(q_HTD, k_UTD, 0.125)
    out = torch.ops.kvb.column_sums(q_HTD.to(device, dtype), k_UTD.to(device, dtype), lse_HT.to(device).float(), 0.125)
    return error(out, reference.column_sums(q_HTD, k_UTD, lse_HT, 0.125))


def select(device: torch.device, seed: int, scope: str, ties: bool) -> float:
    """Compare `select`: the number of tokens and counts that differ from the reference."""
    g = torch.Generator().manual_seed(seed)
    score_UN = torch.rand(5, 611, generator=g)
    if ties:
        score_UN = (score_UN * 4).round() / 4
    total = int(torch.randint(0, score_UN.numel() + 1, (), generator=g))
    keep_UN, count_U = torch.ops.kvb.select(score_UN.to(device), total, 0.2, scope)
    expected_UN, expected_U = reference.select(score_UN, total, 0.2, scope)
    return float((keep_UN.cpu() != expected_UN).sum() + (count_U.cpu() != expected_U).sum())


def gather(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `ragged_gather`, from heads in any order, into an arena with free slots."""
    g = torch.Generator().manual_seed(seed)
    k_TUD, v_TUD = (normal(g, 300, 4, 80, dtype=dtype) for _ in range(2))
    keep_ST = torch.rand(6, 300, generator=g) < torch.rand(6, 1, generator=g)
    head_S = torch.randint(0, 4, (6,), generator=g, dtype=torch.int32)
    capacity_S = keep_ST.sum(1, dtype=torch.int32) + torch.randint(0, 9, (6,), generator=g, dtype=torch.int32)
    start_S1 = torch.cat([capacity_S.new_zeros(1), capacity_S.cumsum(0, dtype=torch.int32)])
    expected = empty(int(start_S1[-1]), 80)
    actual = [x.to(device, dtype) for x in expected]
    k, v = (x.transpose(0, 1) for x in (k_TUD, v_TUD))
    where = [x.to(device) for x in (keep_ST, head_S, start_S1)]
    torch.ops.kvb.ragged_gather(k.to(device, dtype), v.to(device, dtype), *where, *actual)
    reference.ragged_gather(k, v, keep_ST, head_S, start_S1, *expected)
    return float(not all(same(x, y) for x, y in zip(actual, expected, strict=True)))


def relayout(device: torch.device, seed: int, dtype: torch.dtype) -> float:
    """Compare `ragged_relayout` of some segments, in another order, with other capacities."""
    g = torch.Generator().manual_seed(seed)
    drawn = arena(g, 6, 96, 130, 2, dtype)
    source_M = torch.randperm(9, generator=g)[:5].to(torch.int32)
    capacity_M = drawn.length_S[source_M.long()] + torch.randint(0, 40, (5,), generator=g, dtype=torch.int32)
    start_M1 = torch.cat([capacity_M.new_zeros(1), capacity_M.cumsum(0, dtype=torch.int32)])
    expected = empty(int(start_M1[-1]), 96)
    new = [x.to(device, dtype) for x in expected]
    old = drawn.on(device, dtype)[:4]
    torch.ops.kvb.ragged_relayout(*old, source_M.to(device), start_M1.to(device), *new)
    exact = drawn.on(torch.device("cpu"), torch.float64)[:4]
    reference.ragged_relayout(*exact, source_M, start_M1, *expected)
    return float(not all(same(x, y) for x, y in zip(new, expected, strict=True)))
