"""FastGen: the printed figures of TV-A, naive twins of both rules, and what each head holds while generating."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kvbench
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.engine.model_view import view_of
from kvbench.methods.context import LayerContext
from kvbench.methods.plan import NO_LIMIT, Plan
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.select.policy_sets import policy_sets
from kvbench.methods.select.recovery import largest_error, recovered_mass
from tests.helpers.tiny_engine import generate, prompt, tiny_model
from tests.reference import fastgen as naive
from tests.reference import tva

PUNCTUATION, SPECIAL, DIM, NEW = [5, 6, 7], [0, 1], 8, 40


class View:
    """A view of a model with a few kinds of tokens."""

    def ids(self, kind: str) -> torch.Tensor:
        return torch.tensor({"special": SPECIAL, "punctuation": PUNCTUATION}[kind])

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def context(q: Any, k: Any, ids: list[int], scaling: float) -> LayerContext:
    q, k = torch.tensor(q), torch.tensor(k)
    return LayerContext(q, k, k, scaling=scaling, facts=PromptFacts(torch.tensor(ids), {}, View()))


def test_the_printed_recoveries() -> None:
    """Each query head of TV-A as a KV head of its own: one first token, special {0}, punctuation {5, 10}, r = 0.3."""
    q, k, _ = tva.tensors()
    ids = [0, 9, 9, 9, 9, 5, 9, 9, 9, 9, 6, 9, 9, 9, 9, 9]
    ctx = context(q, np.repeat(k, 2, 0), ids, 0.5)
    sets_PUT = policy_sets(ctx, "mass", 16, 1, (0.3, 0.3))
    expected = [
        [0.130990, 0.183287, 0.847316, 0.925763],
        [0.142489, 0.155318, 0.794438, 0.923560],
        [0.182984, 0.223890, 0.793653, 0.950605],
        [0.195990, 0.214231, 0.765556, 0.918591],
    ]
    assert torch.allclose(recovered_mass(ctx, sets_PUT, 0.3).T.float(), torch.tensor(expected), atol=1e-6)
    for recovery, codes in ((0.80, [2, 3, 3, 3]), (0.93, [4, 4, 3, 4])):
        method = kvbench.load_method("fastgen", recovery=recovery, sinks=1)
        mask_UT = method.evicting.mask(ctx, None, None)
        plan = method.plan(ctx, mask_UT)
        assert plan is not None and plan.numbers_UX[:, 0].tolist() == codes
        if recovery == 0.80:
            assert mask_UT[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 8, 10]
            assert mask_UT[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 12, 13, 14, 15]


def drawn(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray, list[int], int]:
    rng = np.random.default_rng(seed)
    heads, group, tokens = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 4), (12, 50)))
    q, k = rng.normal(size=(heads * group, tokens + NEW, DIM)), rng.normal(size=(heads, tokens + NEW, DIM))
    ids = rng.choice([5, 6, 7, *range(8, 40)], size=tokens + NEW).tolist()
    ids[0] = 0 if seed % 2 else 9
    return rng, q, k, ids, tokens


def kinds(ids: list[int], sinks: int) -> tuple[set[int], set[int]]:
    return (
        {j for j, i in enumerate(ids) if i in SPECIAL or j < sinks},
        {j for j, i in enumerate(ids) if i in PUNCTUATION},
    )


@pytest.mark.parametrize("rule", ["mass", "element"])
@pytest.mark.parametrize("seed", range(12))
def test_policies_and_kept_tokens_are_those_of_the_twin(seed: int, rule: str) -> None:
    rng, q, k, ids, tokens = drawn(seed)
    sinks, frequent, local = seed % 3, float(rng.choice([0.1, 0.3, 0.6])), float(rng.choice([0.0, 0.25, 0.5]))
    recovery, scaling = float(rng.choice([0.4, 0.6, 0.8])), float(rng.choice([0.2, 1.0]))
    dials = {"frequent": frequent, "local": local, "sinks": sinks, "recovery": recovery, "rule": rule}
    method = kvbench.load_method("fastgen", **dials)
    ctx = context(q[:, :tokens], k[:, :tokens], ids[:tokens], scaling)
    mask_UT = method.evicting.mask(ctx, None, None)
    plan = method.plan(ctx, mask_UT)
    assert plan is not None
    sets_PUT = policy_sets(ctx, rule, tokens, sinks, (frequent, local))
    recoveries = recovered_mass(ctx, sets_PUT, local) if rule == "mass" else largest_error(ctx, sets_PUT)
    for head in range(len(k)):
        maps = naive.attention(q[:, :tokens], k[:, :tokens], head, scaling)
        special, punctuation = kinds(ids[:tokens], sinks)
        if rule == "mass":
            sets = naive.mass_sets(maps.mean(0), special, punctuation, frequent, local)
            values = naive.mass(maps.mean(0), sets, local)
            serves = [value >= recovery for value in values[:4]]
        else:
            sets = naive.element_sets(maps.mean(0), special, punctuation, frequent, local)
            values = [naive.element_error(maps, kept) for kept in sets]
            serves = [value < 1 - recovery for value in values[:4]]
        assert np.allclose(recoveries[:, head], values[:4], atol=1e-5)
        policy = [*serves, True].index(True)
        assert int(plan.numbers_UX[head, 0]) == policy
        assert set(mask_UT[head].nonzero().flatten().tolist()) == sets[policy]
        typed = special | punctuation if policy else special
        most = naive.limit(policy, len(typed), tokens, len(sets[policy]), frequent, local)
        assert most is None or int(plan.limit_U[head]) == most


@pytest.mark.parametrize("seed", range(9))
def test_heads_hold_their_policies_while_generating(seed: int) -> None:
    """Both caches against the twin over 40 steps, with punctuation among the new tokens."""
    _, q, k, ids, tokens = drawn(50 + seed)
    frequent, local, near = 0.2, 0.2, round(0.2 * tokens)
    method = kvbench.load_method(
        "fastgen", recovery=[0.3, 0.55, 0.7][seed % 3], frequent=frequent, local=local, sinks=2
    )
    ctx = context(q[:, :tokens], k[:, :tokens], ids[:tokens], 0.5)
    keep_UT = method.evicting.mask(ctx, None, None)
    plan = method.plan(ctx, keep_UT)
    assert plan is not None
    policies = plan.numbers_UX[:, 0].tolist()
    entry = Entry(
        0,
        keep_UT,
        NEW,
        decoding=method.decoding,
        score_UT=method.start_scores(ctx),
        base_U=plan.limit_U.tolist(),
        plan=plan,
    )
    ragged, masked = RaggedCache(1), MaskedCache(1)
    for cache in (ragged, masked):
        cache.add(0, [entry], ctx.k, ctx.v)
    special, punctuation = kinds(ids[:tokens], 2)
    heads = [row.nonzero().flatten().tolist() for row in keep_UT]
    pinned = [special | punctuation if policy else set(special) for policy in policies]
    limits = [int(most) if policy < 4 else None for most, policy in zip(plan.limit_U, policies, strict=True)]
    group = len(q) // len(k)
    records: list[dict[int, list[float]]] = []
    for head in range(len(k)):
        mean = naive.attention(q[:, :tokens], k[:, :tokens], head, 0.5).mean(0)
        records.append({j: [float(mean[:, j].sum()) / (tokens - j)] for j in range(tokens)})
    for at in range(tokens, tokens + NEW):
        x = torch.tensor(q[None, :, at : at + 1]), torch.tensor(k[None, :, at : at + 1])
        new = NewTokens([[ids[at]]], torch.tensor([[ids[at]]]))
        outs = [cache.attend(0, [0], x[0], x[1], x[1], 0.5, new) for cache in (ragged, masked)]
        torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)
        for head, policy in enumerate(policies):
            heads[head].append(at)
            logits = q[head * group : (head + 1) * group, at] @ k[head, heads[head]].T * 0.5
            weights = np.exp(logits - logits.max(1, keepdims=True))
            for j, weight in zip(heads[head], (weights / weights.sum(1, keepdims=True)).mean(0), strict=True):
                records[head].setdefault(j, []).append(float(weight))
            most = limits[head]
            if ids[at] in PUNCTUATION and 0 < policy < 4 and most is not None:
                pinned[head].add(at)
                limits[head] = most = most + 1
            heads[head] = naive.hold(heads[head], policy, most, pinned[head], records[head], at + 1, near)
        assert [row.nonzero().flatten().tolist() for row in masked.kept(0)[0]] == heads, f"position {at}"
        assert ragged.lengths(0) == masked.lengths(0)


def test_cheap_heads_store_special_tokens_or_punctuation_alone() -> None:
    """A head with special tokens alone stores no new token, and one with punctuation stores new punctuation."""
    plans = [(0, []), (1, [True, False, True]), (4, [True, True, True])]
    ids, numbers_UX = [[5], [9], [7]], torch.tensor([[code, 0] for code, _ in plans]).int()
    limit_U, pins_U = torch.tensor([2, 2, NO_LIMIT]), torch.tensor([False, True, False])
    keep_UT = torch.tensor([[True, True, False]]).repeat(3, 1)
    plan = Plan(numbers_UX, limit_U, keep_UT, pins_U, torch.tensor(PUNCTUATION))
    policy = kvbench.load_method("fastgen", sinks=0).decoding
    for cache in (RaggedCache(1), MaskedCache(1)):
        k = torch.randn(3, 3, DIM)
        score_UT = torch.rand(3, 3)
        entry = Entry(0, keep_UT, 3, decoding=policy, score_UT=score_UT, base_U=limit_U.tolist(), plan=plan)
        cache.add(0, [entry], k, k)
        for i in ids:
            x = torch.randn(1, 3, 1, DIM)
            cache.attend(0, [0], x, x, x, 1.0, NewTokens([i], torch.tensor([i])))
        assert cache.lengths(0) == [[2 + sum(stored) for _, stored in plans]]


def test_the_plan_counts_in_the_bytes_of_a_row() -> None:
    """Next to 8 bytes a slot for position and state: what is pinned, and the numbers of the heads."""
    heads, tokens, room = 3, 5, 4
    plan = Plan(
        torch.tensor([[0, 0], [1, 0], [4, 0]]).int(),
        torch.tensor([2, 2, NO_LIMIT]),
        torch.ones(heads, tokens).bool(),
        torch.tensor([False, True, False]),
        torch.tensor(PUNCTUATION),
    )
    x_UTD, x_1U1D = torch.randn(heads, tokens, DIM), torch.randn(1, heads, 1, DIM)
    slack = []
    for given in (plan, None):
        cache = RaggedCache(1)
        entry = Entry(
            0,
            torch.ones(heads, tokens).bool(),
            room,
            decoding=kvbench.load_method("fastgen" if given else "h2o_decode").decoding,
            score_UT=torch.rand(heads, tokens),
            base_U=[tokens + room] * heads,
            plan=given,
        )
        cache.add(0, [entry], x_UTD, x_UTD)
        slack.append([cache.slack_bytes(0)])
        cache.attend(0, [0], x_1U1D, x_1U1D, x_1U1D, 1.0, NewTokens([[4]], torch.tensor([[4]])))
        slack[-1].append(cache.slack_bytes(0))
    numbers = heads * (2 * 4 + 1)
    (before, after), (plain_before, plain_after) = slack
    assert before - plain_before == heads * tokens + numbers
    assert after - plain_after >= heads * (tokens + 1) + numbers, "by columns, of which the arena has some more"


@pytest.mark.parametrize("cache", ["ragged", "masked"])
def test_first_tokens_of_the_answer_stay_after_a_shorter_prompt(cache: str) -> None:
    """Heads hold `sinks` tokens of the sequence for good, and what follows them leaves as ever."""
    shares = {"recovery": 0.01, "frequent": 0, "local": 0}
    policies = [kvbench.load_method("fastgen", **shares, sinks=sinks) for sinks in (3, 6)]
    variants = [kvbench.Variant(method) for method in policies]
    short, long = generate(tiny_model(), [prompt(3)], variants, cache=cache, max_new_tokens=12, stop_ids=[])[0]
    assert short.kept == long.kept == [[3, 3]] * 4
    assert (short.kept_max, long.kept_max) == (3, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rule": "mas"}, "method.rule=mas: must be one of mass, element"),
        ({"recovery": 0}, "method.recovery=0: must be at least 1e-06"),
        ({"recovery": 1.5}, "method.recovery=1.5: must be at most 1"),
        ({"frequent": 2}, "method.frequent=2: must be at most 1"),
        ({"ahead": -1}, "method.ahead=-1: must be at least 0"),
        ({"phase": "prefill", "buffer": 3}, "method.buffer=3: has no effect with method.phase=prefill"),
    ],
)
def test_an_impossible_dial_is_one_line(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method("fastgen", **words)
    assert str(caught.value).startswith(message)


def test_its_decode_policy_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="decode policy HeldPolicies follows what a selection decides") as caught:
        kvbench.load_method("snapkv+fastgen")
    assert "\n" not in str(caught.value)


def test_the_dials_of_every_policy_act_on_heads_with_plans() -> None:
    """A buffer holds that many more tokens between two cuts; phases say when heads are cut. Both caches agree."""
    shares = {"recovery": 0.5, "frequent": 0.1, "local": 0.1}
    dials: list[dict[str, Any]] = [{}, {"buffer": 5}, {"buffer": 6, "interval": 4}, {"phase": "decode"}]
    variants = [kvbench.Variant(kvbench.load_method("fastgen", **shares, **more)) for more in dials]
    never = kvbench.Variant(kvbench.load_method("fastgen", **shares, phase="prefill"))
    asked: dict[str, Any] = {"max_new_tokens": 24, "stop_ids": []}
    rows, others = (
        generate(tiny_model(), [prompt(60)], [*variants, never], cache=cache, **asked)[0]
        for cache in ("ragged", "masked")
    )
    assert [(row.token_ids, row.kept, row.kept_max) for row in rows] == [
        (row.token_ids, row.kept, row.kept_max) for row in others
    ]
    plain, buffered, at_intervals, late, growing = rows
    first = max(map(max, plain.kept))
    marks = set(view_of(*tiny_model()).ids("punctuation").tolist())
    for row, more in ((plain, 0), (buffered, 5), (at_intervals, 3)):
        pinned = sum(i in marks for i in row.token_ids[:-1])
        assert first + more <= row.kept_max <= first + round(0.1 * 60) + more + pinned
    assert late.kept == [[60, 60]] * 4 and late.kept_max == 60
    assert growing.kept == plain.kept and growing.kept_max == first + 23


@pytest.mark.parametrize("local", [0.01, 0.1, 0.3, 1.0])
def test_recovered_mass_is_the_same_in_blocks_of_queries(local: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local tokens move with the queries, also over the border of a block."""
    g = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 4, 60, 8, generator=g).unbind()
    sets_PUT = torch.rand(4, 2, 60, generator=g) < 0.2
    sets_PUT[3] |= sets_PUT[1]

    def mass() -> torch.Tensor:
        return recovered_mass(LayerContext(q, k[:2], v[:2]), sets_PUT, local)

    whole_PU = mass()
    monkeypatch.setattr("kvbench.methods.context._BLOCK_ELEMENTS", 1)
    monkeypatch.setattr("kvbench.methods.context.COLUMN_SUM_QUERIES", 7)
    torch.testing.assert_close(mass(), whole_PU)
