"""The greedy choice of tokens, and where an answer stops.

Shape suffixes: B rows, V vocabulary, P parts of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from kvbench.engine.row import Row

_REASON = {
    torch.float16: "torch.float16 may be too narrow for this model; try model.dtype=bfloat16 or float32",
    torch.bfloat16: "torch.bfloat16 may be too narrow for this model; try model.dtype=float32",
}
_OTHER = "the weights of the model, or a part of the method, give NaN or infinity; compare with method=fullkv"
_NOT_FINITE = -1  # stands for the token of a row whose logits are not finite


def best_tokens(logits_BV: Tensor) -> Tensor:
    """Return the greedy token of every row [B], or `_NOT_FINITE`, without waiting for the device.

    The first of equal logits counts. NaN counts as the largest, so a row that has one fails.

    The largest logit of each part of the vocabulary is found first: one search per row would occupy few of a GPU's
    multiprocessors. All operations can be recorded in a CUDA graph.
    """
    parts = _parts(logits_BV.shape[1])
    value_BP, place_BP = logits_BV.unflatten(1, (parts, -1)).max(-1)
    best_B1, part_B1 = value_BP.max(-1, keepdim=True)
    token_B1: Tensor = place_BP.gather(1, part_B1).add_(part_B1, alpha=logits_BV.shape[1] // parts)
    token_B1.masked_fill_(best_B1 - best_B1 != 0, _NOT_FINITE)  # inf - inf and NaN - NaN are NaN
    return token_B1[:, 0]


@lru_cache
def _parts(vocab: int) -> int:
    """Return the number of equal parts of a vocabulary: its largest divisor up to the square root."""
    return max(n for n in range(1, math.isqrt(vocab) + 1) if vocab % n == 0)


def is_free(row: Row) -> bool:
    """Return True if a row may choose any token next. A row may not stop before its least number of new tokens."""
    return len(row.ids) >= row.prompt.min_new_tokens


def choose(rows: Sequence[Row], logits_BV: Tensor) -> list[int]:
    """Return the greedy token of every row, or `_NOT_FINITE`. This waits for the device."""
    short = [i for i, row in enumerate(rows) if not is_free(row)]
    if short:
        logits_BV = logits_BV.clone()
        for i in short:
            logits_BV[i, sorted(rows[i].prompt.stop_ids)] = -torch.inf
    chosen: list[int] = best_tokens(logits_BV).tolist()
    return chosen


def take(row: Row, token: int, dtype: torch.dtype) -> None:
    """Add a chosen token to a row. The row's `finish` is set if it stops, and its `error` if it fails.

    Args:
        dtype: that of the model, for the error.
    """
    prompt = row.prompt
    if token == _NOT_FINITE:
        row.finish = "failed"
        row.error = f"the logits of token {len(row.ids) + 1} are not finite numbers: {_REASON.get(dtype, _OTHER)}"
    else:
        row.ids.append(token)
        if token in prompt.stop_ids and (len(row.ids) > 1 or prompt.first_may_stop):
            row.finish = "stop"
        elif len(row.ids) == row.max_new_tokens:
            row.finish = "length"
