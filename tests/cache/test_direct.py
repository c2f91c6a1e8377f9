"""Keys that are multiplied as they are stored, against the masked cache, which decodes every token.

Shape suffixes: U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

import pytest
import torch

import kvbench
from kvbench.cache import direct
from kvbench.cache.base import Entry
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from kvbench.methods.store.think import Think

HEADS, DIM = 3, 16


def entries(store: Think, rows: int, reserve: int, alike: bool) -> tuple[list[Entry], torch.Tensor, torch.Tensor]:
    """Return rows of one prompt, each with tokens of its own or all alike, and the prompt's keys and values."""
    draw = torch.Generator().manual_seed(rows)
    q, k, v = (torch.randn(heads, 60, DIM, generator=draw) for heads in (2 * HEADS, HEADS, HEADS))
    ctx, out = LayerContext(q, k, v), []
    for row in range(rows):
        keep_UT = torch.ones(HEADS, 60, dtype=torch.bool)
        if not alike:
            keep_UT = torch.rand(HEADS, 60, generator=draw) < torch.rand(HEADS, 1, generator=draw)
        out.append(Entry(row, keep_UT, reserve, store=store, side=store.prepare(ctx, keep_UT, k, v)))
    return out, k, v


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("recent", [0, 5, 80])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_decoding_changes_nothing(group: int, recent: int, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of any lengths and in any order, after some have left; steps of any size; more tokens than reserved."""
    calls = []
    real = direct.attend
    monkeypatch.setattr(direct, "attend", lambda *args: calls.append(len(args)) or real(*args))
    held, k, v = entries(Think(ratio=0.4, queries=8, recent=recent), 5, 6, alike)
    caches = RaggedCache(1), MaskedCache(1)
    for cache in caches:
        cache.add(0, held, k, v)
    draw = torch.Generator().manual_seed(group)
    steps = [([0, 1, 2, 3, 4], 1), ([3, 0, 4], 4), ([3, 0, 4], 1), ([4, 3], 1), ([3, 4], 9), ([3, 4], 1)]
    for rows, tokens in steps:
        shapes = (len(rows), group * HEADS, tokens, DIM), *[(len(rows), HEADS, tokens, DIM)] * 2
        new = [torch.randn(*shape, generator=draw) for shape in shapes]
        ours, other = (cache.attend(0, rows, *new, 0.25) for cache in caches)
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
        gone = [row for row in range(5) if row not in rows]
        for cache in caches:
            cache.release(gone)
    assert len(calls) == len(steps)


def test_segments_that_are_alike_are_multiplied_together() -> None:
    held, k, v = entries(Think(ratio=0.4, queries=8, recent=5), 4, 6, alike=True)
    cache = RaggedCache(1)
    cache.add(0, held, k, v)
    _, rows = cache._layers[0].values()
    part = rows._parts[0]  # type: ignore[union-attr]
    assert list(direct._runs(part.keys, part.values, range(12))) == [list(range(12))]
    assert list(direct._runs(part.keys, part.values, [3, 4, 5, 0, 1, 2])) == [[0, 1, 2], [3, 4, 5]]
    assert direct.supports(part.keys, part.values) and not direct.supports(part.values, part.keys)
    kivi = kvbench.load_method("kivi").store
    assert kivi is not None and not any(half.multiplies for half in kivi.halves if half is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_logits_of_16_bit_keys_are_not_rounded(dtype: torch.dtype) -> None:
    """Products in bfloat16 round a logit of 250 by up to 0.5, which changes a weight by half."""
    held, k, v = entries(Think(ratio=0.4, queries=8, recent=5), 2, 6, alike=False)
    k, v = (4 * k).to(dtype), v.to(dtype)
    ragged, masked = RaggedCache(1), MaskedCache(1)
    draw = torch.Generator().manual_seed(1)
    new = [torch.randn(2, heads, 1, DIM, generator=draw).to(dtype) for heads in (2 * HEADS, HEADS, HEADS)]
    new[0] *= 16
    ragged.add(0, held, k, v)
    masked.add(0, held, k, v)
    ours = ragged.attend(0, [0, 1], *new, 0.25)
    exact = masked.attend(0, [0, 1], *new, 0.25)
    torch.testing.assert_close(ours.float(), exact.float(), atol=0.03, rtol=0.03)
