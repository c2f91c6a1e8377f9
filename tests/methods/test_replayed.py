"""The prompt replayed through a decode policy, and what the policy would not drop.

Shape suffixes: U KV heads, G query heads per KV head, T tokens.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvbench.methods import context
from kvbench.methods.base import Protected
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decode.tova import DropLeastAttended
from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.fields import InvalidField
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.methods.scores.replayed import Replayed
from kvbench.methods.select.undropped import Undropped
from kvbench.methods.slots import Slots

TOKENS = 150


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> LayerContext:
    """Return a layer whose queries come in three blocks."""
    monkeypatch.setattr(context, "_BLOCK_ELEMENTS", 1)
    q, k, v = torch.randn(3, 4, TOKENS, 8, generator=torch.Generator().manual_seed(0)).unbind()
    return LayerContext(q, k[:2], v[:2])


def query_by_query(policy: DecodePolicy, ctx: LayerContext) -> Tensor:
    """Return the state [U, T] of a policy that has seen every token of the prompt as a decode step."""
    attention_UGTT, state_UT = ctx.window_attention(TOKENS), torch.zeros(2, TOKENS)
    for seen in range(1, TOKENS + 1):
        slots = Slots.whole(TOKENS, state_UT[:, :seen])
        policy.observe(slots, attention_UGTT[None, :, :, seen - 1 : seen, :seen])
    return state_UT


@pytest.mark.parametrize("history", [1, 30, 64, 149, 150, 151, 1000])
def test_blocks_give_the_last_important_query_that_steps_give(ctx: LayerContext, history: int) -> None:
    """A query before the history does not matter: its tokens would have left."""
    policy = DropLongMinor(history)
    stepped_UT = query_by_query(policy, ctx)
    stepped_UT[stepped_UT < TOKENS - history] = 0
    assert torch.equal(Replayed(policy)(ctx), stepped_UT)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_blocks_give_the_accumulated_attention_that_steps_give(ctx: LayerContext, reduce: str) -> None:
    policy = AccumulateAndEvict(reduce=reduce)
    replayed_UT = Replayed(policy)(ctx)
    torch.testing.assert_close(replayed_UT, query_by_query(policy, ctx))
    torch.testing.assert_close(replayed_UT, ColumnSums(reduce)(ctx))


def test_a_policy_that_reads_the_last_query_sees_no_other(ctx: LayerContext) -> None:
    last_UT = ctx.window_attention(1)[:, :, 0].mean(1)
    torch.testing.assert_close(Replayed(DropLeastAttended())(ctx), last_UT.mean(0).expand(2, -1))


def test_a_policy_that_reads_no_attention_begins_at_0(ctx: LayerContext) -> None:
    assert torch.equal(Replayed(SlidingWindow(2))(ctx), torch.zeros(2, TOKENS))


def test_variants_of_one_history_share_the_replay() -> None:
    assert DropLongMinor(9, 3).score == DropLongMinor(9, 4).score != DropLongMinor(8, 4).score


@pytest.mark.parametrize(("history", "recent"), [(2, 8), (2, 200), (1, 0), (200, 0)])
def test_what_the_policy_would_drop_after_the_prompt_does_not_stay(
    ctx: LayerContext, history: int, recent: int
) -> None:
    policy = DropLongMinor(history, recent)
    gone_UT = policy.drop(Slots.whole(TOKENS, query_by_query(policy, ctx)))[0]
    assert torch.equal(Undropped(policy)(ctx, None, None, Protected(0, 0)), ~gone_UT)
    assert bool(gone_UT.any()) == (history < TOKENS and recent < TOKENS)


def test_a_policy_with_a_limit_cannot_say_what_stays() -> None:
    with pytest.raises(InvalidField, match="policy=SlidingWindow: must be a policy without a limit"):
        Undropped(SlidingWindow(2))
