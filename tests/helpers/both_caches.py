"""The ragged and the masked cache must do the same in the same steps.

Shape suffixes: U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.cache.base import KVCache
from kvbench.cache.ragged import RaggedCache


def check_steps(
    ragged: RaggedCache,
    masked: KVCache,
    g: torch.Generator,
    shape: Sequence[int],
    steps: Sequence[int],
    near: Sequence[float],
    *,
    leaves: int,
    tolerance: float,
) -> None:
    """Compare five rows of one layer up to a step with a decision that float32 may take either way.

    Args:
        shape: [U, T, D] of the prompt's keys.
        steps: new tokens of each step.
        near: the margins of the decisions so far; see `tests.helpers.margins`.
        leaves: after this number of steps a row leaves, again and again.
        tolerance: of the attention, absolute and relative.
    """
    heads, _, dim = shape
    active = [3, 0, 1, 4, 2]
    for number, new in enumerate(steps):
        q_BHTD = torch.randn(len(active), heads * 2, new, dim, generator=g)
        k_BUTD, v_BUTD = (torch.randn(len(active), heads, new, dim, generator=g) for _ in range(2))
        outs: list[Tensor] = [cache.attend(0, active, q_BHTD, k_BUTD, v_BUTD, 0.3) for cache in (ragged, masked)]
        if min(near) < 1e-5:
            return
        torch.testing.assert_close(outs[0], outs[1], rtol=tolerance, atol=tolerance)
        for row in active:
            assert ragged.lengths(row) == masked.lengths(row)
            assert ragged.peak(row) == masked.peak(row)
            assert ragged.used_bytes(row) + ragged.slack_bytes(row) <= ragged.bytes()
        if number % leaves == leaves - 1:
            gone = active.pop(number % len(active))
            for cache in (ragged, masked):
                cache.release([gone])
