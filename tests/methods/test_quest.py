"""Quest: page bounds and choices against a naive twin and the printed vector; what a step reads, in both caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import kvbench
from kvbench.cache.base import Entry, KVCache
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.load import load
from kvbench.methods.look.page_bounds import PageBounds
from kvbench.run.record import broken_promise
from tests.engine.test_lengths import SIZES
from tests.helpers.tiny_engine import NEW, generate, prompt, tiny_model
from tests.reference import quest, tva


def test_the_printed_bounds() -> None:
    q_HTD, k_UTD, _ = tva.tensors()
    for head, printed, best in (
        (0, [10.141920, 10.516316, 9.156979, 9.908045], [1, 0, 3]),
        (3, [7.377252, 7.359791, 7.465851, 7.556314], [3, 2, 0]),
    ):
        q_D, k_ND = q_HTD[head, -1], k_UTD[head // 2]
        np.testing.assert_allclose(quest.bounds(q_D, k_ND, 4), printed, atol=0.6e-6)
        assert quest.pages(q_D, k_ND, 4, 12) == best
        look = PageBounds(page=4)
        summary = look.summary(torch.tensor(k_ND).unflatten(0, (4, 4)))[None]
        assert look.choose(torch.tensor(q_D)[None, None], summary, 12)[0, 0].tolist() == best


@pytest.mark.parametrize("make", [RaggedCache, MaskedCache])
@pytest.mark.parametrize("seed", range(10))
def test_steps_read_what_the_twin_reads(seed: int, make: type[KVCache]) -> None:
    """Pages, outputs and counts are the same, for rows of different lengths and budgets, and for a dense layer."""
    rng = np.random.default_rng(seed)
    heads, group, dim, page = int(rng.integers(1, 4)), int(rng.integers(1, 4)), 8, int(rng.integers(1, 7))
    look, steps, scaling = PageBounds(page=page, dense=1), 9, 0.3
    cache: KVCache = make(2)  # type: ignore[call-arg]
    lengths = rng.integers(1, 60, 2).tolist()
    budgets = [int(rng.integers(3 * page, 3 * page + 30)) for _ in range(3)]
    k: dict[tuple[int, int], Any] = {}
    v: dict[tuple[int, int], Any] = {}
    for layer in range(2):
        for index, rows in enumerate(([0, 1], [2])):
            x, y = rng.normal(size=(2, heads, lengths[index], dim)).astype(np.float32)
            keep = torch.ones(heads, lengths[index], dtype=torch.bool)
            entries = [Entry(row, keep, 4, look=look, reads=budgets[row]) for row in rows]
            cache.add(layer, entries, torch.tensor(x), torch.tensor(y))
            for row in rows:
                k[layer, row], v[layer, row] = x, y
    most, total, count = [0] * 3, [0] * 3, 0
    for _ in range(steps):
        count += 2 * heads * group
        for layer in range(2):
            q = 2 * rng.normal(size=(3, heads * group, 1, dim)).astype(np.float32)
            new_k, new_v = rng.normal(size=(2, 3, heads, 1, dim)).astype(np.float32)
            out = cache.attend(layer, [0, 1, 2], *(torch.tensor(x) for x in (q, new_k, new_v)), scaling)
            for row in range(3):
                k[layer, row] = np.concatenate([k[layer, row], new_k[row]], 1)
                v[layer, row] = np.concatenate([v[layer, row], new_v[row]], 1)
                for head in range(heads * group):
                    keys, values = k[layer, row][head // group], v[layer, row][head // group]
                    read = quest.pages(q[row, head, 0], keys, page, 10**6 if layer == 0 else budgets[row])
                    expected = quest.attend(q[row, head, 0], keys, values, read, page, scaling)
                    np.testing.assert_allclose(out[row, head, 0].numpy(), expected, rtol=2e-4, atol=2e-5)
                    tokens = sum(min(page, len(keys) - m * page) for m in read)
                    total[row] += tokens
                    most[row] = max(most[row], tokens if layer == 1 else 0)
                    assert layer == 0 or tokens <= budgets[row]
    for row in range(3):
        assert cache.tokens_read(row) == (most[row], pytest.approx(total[row] / count))
        assert cache.lengths(row) == [[k[0, row].shape[1]] * heads] * 2
    cache.release([0, 1, 2])
    assert cache.bytes() == 0


def test_several_new_tokens_read_everything() -> None:
    """A question sees all of the prompt, as the prefill did; steps after it choose again."""
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 40, 8, generator=g)
    keep, look = torch.ones(2, 40, dtype=torch.bool), PageBounds(page=4, dense=0)
    q, new_k, new_v = torch.randn(1, 4, 5, 8, generator=g), *torch.randn(2, 1, 2, 5, 8, generator=g)
    outs = []
    for looks in (look, None):
        for cache in (RaggedCache(1), MaskedCache(1)):
            cache.add(0, [Entry(0, keep, 9, look=looks, reads=None if looks is None else 12)], k, v)
            outs.append(cache.attend(0, [0], q, new_k, new_v, 0.4))
            read = cache.tokens_read(0)
            assert read == (None if looks is None else (0, 0.0))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_a_record_says_what_was_kept_and_what_was_read() -> None:
    """150 tokens stay. Of them and of the answer, a head reads at most 70, by whole pages of 16."""
    tiny = tiny_model()
    variant = kvbench.Variant(kvbench.load_method("quest"), 70)
    ((out,),) = generate(tiny, [prompt(150)], [variant])
    assert (out.kept, out.budget_tokens, out.kept_max) == ([[150, 150]] * 4, 70, 150 + NEW - 1)
    assert out.read is not None and out.read.most == 64
    assert 64 - 16 < 2 * out.read.mean - (150 + 161) / 2 - 0.5 <= 64, "half of the layers read everything"
    assert broken_promise(variant, out) is None
    too_few = kvbench.Variant(variant.method, 48)
    out.budget_tokens = 48
    assert "read 64 tokens of a head in one step instead of 48 at most" in str(broken_promise(too_few, out))


@pytest.mark.parametrize("engine_cache", ["ragged", "masked"])
def test_dense_layers_are_the_first_of_the_model(engine_cache: str) -> None:
    """Layers with a window count: of layers 0, 1 (windows) and 2, dense=2 reads none as a whole, dense=3 the last."""
    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": 3, "head_dim": 16}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=24, layer_types=kinds)).eval()
    tiny = (model, tiny_model()[1])
    read = {}
    for dense in (0, 2, 3):
        variant = kvbench.Variant(kvbench.load_method("quest", page=8, dense=dense), 40)
        ((out,),) = generate(tiny, [prompt(90)], [variant], cache=engine_cache)
        assert out.read is not None and broken_promise(variant, out) is None
        read[dense] = out.read
    assert read[2].most == 40 and read[2].mean <= 40 and read[0] == read[2], "pages are read"
    assert read[3].most == 0 and read[3].mean > 90, "all is read"


def test_a_budget_above_the_prompt_reads_all_until_the_answer_exceeds_it() -> None:
    tiny = tiny_model()
    asked = [("fullkv", None), ("quest", 1000), ("quest", 155)]
    ((full, all_of, most),) = generate(tiny, [prompt(150)], asked)
    assert all_of.token_ids == full.token_ids and all_of.read is not None and all_of.read.most == 150 + NEW - 1
    assert most.token_ids[:5] == full.token_ids[:5] and most.read is not None and most.read.most == 155


def test_a_budget_below_three_pages_is_refused() -> None:
    """A share of a short prompt may be less; three pages are read then, and the record says so."""
    tiny = tiny_model()
    with pytest.raises(ValueError, match=r"budget=40: quest reads at least 48 tokens per step \(method.page=16\); "):
        generate(tiny, [prompt(150)], [("quest", 40)])
    ((out,),) = generate(tiny, [prompt(150)], [("quest", 0.1)])
    assert out.budget_tokens == 48 and out.read is not None and out.read.most <= 48


def test_a_look_takes_no_other_part(tmp_path: Any) -> None:
    look = "look: {_target_: kvbench.methods.look.page_bounds.PageBounds}\n"
    for rest, part in (
        ("store: {_target_: kvbench.methods.store.kivi.Kivi}\n", "store"),
        ("select: {_target_: kvbench.methods.select.top_k.TopK}\n", "select"),
    ):
        (tmp_path / "own.yaml").write_text("name: own\n" + look + rest)
        with pytest.raises(ValueError, match=f"(leave out {part}|Kivi)"):
            load(tmp_path, "own")


class OddPages(PageBounds):
    """Pages, as `odd` changes them."""

    odd: Any = None

    def choose(self, q_UGD: torch.Tensor, summary_UMX: torch.Tensor, tokens: int) -> torch.Tensor:
        return self.odd(super().choose(q_UGD, summary_UMX, tokens))


@pytest.mark.parametrize("make", [RaggedCache, MaskedCache])
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda x: x[..., :1].expand_as(x), "must return each block once, of those from 0 to 10"),
        (lambda x: torch.where(x == x.amax(), 11, x), "must return each block once, of those from 0 to 10"),
        (lambda x: torch.where(x == x.amax(), -1, x), "must return each block once, of those from 0 to 10"),
        (lambda x: x.int(), "choose returned torch.int32"),
        (lambda x: x[:, :1], r"choose returned torch.int64, \[2, 1, 3\], must be torch.int64, \[2, 2\] and one"),
    ],
)
def test_pages_that_no_step_can_read_are_one_line(make: type[KVCache], odd: Any, message: str) -> None:
    """A page that is chosen twice would count twice."""
    look = OddPages(page=4, dense=0)
    object.__setattr__(look, "odd", odd)
    g = torch.Generator().manual_seed(0)
    cache: KVCache = make(1)  # type: ignore[call-arg]
    keep = torch.ones(2, 40, dtype=torch.bool)
    cache.add(0, [Entry(0, keep, 4, look=look, reads=12)], *torch.randn(2, 2, 40, 8, generator=g))
    q, k, v = (torch.randn(1, heads, 1, 8, generator=g) for heads in (4, 2, 2))
    with pytest.raises(ValueError, match=f"^method: OddPages.*{message}") as caught:
        cache.attend(0, [0], q, k, v, 0.3)
    assert "\n" not in str(caught.value)
