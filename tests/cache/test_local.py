"""Local layers against full attention under their mask.

Shape suffixes: H query heads, U KV heads, T tokens, S stored tokens, D head dimension.
"""

from __future__ import annotations

import pytest
import torch

from kvbench.cache.local import LocalLayer, LocalMask, attend_prompt, ring_slots

DIM = 16


@pytest.mark.parametrize("mask", [LocalMask(5), LocalMask(4, chunked=True), LocalMask(64)])
def test_local_layers_attend_to_the_tokens_of_their_mask(mask: LocalMask) -> None:
    """Local layers equal full attention under the mask while prompts of any length join, step and leave."""
    g = torch.Generator().manual_seed(6)
    layer, full = LocalLayer(mask), {}
    for row, tokens in enumerate((3, 17, 5)):
        q_1HTD, k, v = (torch.randn(1, heads, tokens, DIM, generator=g) for heads in (4, 2, 2))
        out = attend_prompt(q_1HTD, k, v, 0.3, mask)
        torch.testing.assert_close(out[0], masked_attention(q_1HTD[0], k[0], v[0], mask), rtol=1e-5, atol=1e-5)
        layer.add([2 * row], k, v)
        layer.fork(2 * row, [2 * row + 1])
        full |= dict.fromkeys((2 * row, 2 * row + 1), (k[0], v[0]))
    for rows, new, gone in (([0, 1, 2, 3, 4, 5], 1, [2]), ([4, 5], 3, []), ([0, 5, 3], 2, [0, 1]), ([3, 4, 5], 1, [])):
        q, k, v = (torch.randn(len(rows), heads, new, DIM, generator=g) for heads in (4, 2, 2))
        out = layer.attend(rows, q, k, v, 0.3)
        for i, row in enumerate(rows):
            full[row] = torch.cat([full[row][0], k[i]], 1), torch.cat([full[row][1], v[i]], 1)
            torch.testing.assert_close(out[i], masked_attention(q[i], *full[row], mask), rtol=1e-5, atol=1e-5)
        layer.release(gone)


def test_rows_have_as_many_slots_as_the_longest_needs() -> None:
    """No more than the window, and fewer again when a long row has left."""
    g, layer = torch.Generator().manual_seed(6), LocalLayer(LocalMask(100))

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(1, 2, count, DIM, generator=g)

    def width() -> int:
        assert layer._kv is not None
        return layer._kv[0].shape[2]

    layer.add([0], tokens(3), tokens(3))
    assert width() == ring_slots(3, 100) == 19
    layer.add([1, 2], tokens(60), tokens(60))
    assert width() == ring_slots(60, 100) == 76
    widths = set()
    for _ in range(60):
        new = tokens(1).expand(3, -1, -1, -1)
        layer.attend([0, 1, 2], new, new, new, 0.3)
        widths.add(width())
    assert widths == {76, ring_slots(77, 100), 100}
    layer.release([1, 2])
    assert width() == ring_slots(63, 100)
    layer.release([0])
    assert layer._kv is None


def masked_attention(q_HTD: torch.Tensor, k_USD: torch.Tensor, v_USD: torch.Tensor, mask: LocalMask) -> torch.Tensor:
    """Return attention of the T newest of S tokens under a local mask, computed over all tokens."""
    tokens, stored = q_HTD.shape[1], k_USD.shape[1]
    k_HSD, v_HSD = (x.repeat_interleave(q_HTD.shape[0] // len(x), 0) for x in (k_USD, v_USD))
    visible_TS = mask.visible(torch.arange(stored - tokens, stored)[:, None], torch.arange(stored))
    logits = (q_HTD @ k_HSD.transpose(1, 2) * 0.3).masked_fill(~visible_TS, -torch.inf)
    return logits.softmax(-1) @ v_HSD
