"""Rows with encoded storage, and rows that evict while decoding.

Shape suffixes: U KV heads, G query heads per KV head, T tokens, S stored tokens, R slots before a step, D head size.
"""

from __future__ import annotations

import pytest
import torch

from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.store.kivi import Kivi

DIM = 16


def test_encoded_rows_take_fewer_bytes() -> None:
    """KIVI at 2 bits and D = 64 takes 16 bytes of codes and 16 of scale and minimum per token, instead of 256."""
    tokens = 1024
    cache = RaggedCache(1)
    keep_UT = torch.ones(2, tokens, dtype=torch.bool)
    cache.add(0, [Entry(0, keep_UT, 0, store=Kivi(2, 32, 128))], *torch.randn(2, 2, tokens, 64).unbind())
    keys = tokens * (16 + 16)
    values = (tokens - 128) * (16 + 16) + 128 * 256
    assert cache.used_bytes(0) == 2 * (keys + values) == cache.bytes()
    assert cache.lengths(0) == [[tokens, tokens]]


def test_a_policy_keeps_to_its_budget_at_every_step() -> None:
    g = torch.Generator().manual_seed(3)
    cache = RaggedCache(1)
    score_UT = torch.rand(2, 30, generator=g)
    keep_UT = torch.zeros(2, 30, dtype=torch.bool)
    keep_UT[:, -10:] = True
    policy = AccumulateAndEvict(window=0.5)
    entry = Entry(0, keep_UT, 50, policy=policy, score_UT=score_UT, limit_U=[10, 10])
    cache.add(0, [entry], *torch.randn(2, 2, 30, DIM, generator=g).unbind())
    for new in (1, 5, 1, 1, 12, 1):
        q, k = torch.randn(1, 4, new, DIM, generator=g), torch.randn(1, 2, new, DIM, generator=g)
        cache.attend(0, [0], q, k, k, 1.0)
        assert cache.lengths(0) == [[10, 10]]
        assert cache.bytes() <= 2 * 2 * (10 + 1) * DIM * 4 + 2 * 10 * 4, (
            "the buffers shrink again after twelve tokens at once"
        )


class GenerousPolicy:
    """A policy that holds three tokens more than its limit, as one with a schedule may."""

    def start(self, score_US: torch.Tensor) -> torch.Tensor:
        return score_US

    def step(
        self, state_UR: torch.Tensor, attention_UGTS: torch.Tensor, tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert state_UR.dim() == 2 and attention_UGTS.dim() == 4, "heads are always a dimension"
        received_US = attention_UGTS.sum((1, 2))
        slots = received_US.shape[1]
        keep_US = torch.arange(max(0, slots - tokens - 3), slots).expand(len(received_US), -1)
        return received_US.gather(1, keep_US), keep_US


@pytest.mark.parametrize("limits", [[10, 10], [6, 12]])
def test_a_policy_that_holds_more_than_its_limit_loses_no_token(limits: list[int]) -> None:
    """After a long question the buffer must not be cut to the limit: the newest tokens would be lost."""
    g = torch.Generator().manual_seed(5)
    k_UTD, v_UTD = (torch.randn(2, 30, DIM, generator=g) for _ in range(2))
    keep_UT = torch.arange(30) >= 30 - torch.tensor(limits)[:, None]
    entry = Entry(0, keep_UT, 4, policy=GenerousPolicy(), score_UT=torch.rand(2, 30, generator=g), limit_U=limits)
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, [entry], k_UTD, v_UTD)
    for new in (1, 20, 1, 1, 9, 1):
        q, k, v = (torch.randn(1, heads, new, DIM, generator=g) for heads in (4, 2, 2))
        outs = [cache.attend(0, [0], q, k, v, 0.3) for cache in (ragged, masked)]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        assert ragged.lengths(0) == masked.lengths(0)
    assert ragged.lengths(0) == [[limit + 3 for limit in limits]]
    special = ragged._special[0][0]
    assert special.bytes() >= special.used_bytes(), "the stored tokens fit into the allocated bytes"
