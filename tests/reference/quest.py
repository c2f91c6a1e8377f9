"""Naive Quest: bounds of pages, and attention to the pages with the highest ones, one query head at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bounds(q_D: np.ndarray, k_ND: np.ndarray, page: int) -> list[float]:
    """Return the largest logit (without scaling) that a key of each page could have, channel by channel."""
    best = []
    for begin in range(0, len(k_ND), page):
        keys = k_ND[begin : begin + page]
        best.append(
            sum(max(q * min(k[c] for k in keys), q * max(k[c] for k in keys)) for c, q in enumerate(q_D.tolist()))
        )
    return best


def pages(q_D: np.ndarray, k_ND: np.ndarray, page: int, budget: int) -> list[int]:
    """Return the pages to read, best first; ties go to the earlier page. All if the budget covers all tokens."""
    bound_M = bounds(q_D, k_ND, page)
    count = len(bound_M) if len(k_ND) <= budget else max(3, budget // page)
    return sorted(range(len(bound_M)), key=lambda m: (-bound_M[m], m))[:count]


def attend(
    q_D: np.ndarray, k_ND: np.ndarray, v_ND: np.ndarray, read: Sequence[int], page: int, scaling: float
) -> np.ndarray:
    """Return the attention of one query to the tokens of some pages."""
    tokens = [n for n in range(len(k_ND)) if n // page in read]
    logits = [float(q_D @ k_ND[n]) * scaling for n in tokens]
    weights = [math.exp(x - max(logits)) for x in logits]
    return sum(w * v_ND[n] for w, n in zip(weights, tokens, strict=True)) / sum(weights)  # type: ignore[no-any-return]
