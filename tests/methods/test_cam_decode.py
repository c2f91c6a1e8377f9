"""CaM while decoding against its naive twin: tokens that leave hand their values to those that follow.

Shape suffixes: U KV heads, G query heads per KV head, N tokens of the sequence, T tokens of the prompt, D head
dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.cam import MergeIntoNext
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decoding import Decoding
from kvbench.methods.draws import uniform
from kvbench.methods.sharing import Leaving, Shares
from kvbench.methods.slots import Slots
from tests.helpers.tiny_engine import generate, prompt, tiny_model
from tests.reference import cam, h2o_decode

DIM, NEW, SEED = 8, 30, 77


def test_draws_are_those_of_the_twin_and_uniform() -> None:
    g = torch.Generator().manual_seed(0)
    counters = [torch.randint(0, high, (2000,), generator=g) for high in (2**56, 40, 8, 2**20)]
    drawn = uniform(*counters)
    assert drawn.tolist() == [cam.uniform(*of) for of in zip(*(c.tolist() for c in counters), strict=True)]
    row = uniform(5, torch.arange(20000))
    assert abs(float(row.mean()) - 0.5) < 0.01 and abs(float(row.var()) - 1 / 12) < 0.003
    assert len(row.unique()) > 19900 and float(row.max()) < 1


def values_of(cache: RaggedCache) -> list[dict[int, torch.Tensor]]:
    """Return {position: value} of every head of the only row."""
    (group,) = cache._arenas[0]._groups
    arena = cache._arenas[0]._arenas.first
    out = []
    for segment in sorted(arena.segments, key=lambda s: s.head):
        n = cache.lengths(0)[0][segment.head]
        positions = group.slots.pos_BUC[0, segment.head, :n].tolist()
        held_ND = arena.buffers.v_RD[segment.start : segment.start + n]
        out.append(dict(zip(positions, held_ND, strict=True)))
    return out


@pytest.mark.parametrize(("buffer", "merge"), [(0, 1), (0, 4), (0, 32), (3, 4), (3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_twin_after_every_step(seed: int, buffer: int, merge: int) -> None:
    g = torch.Generator().manual_seed(seed)
    heads, group, prompt_len, limit, window = 2, 1 + seed, 14, 10, 4
    q_UGND = torch.randn(heads, group, prompt_len + NEW, DIM, generator=g)
    k_UND, v_UND = torch.randn(2, heads, prompt_len + NEW, DIM, generator=g).unbind()
    weights_UGTT = (q_UGND[:, :, :prompt_len] @ k_UND[:, None, :prompt_len].mT).masked_fill(
        torch.ones(prompt_len, prompt_len).triu(1).bool(), -torch.inf
    )
    score_UT = weights_UGTT.softmax(-1).sum(2).mean(1)
    states = [h2o_decode.evict(list(range(prompt_len)), score_UT[u].tolist(), limit - window, window) for u in (0, 1)]
    keep_UT = torch.zeros(heads, prompt_len, dtype=torch.bool)
    for u, (kept, _) in enumerate(states):
        keep_UT[u, kept] = True
    cache = RaggedCache(1)
    policy = Decoding(MergeIntoNext(window=window, merge_budget=merge), buffer=buffer)
    entry = Entry(0, keep_UT, NEW, decoding=policy, score_UT=score_UT, base_U=[limit] * heads, seed=SEED)
    cache.add(0, [entry], k_UND[:, :prompt_len], v_UND[:, :prompt_len])
    values = [{p: v_UND[u, p].tolist() for p in kept} for u, (kept, _) in enumerate(states)]
    merges = 0
    for position in range(prompt_len, prompt_len + NEW):
        now = slice(position, position + 1)
        cache.attend(0, [0], q_UGND[:, :, now].flatten(0, 1)[None], k_UND[None, :, now], v_UND[None, :, now], 1.0)
        for u, (kept, acc) in enumerate(states):
            kept = [*kept, position]
            row = (q_UGND[u, :, position] @ k_UND[u, kept].T).softmax(-1).mean(0).tolist()
            acc = [a + w for a, w in zip([*acc, 0.0], row, strict=True)]
            values[u][position] = v_UND[u, position].tolist()
            due = len(kept) > limit + buffer
            states[u] = h2o_decode.evict(kept, acc, limit - window, window) if due else (kept, acc)
            old = dict(values[u])
            cam.merge(kept, states[u][0], dict(zip(kept, acc, strict=True)), values[u], merge, _draw(u))
            merges += old != values[u]
            values[u] = {p: values[u][p] for p in states[u][0]}
        for held, expected in zip(values_of(cache), values, strict=True):
            assert sorted(held) == sorted(expected), f"after position {position}"
            for p, value in held.items():
                torch.testing.assert_close(value, torch.tensor(expected[p]), atol=1e-5, rtol=1e-4)
    assert merges > 3


def _draw(head: int) -> cam.Uniform:
    return lambda position: cam.uniform(SEED, 0, head, position)


def test_followers_are_the_next_that_stay_whatever_the_order_of_slots() -> None:
    g = torch.Generator().manual_seed(1)
    pos_BUC = torch.stack([torch.randperm(20, generator=g) for _ in range(6)]).view(2, 3, 20)
    live_BUC = torch.rand(2, 3, 20, generator=g) < 0.8
    for most in (1, 4):
        gone_BUC = live_BUC & (pos_BUC < most * 5) & (pos_BUC % 5 == 2)
        leaving = Leaving.of(gone_BUC, pos_BUC, live_BUC, most)
        into_BUNM, exists_BUNM = leaving.followers(pos_BUC, 3)
        for b, u, n in leaving.due_BUN.nonzero().tolist():
            own = int(pos_BUC[b, u, leaving.column_BUN[b, u, n]])
            stays = sorted(pos_BUC[b, u][live_BUC[b, u] & ~gone_BUC[b, u]].tolist())
            followers = pos_BUC[b, u][into_BUNM[b, u, n][exists_BUNM[b, u, n]]].tolist()
            assert followers == [p for p in stays if p > own][:3]
        assert leaving.due_BUN.sum() == gone_BUC.sum()


def test_caches_hold_the_same_values_and_draws_do_not_depend_on_the_batch() -> None:
    """Two rows of different seeds in one step, against each alone, and against the masked cache."""
    g = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, 2, 12, DIM, generator=g).unbind()
    entries = [
        Entry(
            row,
            torch.ones(2, 12).bool(),
            NEW,
            decoding=Decoding(MergeIntoNext(4, merge_budget=5)),
            base_U=[12] * 2,
            seed=row,
        )
        for row in (0, 1)
    ]
    steps = torch.randn(NEW, 3, 1, 2, 1, DIM, generator=g)
    outs = []
    for cache, rows in ((RaggedCache(1), [0, 1]), (MaskedCache(1), [1, 0]), (RaggedCache(1), [1])):
        cache.add(0, [entries[row] for row in rows], k, v)
        out = [cache.attend(0, rows, *(x.expand(len(rows), -1, -1, -1) for x in step), 1.0) for step in steps]
        outs.append(dict(zip(rows, torch.stack(out).unbind(1), strict=True)))
    assert not torch.allclose(outs[0][0], outs[0][1]), "rows of other prompts draw other numbers"
    for other, row in ((outs[1], 0), (outs[1], 1), (outs[2], 1)):
        torch.testing.assert_close(outs[0][row], other[row], atol=1e-6, rtol=1e-5)


def test_keys_are_handed_on_as_well_and_a_token_may_give_to_any_that_stay() -> None:
    """A policy of a test: the two oldest tokens get a part of what leaves, of its value and of its key."""

    @dataclass(frozen=True)
    class ToOldest(SlidingWindow):
        merges: ClassVar[bool] = True

        def shares(self, slots: Slots, leaving: Leaving) -> Shares:
            oldest_BUC = torch.where(leaving.stays_BUC, slots.pos_BUC, 2**30).argsort(-1)[..., :2]
            into_BUNM = oldest_BUC[:, :, None].expand(-1, -1, leaving.column_BUN.shape[2], -1)
            return Shares(into_BUNM, torch.tensor([0.2, 0.1]).expand_as(into_BUNM), 0.05 * (into_BUNM >= 0))

    for sinks, buffer, dtype in ((2, 0, torch.float32), (2, 4, torch.bfloat16), (0, 3, torch.float32)):
        g = torch.Generator().manual_seed(sinks)
        k, v = torch.randn(2, 2, 12, DIM, generator=g).to(dtype).unbind()
        policy = Decoding(ToOldest(sinks), buffer=buffer)
        steps = torch.randn(NEW, 3, 1, 2, 1, DIM, generator=g).to(dtype)
        outs = []
        for cache in (RaggedCache(1), MaskedCache(1)):
            cache.add(0, [Entry(0, torch.ones(2, 12).bool(), NEW, decoding=policy, base_U=[12, 9])], k, v)
            outs.append(torch.stack([cache.attend(0, [0], *step, 1.0) for step in steps]))
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(*outs, atol=tolerance, rtol=tolerance)


def test_a_merge_budget_above_all_tokens_takes_no_memory() -> None:
    tiny, outs = tiny_model(), []
    for most in (1000, 2**31 - 1):
        method = kvbench.load_method("cam_decode", window=2, merge_budget=most)
        outs.append(generate(tiny, [prompt(60)], [kvbench.Variant(method, 12)], max_new_tokens=20)[0][0])
    assert outs[0].token_ids == outs[1].token_ids


def test_a_run_depends_on_its_seed_and_on_nothing_else() -> None:
    tiny, variant = tiny_model(), kvbench.Variant(kvbench.load_method("cam_decode", window=2), 12)
    seeds = [generate(tiny, [prompt(60)], [variant], max_new_tokens=40, seed=seed)[0][0] for seed in (0, 0, 1)]
    other = kvbench.Variant(kvbench.load_method("h2o_decode", window=2), 12)
    both = generate(tiny, [prompt(80), prompt(60)], [other, variant], max_new_tokens=40, max_prompts=2)[1]
    assert seeds[0].token_ids == seeds[1].token_ids == both[1].token_ids
    assert len({tuple(out.token_ids) for out in (seeds[0], seeds[2], both[0])}) > 1
    assert seeds[0].kept == both[0].kept, "merging changes no lengths"


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("cam_decode", {"merge_budget": 0}, "method.merge_budget=0: must be at least 1"),
        ("cam_decode+kivi", {}, "method=cam_decode+kivi: its decode policy adds values of tokens that leave to others"),
    ],
)
def test_what_has_no_meaning_is_one_line(name: str, dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method(name, **dials)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert kvbench.load_method("cam_decode+kivi", phase="prefill").decoding is None
