"""Decode policies in the ragged cache against naive twins, and their printed examples.

Shape suffixes: U KV heads, G query heads per KV head, N tokens of the sequence, T tokens of the prompt, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.held_policies import HeldPolicies
from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.decode.scope import FrozenPrompt
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decode.tova import DropLeastAttended
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.slots import Slots
from tests.reference import decode_policies as naive
from tests.reference import tva

DIM, NEW = 8, 30
Twin = Callable[[list[list[int]], naive.Weights, int], list[list[int]]]
"""(positions of every head, weights, tokens seen) to the positions that stay."""


def attention(q_UGND: np.ndarray, k_UND: np.ndarray, heads: list[list[int]]) -> list[list[list[float]]]:
    """Return the softmax of the newest queries over each head's positions."""
    rows = []
    for u, kept in enumerate(heads):
        logits = q_UGND[u, :, kept[-1]] @ k_UND[u, kept].T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        rows.append((weights / weights.sum(1, keepdims=True)).tolist())
    return rows


def check(
    policy: DecodePolicy, twin: Twin, heads: list[list[int]], seed: int, prompt: int, base: int, score: Any = None
) -> None:
    """Generate tokens under a policy, and compare the positions that every head holds after each step."""
    rng = np.random.default_rng(seed)
    group = int(rng.integers(1, 4))
    shape = (len(heads), prompt + NEW, DIM)
    q_UGND, k_UND = rng.normal(size=(shape[0], group, *shape[1:])), rng.normal(size=shape)
    q, k = (torch.tensor(x, dtype=torch.float32) for x in (q_UGND, k_UND))
    keep_UT = torch.zeros(len(heads), prompt, dtype=torch.bool)
    for head, kept in enumerate(heads):
        keep_UT[head, kept] = True
    cache = RaggedCache(1)
    score_UT = torch.rand(keep_UT.shape) if score is None else score
    entry = Entry(0, keep_UT, NEW, decoding=Decoding(policy), score_UT=score_UT, base_U=[base] * len(heads))
    cache.add(0, [entry], k[:, :prompt], k[:, :prompt])
    for position in range(prompt, prompt + NEW):
        now = slice(position, position + 1)
        cache.attend(0, [0], q[:, :, now].flatten(0, 1)[None], k[None, :, now], k[None, :, now], 1.0)
        heads = [[*kept, position] for kept in heads]
        heads = twin(heads, attention(q_UGND, k_UND, heads), position + 1)
        assert positions(cache) == heads, f"after position {position}"


def positions(cache: RaggedCache) -> list[list[int]]:
    """Return the positions that each head of the only row holds, in ascending order."""
    (group,) = cache._arenas[0]._groups
    slots = group.slots
    lengths = cache.lengths(0)[0]
    return [sorted(slots.pos_BUC[0, head, :length].tolist()) for head, length in enumerate(lengths)]


@pytest.mark.parametrize("seed", range(8))
def test_tova(seed: int) -> None:
    rng = np.random.default_rng(seed)
    heads, prompt, limit = (int(rng.integers(low, high)) for low, high in ((1, 4), (8, 40), (4, 12)))
    kept = sorted(rng.choice(prompt, size=min(limit, prompt), replace=False).tolist())
    check(DropLeastAttended(), lambda h, w, seen: naive.tova(h, w, limit), [kept] * heads, seed, prompt, limit)


@pytest.mark.parametrize("seed", range(8))
def test_sliding_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, limit, sinks = (int(rng.integers(low, high)) for low, high in ((12, 40), (7, 12), (0, 5)))
    kept = [*range(sinks), *range(prompt - limit + sinks, prompt)]
    twin = lambda h, w, seen: naive.sliding(h, limit, sinks)  # noqa: E731
    check(SlidingWindow(sinks), twin, [kept] * 2, seed, prompt, limit)


SCHEDULES = [("slide", 0), ("adaptive", 1), ("adaptive", 3), ("discontinuous", 1), ("discontinuous", 2)]


@pytest.mark.parametrize(("schedule", "delta"), [*SCHEDULES, ("discontinuous", 5)])
@pytest.mark.parametrize("seed", range(4))
def test_scope(seed: int, schedule: str, delta: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, kept, recent = (int(rng.integers(low, high)) for low, high in ((12, 40), (3, 12), (0, 5)))
    tokens = recent + int(rng.integers(1, 8))
    heads = [sorted(rng.choice(prompt, size=kept, replace=False).tolist()) for _ in range(2)]
    steps = naive.ScopeSchedule(tokens, recent, schedule, delta)
    twin = lambda h, w, seen: naive.scope(h, w, prompt, steps)  # noqa: E731
    check(FrozenPrompt(tokens, recent, schedule, delta), twin, heads, seed, prompt, kept)


def test_the_budget_of_scope_is_the_printed_one() -> None:
    """256 recent tokens of 512, 4096 generated at most: a token more every 15 steps."""
    policy = FrozenPrompt(tokens=512, recent=256, schedule="adaptive").for_answer(4096)
    steps_B1 = torch.tensor([0, 14, 15, 100, 3839])[:, None] + 1
    assert policy.delta == 15
    zeros_B1 = torch.zeros_like(steps_B1)
    assert policy.limit(zeros_B1, steps_B1, 0, zeros_B1).flatten().tolist() == [256, 256, 257, 262, 511]


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(1, 30), st.integers(0, 20), st.integers(1, 9))
def test_the_budget_of_a_discontinuous_scope_is_the_counted_one(more: int, recent: int, delta: int) -> None:
    """It pauses for `delta` steps, cuts in the next, and pauses again."""
    steps = naive.ScopeSchedule(recent + more, recent, "discontinuous", delta)
    held, expected = 0, []
    for _ in range(200):
        window = steps.window(held + 1)
        held = held + 1 if window is None else min(held + 1, window)
        expected.append(held)
    policy = FrozenPrompt(recent + more, recent, "discontinuous", delta)
    steps_B1 = torch.arange(1, 201)[:, None]
    assert policy.limit(0 * steps_B1, steps_B1, 0, 0 * steps_B1).flatten().tolist() == expected


@pytest.mark.parametrize(("new", "delta"), [(4096, 15), (513, 1), (512, 1), (20, 1), (8192, 31)])
def test_the_steps_of_scope_follow_from_the_tokens_that_follow(new: int, delta: int) -> None:
    """The budget reaches `decode_budget` at the end of the answer; a short answer is kept as a whole."""
    planned = FrozenPrompt(512, 256, "adaptive").for_answer(new)
    assert planned.delta == delta
    limit = planned.limit(torch.zeros(1, 1).long(), torch.tensor([[new]]), 0, torch.zeros(1, 1).long())
    assert int(limit) == min(512, 256 + (new - 1) // delta)
    assert FrozenPrompt(512, 256, "adaptive", 7).for_answer(new).delta == 7
    assert FrozenPrompt(512, 256).for_answer(None) == FrozenPrompt(512, 256)


@pytest.mark.parametrize("seed", range(8))
def test_corm_drops_another_number_of_tokens_in_every_head(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, history, recent = (int(rng.integers(low, high)) for low, high in ((8, 30), (2, 9), (1, 6)))
    heads = [sorted({*rng.choice(prompt, size=int(n), replace=False).tolist(), prompt - 1}) for n in (4, 8, 6)]
    last_UT = torch.tensor(rng.integers(-1, prompt, size=(3, prompt)), dtype=torch.float32)
    important: list[dict[int, list[int]]] = [{} for _ in heads]
    for u, kept in enumerate(heads):
        for position in kept:
            important[u].setdefault(int(last_UT[u, position]), []).append(position)
    if prompt <= history:
        last_UT[:] = prompt
    twin = lambda h, w, seen: naive.corm(h, w, important, seen, history, recent)  # noqa: E731
    check(DropLongMinor(history, recent), twin, heads, seed, prompt, 0, score=last_UT)


def test_tova_keeps_the_printed_tokens_of_the_prompt() -> None:
    q, k, v = (torch.tensor(x) for x in tva.tensors())
    kept = kvbench.load_method("tova").keep(q, k, v, budget=7)
    assert [head.tolist() for head in kept] == [[1, 4, 5, 7, 9, 11, 14]] * 2, "the newest token has no protection"


def test_a_buffer_holds_that_many_more_and_is_cut_at_once() -> None:
    """A buffer of 4: five steps without a cut bring one of five tokens, and the best of all stay."""
    policy, keep_UT = SlidingWindow(1), torch.ones(1, 6).bool()
    cache = RaggedCache(1)
    entry = Entry(0, keep_UT, 20, decoding=Decoding(policy, buffer=4), base_U=[6])
    cache.add(0, [entry], *torch.randn(2, 1, 6, DIM).unbind())
    lengths = []
    for _ in range(12):
        cache.attend(0, [0], *torch.randn(3, 1, 1, 1, DIM).unbind(), 1.0)
        lengths.append(cache.lengths(0)[0][0])
    assert lengths == [7, 8, 9, 10, 6, 7, 8, 9, 10, 6, 7, 8] and cache.peak(0) == 10
    assert positions(cache) == [[0, 11, 12, 13, 14, 15, 16, 17]]


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"interval": 4}, "method.interval=4: has no effect without a buffer: method.buffer=0 means a cut in every"),
        ({"interval": 1, "buffer": 4}, "method.buffer=4: has no effect: method.interval=1 means a cut in every step"),
        ({"phase": "prefill", "buffer": 4}, "method.buffer=4: has no effect with method.phase=prefill"),
        ({"phase": "prefill", "decode_budget": 4}, "method.decode_budget=4: has no effect with method.phase=prefill"),
        ({"phase": "never"}, "method.phase=never: must be one of prefill, decode, both"),
        ({"decode_budget": 1.5}, "method.decode_budget=1.5: a share of the budget must lie in"),
        ({"decode_budget": 0}, "method.decode_budget=0: must be at least 1"),
        ({"decode_budget": "half"}, "method.decode_budget=half: give tokens as an integer"),
        ({"buffer": -1}, "method.buffer=-1: must be at least 0"),
    ],
)
def test_a_dial_that_has_no_meaning_is_one_line(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method("tova", **dials)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"delta": 4}, "method.delta=4: has no effect with method.schedule=slide"),
        ({"schedule": "fast"}, "method.schedule=fast: must be one of slide, adaptive, discontinuous"),
        ({"schedule": "adaptive", "delta": -1}, "method.delta=-1: must be at least 0"),
        ({"recent": 512}, "method.decode_budget=512: must be larger than method.recent=512"),
    ],
)
def test_a_schedule_without_meaning_is_one_line(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method("scope", **dials)
    assert str(caught.value) == message


def test_a_decode_budget_below_what_is_protected_is_refused() -> None:
    method = kvbench.load_method("streaming_llm_decode", decode_budget=4)
    with pytest.raises(ValueError, match="method.decode_budget=4: streaming_llm_decode always keeps 4 tokens while"):
        method.tokens(64, 200)


OBSERVING = [FrozenPrompt(), DropLeastAttended(), AccumulateAndEvict(), HeldPolicies(), DropLongMinor()]


@pytest.mark.parametrize("policy", OBSERVING, ids=lambda policy: type(policy).__name__)
def test_only_a_policy_that_remembers_depends_on_earlier_states(policy: DecodePolicy) -> None:
    """A cache skips `observe` of the others while nothing leaves."""
    generator, states = torch.Generator().manual_seed(0), []
    weights_BUGTC = torch.rand(1, 2, 3, 1, 9, generator=generator).softmax(-1)
    for earlier in (0.0, 50.0):
        slots = Slots.whole(9, torch.full((2, 9), earlier))
        policy.observe(slots, weights_BUGTC)
        states.append(slots.state_BUC)
    assert policy.remembers is not torch.equal(*states)
