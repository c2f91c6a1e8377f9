"""CORM after the prefill, naively: a token stays if one of the last queries gave it more than an average share."""

from __future__ import annotations

import numpy as np

from tests.reference.scores import attention_rows


def last_important(q_HTD: np.ndarray, k_UTD: np.ndarray, history: int, scaling: float | None = None) -> list[list[int]]:
    """Return, per KV head and token, the last query of the history that found it important; -1 for none."""
    heads, tokens, group = len(k_UTD), k_UTD.shape[1], len(q_HTD) // len(k_UTD)
    last = [[-1] * tokens for _ in range(heads)]
    for head in range(len(q_HTD)):
        rows = attention_rows(q_HTD, k_UTD, head, tokens - history, scaling)
        for query in range(tokens - history, tokens):
            for token in range(query + 1):
                if rows[query - tokens + history, token] >= 1 / (query + 1):
                    last[head // group][token] = max(last[head // group][token], query)
    return last


def keep(
    q_HTD: np.ndarray, k_UTD: np.ndarray, history: int, recent: int, scaling: float | None = None
) -> list[list[int]]:
    """Return the kept tokens of every KV head."""
    tokens = k_UTD.shape[1]
    if tokens <= history or tokens <= recent:
        return [list(range(tokens))] * len(k_UTD)
    last = last_important(q_HTD, k_UTD, history, scaling)
    return [[t for t in range(tokens) if row[t] >= 0 or t >= tokens - recent] for row in last]
