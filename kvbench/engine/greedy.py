"""The greedy choice of tokens, and where an answer stops.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.engine.row import Row

_NOT_FINITE = -1  # stands for the token of a row whose logits are not finite


def choose(rows: Sequence[Row], logits_BV: Tensor) -> list[int]:
    """Return the greedy token of every row, or `_NOT_FINITE`. This is the only wait for the device in a step.

    A row cannot choose a stop before it has its least number of new tokens.
    """
    short = [i for i, row in enumerate(rows) if len(row.ids) < row.prompt.min_new_tokens]
    if short:
        logits_BV = logits_BV.clone()
        for i in short:
            logits_BV[i, sorted(rows[i].prompt.stop_ids)] = -torch.inf
    best_B = logits_BV.argmax(-1)  # the index of a NaN, if there is one
    finite_B = logits_BV.gather(1, best_B[:, None])[:, 0].isfinite()
    chosen: list[int] = torch.where(finite_B, best_B, _NOT_FINITE).tolist()
    return chosen


def take(row: Row, token: int, dtype: torch.dtype) -> None:
    """Add a chosen token to a row. The row's `finish` is set if it stops, and its `error` if it fails.

    Args:
        dtype: that of the model, for the error.
    """
    prompt = row.prompt
    if token == _NOT_FINITE:
        row.finish = "failed"
        row.error = (
            f"the logits of token {len(row.ids) + 1} are not finite numbers: {dtype} may be too "
            "narrow for this model; try model.dtype=bfloat16 or float32"
        )
    else:
        row.ids.append(token)
        if token in prompt.stop_ids and (len(row.ids) > 1 or prompt.first_may_stop):
            row.finish = "stop"
        elif len(row.ids) == row.max_new_tokens:
            row.finish = "length"
