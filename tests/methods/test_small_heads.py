"""Heads that may hold fewer tokens than their decode policy protects: what they hold, in every cache.

Shape suffixes: U KV heads, T tokens of the prompt, D head dimension.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.cam import MergeIntoNext
from kvbench.methods.decode.rolling import RollingHeavyHitters
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decode.streaming import StreamingWindow
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench_kernels.backends import make_backend
from tests.helpers.methods import shipped
from tests.helpers.step_end import rotate
from tests.helpers.tiny_engine import generate, prompt, tiny_model

PROMPT, STEPS, DIM = 30, 24, 16
CACHES = {
    "torch": lambda: RaggedCache(2, make_backend("torch")),
    "cpu": lambda: RaggedCache(2, make_backend("cpu")),
    "masked": lambda: MaskedCache(2),
}


def held(cache: Any, decoding: Decoding, limits: list[int], new: int = 1, whole: bool = False) -> list[list[list[int]]]:
    """Return the positions that each head of the second layer holds after each step.

    Args:
        limits: of each head. It keeps that many of the prompt's first tokens.
        new: tokens of the first step; the others have one.
        whole: begin with the whole prompt.
    """
    g, heads = torch.Generator().manual_seed(0), len(limits)
    keep_UT = (torch.arange(PROMPT) < torch.tensor(limits)[:, None]) | whole
    for layer in range(2):
        k, v = torch.randn(2, heads, PROMPT, DIM, generator=g)
        score_UT = torch.rand(heads, PROMPT, generator=g)
        entry = Entry(
            0, keep_UT, STEPS + new, decoding=decoding, score_UT=score_UT, base_U=limits, rotate=rotate, at_once=new
        )
        cache.add(layer, [entry], k, v)
    steps = []
    for step in range(STEPS):
        tokens = new if step == 0 else 1
        for layer in range(2):
            q, k, v = (torch.randn(1, n, tokens, DIM, generator=g) for n in (2 * heads, heads, heads))
            cache.attend(layer, [0], q, k, v, 0.3)
        steps.append(positions(cache))
    return steps


def positions(cache: RaggedCache | MaskedCache) -> list[list[int]]:
    """Return the positions that each head of the second layer holds, in ascending order."""
    if isinstance(cache, MaskedCache):
        return [head.nonzero().flatten().tolist() for head in cache.kept(0)[1]]
    lengths = cache.lengths(0)[1]  # the policies of a step have acted once lengths are asked for
    (group,) = cache._arenas[1]._groups
    return [sorted(group.slots.pos_BUC[0, head, :n].tolist()) for head, n in enumerate(lengths)]


WINDOWS: list[DecodePolicy] = [
    AccumulateAndEvict(window=16),
    MergeIntoNext(window=16, merge_budget=3),
    RollingHeavyHitters(window=16),
]


@pytest.mark.gxx
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("policy", WINDOWS, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("cache", CACHES)
def test_a_head_smaller_than_the_window_holds_its_latest_tokens(cache: str, policy: DecodePolicy, new: int) -> None:
    """The token that was just generated stays. A head of the window's size or less forgets the prompt in the end."""
    steps = held(CACHES[cache](), Decoding(policy), [5, 16, 20], new)
    for step, heads in enumerate(steps):
        seen = PROMPT + new + step
        assert [len(head) for head in heads] == [min(limit, limit + seen - PROMPT) for limit in (5, 16, 20)]
        assert all(head[-1] == seen - 1 for head in heads), f"step {step}: {heads}"
        assert heads[2][-16:] == [*range(max(0, seen - 16), seen)] or seen < PROMPT + 16
    last = PROMPT + new + STEPS - 1
    assert steps[-1][0] == [*range(last - 5, last)] and steps[-1][1] == [*range(last - 16, last)]
    assert steps[-1][2][0] < last - 20, "a larger head keeps heavy hitters"


@pytest.mark.gxx
@pytest.mark.parametrize("policy", [SlidingWindow(4), StreamingWindow(4)], ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("cache", CACHES)
def test_a_head_with_room_for_the_sinks_alone_holds_them(cache: str, policy: DecodePolicy) -> None:
    steps = held(CACHES[cache](), Decoding(policy), [4, 7])
    for step, heads in enumerate(steps):
        assert heads[0] == [0, 1, 2, 3], f"step {step}"
    last = PROMPT + STEPS
    assert steps[-1][1] == [0, 1, 2, 3, last - 3, last - 2, last - 1]


@pytest.mark.gxx
@pytest.mark.parametrize("cache", CACHES)
def test_a_head_with_room_for_fewer_sinks_holds_the_first_of_them(cache: str) -> None:
    steps = held(CACHES[cache](), Decoding(SlidingWindow(10), phase="decode"), [6, 12], whole=True)
    assert all(heads[0] == [0, 1, 2, 3, 4, 5] for heads in steps)
    assert all(heads[1][:10] == [*range(10)] and heads[1][-1] == PROMPT + i for i, heads in enumerate(steps))


POLICIES = {
    name: m.decode.policy for name, m in shipped().items() if m.decode is not None and m.decode.policy.has_limit
}


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_protects_more_than_a_head_may_hold(name: str) -> None:
    """The caches check what policies protect, and raise an error."""
    policy = POLICIES[name].for_answer(STEPS + 1)
    if not policy.follows_plan:
        held(CACHES["masked"](), Decoding(policy), [1, 2, 5, 9])


def test_a_pyramid_with_a_window_above_its_last_layers_answers() -> None:
    """The average budget has room for the window; the last layers have not."""
    method = kvbench.load_method("pyramidkv+h2o_decode", window=4, h2o_decode_window=16)
    tiny = tiny_model()
    both = [
        generate(tiny, [prompt(150)], [kvbench.Variant(method, 20)], cache=cache, max_new_tokens=24)[0][0]
        for cache in ("ragged", "masked")
    ]
    assert min(map(min, both[0].kept)) < 16 < both[0].kept_max and both[0].kept == both[1].kept
    assert both[0].token_ids == both[1].token_ids
    with pytest.raises(ValueError, match=r"^budget=16 with method.decode_budget=None: .* always keeps 16 tokens"):
        generate(tiny, [prompt(150)], [kvbench.Variant(method, 16)])
