"""Budgets in bytes: how they are written, how many tokens they allow, and what a method holds under them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kvbench
from kvbench.methods.allowance import allowed, check_reach
from kvbench.methods.budgets import Allowance, ByteShare, as_stored, check_budget
from kvbench.methods.fitting import CacheShape, Search, head_bytes, highest, promised_bytes
from kvbench.methods.method import Method
from kvbench.run.record import broken_promise
from tests.helpers.tiny_engine import NEW, Tiny, generate, prompt, tiny_model
from tests.reference import kivi, think

SHAPE = CacheShape(layers=3, heads=2, query_heads=4, dim=32, dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


@pytest.mark.parametrize(
    ("text", "share"), [("0.25B", 0.25), (".25B", 0.25), ("0.250B", 0.25), ("1.0B", 1.0), ("1e-2B", 0.01), ("1.B", 1.0)]
)
def test_a_share_of_bytes_is_written_with_a_b(text: str, share: float) -> None:
    assert check_budget(text) == ByteShare(share) == check_budget(ByteShare(share))
    assert as_stored(check_budget(text)) == f"{share}B"
    assert kvbench.Variant(Method("fullkv"), text) == kvbench.Variant(Method("fullkv"), ByteShare(share))


@pytest.mark.parametrize(
    "text", ["1B", "512B", "0.0B", "1.5B", "0.2", "0.2b", "0.2 GB", "B", ".B", "-0.2B", "nanB", ""]
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^budget=[^\n]*$"):
        check_budget(text)


@pytest.mark.parametrize(
    ("name", "dials", "hint"),
    [
        ("quest", {}, "saves no memory"),
        ("h2o_decode", {"phase": "decode"}, "choose method.phase=both"),
        ("pyramidkv", {"allocation": "reference"}, "choose method.allocation=exact"),
        ("streaming_llm_true", {"interval": 8, "buffer": 8}, "choose method.buffer=0"),
        ("streaming_llm_true", {"decode_budget": 16}, "choose method.decode_budget=null"),
    ],
)
def test_a_method_that_cannot_promise_bytes_says_why(name: str, dials: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^budget=0.3B: [^\n]*{hint}[^\n]*$"):
        allowed(kvbench.load_method(name, **dials), "0.3B", 200, SHAPE)


def test_a_budget_without_room_names_the_dials() -> None:
    with pytest.raises(ValueError, match=r"^budget=0.1B \(of 200 tokens: 20\): snapkv always keeps 32 .*method.window"):
        allowed(kvbench.load_method("snapkv"), "0.1B", 200, SHAPE)


def test_tokens_of_plain_rows_are_all_that_fit() -> None:
    """Shares of tokens are rounded down to whole tokens per head; bytes are used to the last token of one head."""
    budget = allowed(kvbench.load_method("snapkv"), "0.33B", 207, SHAPE)
    assert budget == Allowance(*divmod(int(0.33 * 207 * 6), 6))
    state = allowed(kvbench.load_method("h2o_decode"), "0.33B", 207, SHAPE)
    assert state == Allowance(*divmod(int(0.33 * 207 * 6 * 256) // (256 + 8), 6)), "8 bytes a token for the policy"


def kivi_head(n: int, bits: int) -> int:
    """Return the bytes of one KV head with `n` tokens, naively."""
    keys, values = kivi.quantised_tokens(n, n, 128)
    encoded = (keys + values) * (32 * bits // 8 + 2 * 4)  # a group of 32 elements has a scale and a minimum
    return encoded + (2 * n - keys - values) * 32 * 4


def think_head(n: int, ratio: float) -> int:
    channels = 32 - int(ratio * 32)
    return n * 32 * 8 - think.pruned_tokens(n, 32) * (32 - channels) * 4 + 2 * channels


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_bytes_of_a_head_are_those_of_the_paper(bits: int) -> None:
    table = head_bytes(kvbench.load_method("kivi", bits=bits).store, 0, 700, 32, torch.float32)
    assert list(table) == [kivi_head(n, bits) for n in range(701)]
    ratio = {2: 0.3, 4: 0.4, 8: 0.6}[bits]
    table = head_bytes(kvbench.load_method("think", ratio=ratio).store, 0, 300, 32, torch.float32)
    assert list(table) == [think_head(n, ratio) for n in range(301)]


@pytest.mark.parametrize("share", [0.06, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("span", [431, 1000])
def test_no_larger_number_of_tokens_fits(span: int, bits: int, share: float) -> None:
    """Bytes fall where a head fills another block, so all numbers of tokens are tried."""
    promise = promised_bytes(ByteShare(share), span, SHAPE)

    def needed(total: int) -> int:
        least, more = divmod(total, 6)
        return (6 - more) * kivi_head(least, bits) + more * kivi_head(least + 1, bits)

    fitting = [total for total in range(33 * 6, span * 6 + 1) if needed(total) <= promise]
    method = kvbench.load_method("snapkv+kivi", bits=bits)
    assert bool(fitting) == ((span, share) != (431, 0.06)), "one case is refused, and no other"
    if fitting:
        assert allowed(method, ByteShare(share), span, SHAPE) == Allowance(*divmod(max(fitting), 6))
    else:
        with pytest.raises(ValueError, match="snapkv"):
            allowed(method, ByteShare(share), span, SHAPE)


def test_a_head_that_loses_its_block_does_not_end_the_search() -> None:
    """One more token may cost much where a rule takes it from a head with a full block."""
    costs = {total: 10 * total for total in range(200)} | {101: 1500, 102: 1500}
    allowance = Search(promise=1100, segments=10, least=1, most=15).largest(
        lambda tried: costs[tried.tokens * 10 + tried.extra]
    )
    assert allowance == Allowance(11, 0)


def test_of_budgets_near_the_promise_the_one_with_the_most_bytes_is_taken() -> None:
    """More tokens can take fewer bytes: heads then hold them in a worse form."""
    costs = {total: 10 * total if total <= 100 else 1500 for total in range(200)} | {102: 1080, 104: 1010}
    allowance = Search(promise=1100, segments=10, least=1, most=15).largest(
        lambda tried: costs[tried.tokens * 10 + tried.extra]
    )
    assert allowance == Allowance(10, 2)


@pytest.mark.parametrize("more", range(6))
def test_the_highest_budget_leaves_room_for_further_tokens_of_some_heads(more: int) -> None:
    table = [10 * n for n in range(50)]
    assert 6 * highest(table, 10 * (6 * 7 + more), SHAPE) >= 6 * 7 + more
    assert highest(table, 10**6, SHAPE) == 49


HELD = ["snapkv", "ada_snapkv", "pyramidkv", "prefixkv", "h2o_decode", "streaming_llm_true", "scope"]


@pytest.mark.parametrize("store", ["", "+kivi", "+think"])
def test_what_is_held_is_what_was_promised(tiny: Tiny, store: str) -> None:
    """Bytes are measured in the cache, heads are ragged, and tokens are as many as the records say."""
    names = [name for name in HELD if not store or name != "streaming_llm_true"]
    shares = ["0.3B", "0.37B"] if store == "+think" else ["0.22B", "0.25B"]
    variants = [kvbench.Variant(kvbench.load_method(name + store), share) for name in names for share in shares]
    ids = prompt(331)
    for variant, out in zip(variants, generate(tiny, [ids], variants)[0], strict=True):
        assert isinstance(variant.budget, ByteShare) and out.budget_bytes is not None and out.held_bytes is not None
        assert out.budget_bytes == int(variant.budget.share * out.kv_bytes_full + 1e-6)
        assert broken_promise(variant, out) is None
        assert 0.99 * out.budget_bytes <= out.held_bytes <= out.budget_bytes, str(variant)
        # 8 bytes a token for the policy; with a store, 27 for what finds the token
        state = (35 if store else 8) * out.kept_total if variant.method.decoding is not None else 0
        assert out.held_bytes == out.kv_bytes + state
        assert out.budget_tokens == pytest.approx(out.kept_mean)
        assert len(out.token_ids) == NEW


def test_a_broken_promise_is_an_error(tiny: Tiny) -> None:
    variant = kvbench.Variant(kvbench.load_method("ada_snapkv"), "0.3B")
    ((out,),) = generate(tiny, [prompt(331)], [variant])
    assert out.held_bytes is not None
    measured = out.held_bytes
    for change, is_broken in ((0.98, True), (0.995, False), (1.005, False), (1.02, True)):
        out.held_bytes = int(change * measured)
        assert (broken_promise(variant, out) is not None) == is_broken
    out.kept = [[1] * len(layer) for layer in out.kept]
    assert "instead of" in str(broken_promise(variant, out))


def test_the_masked_cache_keeps_the_same_tokens(tiny: Tiny) -> None:
    variants = [kvbench.Variant(kvbench.load_method(name), "0.25B") for name in ("ada_snapkv+kivi", "h2o_decode")]
    ragged, masked = (generate(tiny, [prompt(331)], variants, cache=cache)[0] for cache in ("ragged", "masked"))
    for ours, other in zip(ragged, masked, strict=True):
        assert (ours.kept, ours.token_ids) == (other.kept, other.token_ids)
        assert other.held_bytes is None, "a simulation holds no fewer bytes"


def test_a_prompt_that_fits_is_kept(tiny: Tiny) -> None:
    variant = kvbench.Variant(kvbench.load_method("snapkv+kivi"), "0.9B")
    ((out,),) = generate(tiny, [prompt(331)], [variant])
    assert out.kept_mean == 331 == out.budget_tokens and broken_promise(variant, out) is None
    with pytest.raises(ValueError, match=r"^budget=0.9B: snapkv\+kivi holds all 331 tokens of a prompt in 0\.\d+ of"):
        check_reach(variant.method, variant.budget, 331, SHAPE)
    check_reach(variant.method, ByteShare(0.2), 331, SHAPE)


def test_keep_takes_bytes_where_numbers_decide() -> None:
    k = torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0))
    assert sum(map(len, kvbench.load_method("h2o").keep(k, k, k, budget="0.255B"))) == 51
    with pytest.raises(ValueError, match=r"^budget=0.5B: ada_snapkv\+kivi needs all layers"):
        kvbench.load_method("ada_snapkv+kivi", group_size=8, residual=8).keep(k, k, k, budget="0.5B")
