"""Naive H2O with rolling positions: keys are held without rotation, and rotated by their places in every step."""

from __future__ import annotations

import numpy as np

from tests.reference import h2o_decode
from tests.reference.streaming import rotated


def attention(q_GD: np.ndarray, k_ND: np.ndarray, held: list[int], place: int) -> np.ndarray:
    """Return the attention [G, M] of queries at `place` of the cache to the tokens up to it."""
    keys = np.array([rotated(k_ND[token], i) for i, token in enumerate(held[: place + 1])])
    queries = np.array([rotated(q_D, place) for q_D in q_GD])
    weights = np.exp((logits := queries @ keys.T) - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def run(
    q_GND: np.ndarray, k_ND: np.ndarray, v_ND: np.ndarray, steps: list[int], heavy: int, recent: int
) -> tuple[list[np.ndarray], list[list[int]], list[list[float]]]:
    """Feed one KV head a prompt, then the tokens of each further step.

    Args:
        steps: tokens of the prompt, then of every step.

    Returns:
        After the prompt and after each step: the outputs [G, T, D] of its tokens, the positions that stay, and their
        accumulated attention, mean over the query heads.
    """
    held: list[int] = []
    sums: list[float] = []
    outs, states, scores, first = [], [], [], 0
    for tokens in steps:
        held, sums = held + list(range(first, first + tokens)), sums + [0.0] * tokens
        out = []
        for token in range(first, first + tokens):
            place = held.index(token)
            weights_GM = attention(q_GND[:, token], k_ND, held, place)
            out.append(weights_GM @ v_ND[held[: place + 1]])
            sums[: place + 1] = [a + w for a, w in zip(sums, weights_GM.mean(0).tolist(), strict=False)]
        held, sums = h2o_decode.evict(held, sums, heavy, recent)
        outs.append(np.stack(out, 1))
        states.append(held)
        scores.append(sums)
        first += tokens
    return outs, states, scores
