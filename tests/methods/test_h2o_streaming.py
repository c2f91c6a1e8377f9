"""H2O with positions within the cache, against its naive twin and in the engine.

Shape suffixes: U KV heads, G query heads per KV head, N tokens of the sequence, T tokens of the prompt, D head
dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.rolling import RollingHeavyHitters
from kvbench.methods.decoding import Decoding
from kvbench_kernels import backends
from tests.engine.test_architectures import EXACT, build
from tests.helpers.tiny_engine import generate, prompt, tiny_model
from tests.reference import h2o_streaming
from tests.reference.streaming import rotated

DIM = 16


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Return [N, D] keys rotated as the naive twin rotates them."""
    rows = [rotated(x_D.double().numpy(), int(n)) for x_D, n in zip(x, by.flatten(), strict=True)]
    return torch.tensor(np.stack(rows), dtype=x.dtype)


def caches() -> list[Any]:
    """Return the masked cache, and ragged ones with both kernels."""
    return [MaskedCache(1), *(RaggedCache(1, backends.make_backend(kernel)) for kernel in ("torch", "cpu"))]


@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_held_tokens_are_those_of_the_twin(seed: int) -> None:
    """A prompt is cut once, then tokens come one by one or several at once, and heads hold different tokens."""
    rng = np.random.default_rng(seed)
    heads, group, recent, heavy = int(rng.integers(1, 4)), (1, 3, 4)[seed % 3], int(rng.integers(1, 7)), 6
    limit, prompt_tokens = heavy + recent, int(rng.integers(20, 40))
    steps = [prompt_tokens, *rng.choice([1, 1, 1, 3], size=20).tolist()]
    tokens = sum(steps)
    q_UGND = rng.normal(size=(heads, group, tokens, DIM))
    k_UND, v_UND = (rng.normal(size=(heads, tokens, DIM)) for _ in range(2))
    twins = [h2o_streaming.run(q_UGND[u], k_UND[u], v_UND[u], steps, heavy, recent) for u in range(heads)]
    place_N = range(tokens)
    q = torch.tensor(np.array([[[rotated(x[n], n) for n in place_N] for x in of_u] for of_u in q_UGND])).float()
    k = torch.tensor(np.array([[rotated(x[n], n) for n in place_N] for x in k_UND])).float()
    v = torch.tensor(v_UND).float()
    keep_UT, score_UT = torch.zeros(heads, prompt_tokens, dtype=torch.bool), torch.zeros(heads, prompt_tokens)
    for u, (_, states, sums) in enumerate(twins):
        keep_UT[u, states[0]] = True
        score_UT[u, states[0]] = torch.tensor(sums[0]).float()
    policy = Decoding(RollingHeavyHitters(window=recent))
    for cache in caches():
        entry = Entry(0, keep_UT, tokens, decoding=policy, score_UT=score_UT, base_U=[limit] * heads, rotate=rotate)
        cache.add(0, [entry], k[:, :prompt_tokens], v[:, :prompt_tokens])
        first = prompt_tokens
        for step, count in enumerate(steps[1:], 1):
            at = slice(first, first + count)
            out_HTD = cache.attend(0, [0], q[:, :, at].flatten(0, 1)[None], k[None, :, at], v[None, :, at], 1.0)[0]
            wanted = np.concatenate([outs[step] for outs, _, _ in twins])
            torch.testing.assert_close(out_HTD.double(), torch.tensor(wanted), rtol=2e-4, atol=2e-4)
            first += count
            if isinstance(cache, MaskedCache):
                held = [row.nonzero().flatten().tolist() for row in cache.kept(0)[0]]
                assert held == [states[step] for _, states, _ in twins]
        assert cache.lengths(0) == [[limit] * heads]


def test_rows_join_and_leave_between_steps() -> None:
    """Keys as they were before the first turn move with their tokens when the arena is laid out again."""
    g, policy = torch.Generator().manual_seed(3), Decoding(RollingHeavyHitters(window=3))
    ragged, masked = RaggedCache(1), MaskedCache(1)

    def join(row: int) -> None:
        keep_UT = torch.rand(2, 30, generator=g) < 0.4
        score_UT, k, v = torch.rand(2, 30, generator=g), *torch.randn(2, 2, 30, DIM, generator=g)
        for cache in (ragged, masked):
            entry = Entry(row, keep_UT, 2, decoding=policy, score_UT=score_UT, base_U=[9, 12], rotate=rotate)
            cache.add(0, [entry], k, v)

    rows = [0, 1]
    for row in rows:
        join(row)
    for step in range(24):
        if step == 6:
            join(2)
            rows = [0, 1, 2]
        if step == 12:
            for cache in (ragged, masked):
                cache.release([0])
            ragged.compact()
            rows = [2, 1]
        q, k, v = (torch.randn(len(rows), heads, 1, DIM, generator=g) for heads in (4, 2, 2))
        outs = [cache.attend(0, rows, q, k, v, 0.3) for cache in (ragged, masked)]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)
        assert [ragged.lengths(row) for row in rows] == [masked.lengths(row) for row in rows]


@pytest.mark.parametrize("phase", ["both", "decode"])
def test_both_caches_answer_alike_and_positions_matter(phase: str) -> None:
    tiny = tiny_model()
    variants = [
        kvbench.Variant(kvbench.load_method(f"{name}", phase=phase), 60) for name in ("h2o_streaming", "h2o_decode")
    ]
    texts = [prompt(150), prompt(171)]
    both = [generate(tiny, texts, variants, max_new_tokens=24, cache=cache) for cache in ("ragged", "masked")]
    for ragged, masked in zip(*both, strict=True):
        assert [out.token_ids for out in ragged] == [out.token_ids for out in masked]
        assert [out.kept_max for out in ragged] == [out.kept_max for out in masked]
    assert any(rolling.token_ids != fixed.token_ids for rolling, fixed in both[0])
    alone = generate(tiny, texts[:1], variants[:1], max_new_tokens=24)[0][0]
    assert alone.token_ids == both[0][0][0].token_ids


def test_a_prompt_within_the_budget_is_answered_as_by_the_full_cache() -> None:
    (outs,) = generate(tiny_model(), [prompt(40)], [("h2o_streaming", 200), ("fullkv", None)])
    assert outs[0].token_ids == outs[1].token_ids


def test_the_copy_of_the_keys_counts_in_a_budget_in_bytes() -> None:
    (outs,) = generate(
        tiny_model(), [prompt(300)], [("h2o_streaming", "0.4B"), ("h2o_decode", "0.4B")], max_new_tokens=1
    )
    for out in outs:
        assert out.held_bytes / out.kv_bytes_full == pytest.approx(0.4, rel=0.01)
    assert outs[0].kept_mean < 0.75 * outs[1].kept_mean


@pytest.mark.parametrize("name", ["smollm3", "gemma3"])
def test_models_whose_layers_rotate_differently(name: str) -> None:
    model = build(*EXACT[name][:3])
    method, ids = kvbench.load_method("h2o_streaming"), [i % 250 for i in prompt(80)]
    answers = []
    for cache in ("ragged", "masked"):
        with kvbench.compressed(model, method, 30, cache=cache):
            answers.append(model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist())
    assert answers[0] == answers[1]


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method=h2o_streaming\+kivi: its decode policy turns all keys, and a store"):
        kvbench.load_method("h2o_streaming+kivi")
    model = build(*EXACT["gpt2, learned positions"][:3])
    message = "^model: GPT2LMHeadModel rotates its keys in a way that kvbench does not know"
    with pytest.raises(ValueError, match=message), kvbench.compressed(model, kvbench.load_method("h2o_streaming"), 30):
        model(torch.tensor([[5, 9, 2] * 20]))
