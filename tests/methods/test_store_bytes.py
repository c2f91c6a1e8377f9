"""Measured bytes against naive formulas: stores alone and over evicted, ragged tokens; short and long prompts.

Shape suffixes: U KV heads, T tokens of the prompt, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.cache.base import Entry
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from tests.reference import kivi, qaq, think

HEADS, DIM, LAYERS = 2, 32, 2
Formula = Callable[[LayerContext, Tensor], float]


def kivi_bytes(bits: int) -> Formula:
    def of_head(n: int) -> float:
        keys, values = kivi.quantised_tokens(n, n, 128)
        return (keys + values) * DIM * (bits / 8 + 2 * 4 / 32) + (2 * n - keys - values) * DIM * 4

    return lambda ctx, keep_UT: sum(of_head(n) for n in keep_UT.sum(1).tolist())


def think_bytes(ratio: float) -> Formula:
    def of_head(n: int) -> float:
        return 4 * (2 * n * DIM - think.pruned_tokens(n, 32) * int(ratio * DIM)) + 2 * (DIM - int(ratio * DIM))

    return lambda ctx, keep_UT: sum(of_head(n) for n in keep_UT.sum(1).tolist())


def qaq_bytes(ctx: LayerContext, keep_UT: Tensor) -> float:
    total, tokens = 0, ctx.num_tokens
    attention_UT = ctx.window_attention(min(5, tokens)).amax((1, 2))
    for head, token in keep_UT.nonzero().tolist():
        limits = qaq.key_limit(tokens, 1.0, 300), qaq.value_limit(tokens, 1.0, float(attention_UT[head, token]))
        for x_UTD, limit in zip((ctx.k, ctx.v), limits, strict=True):
            x = x_UTD[head, token].numpy()
            bits = 4 if token > tokens - 5 else qaq.bits_of(x, limit, 2, 4, 0.01)
            total += qaq.token_bytes(x, bits, 0.01, 4)
    return total


STORES: dict[tuple[str, str, Any], Formula] = {
    **{("kivi", "bits", bits): kivi_bytes(bits) for bits in (2, 4, 8)},
    **{("think", "ratio", ratio): think_bytes(ratio) for ratio in (0.3, 0.4, 0.6)},
    ("qaq", "most", 4): qaq_bytes,
}


def kept(evicting: str, layers: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the tokens [U, T] that a method keeps of the first layer: 45 % of the prompt on average."""
    keep_UT = torch.zeros(HEADS, layers[0][1].shape[1], dtype=torch.bool)
    if not evicting:
        return ~keep_UT
    for head, positions in enumerate(kvbench.load_method(evicting).keep_layers(layers, budget=0.45)[0]):
        keep_UT[head, positions] = True
    return keep_UT


@pytest.mark.parametrize("tokens", [90, 420])
@pytest.mark.parametrize("evicting", ["", "snapkv", "ada_snapkv", "pyramidkv"])
@pytest.mark.parametrize("store", list(STORES), ids=lambda store: f"{store[0]}-{store[2]}")
@pytest.mark.parametrize("group", [1, 3, 4])
def test_resident_bytes_are_those_of_the_formula(
    group: int, store: tuple[str, str, Any], evicting: str, tokens: int
) -> None:
    """Equal to 1 %, at the end of the prompt and for what is allocated; keys differ in size from head to head."""
    draw = torch.Generator().manual_seed(group)
    layers = [
        tuple(torch.randn(heads, tokens, DIM, generator=draw) for heads in (group * HEADS, HEADS, HEADS))
        for _ in range(LAYERS)
    ]
    layers[0][1][0] *= 3
    keep_UT = kept(evicting, layers)  # type: ignore[arg-type]
    assert evicting != "ada_snapkv" or len(set(keep_UT.sum(1).tolist())) > 1, "heads are ragged"
    name, dial, value = store
    part = kvbench.load_method(name, **{dial: value}).store
    assert part is not None
    ctx = LayerContext(*layers[0])
    cache = RaggedCache(1)
    cache.add(0, [Entry(0, keep_UT, 0, store=part, side=part.prepare(ctx, keep_UT, ctx.k, ctx.v))], ctx.k, ctx.v)
    formula = STORES[store](ctx, keep_UT)
    assert cache.used_bytes(0) == pytest.approx(formula, rel=0.01)
    assert cache.bytes() == pytest.approx(formula, rel=0.01), "nothing is allocated in vain"
