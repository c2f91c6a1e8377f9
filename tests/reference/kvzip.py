"""Naive KVzip: the most attention that any repeating query pays to a token, and one threshold for the whole model."""

from __future__ import annotations

import math

import numpy as np


def chunk_scores(
    q_HPD: np.ndarray, k_UTD: np.ndarray, k_UPD: np.ndarray, begin: int, end: int, sinks: int, scaling: float
) -> np.ndarray:
    """Return the scores [U, end - begin] of one chunk: each query sees the sinks, the chunk, and the pass up to it."""
    heads, group = len(k_UTD), len(q_HPD) // len(k_UTD)
    best_UN = np.zeros((heads, end - begin))
    for h, q_PD in enumerate(q_HPD):
        u = h // group
        old = [*k_UTD[u, :sinks], *k_UTD[u, begin:end]]
        for p, q in enumerate(q_PD):
            logits = [float(q @ key) * scaling for key in [*old, *k_UPD[u, : p + 1]]]
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            for n in range(end - begin):
                best_UN[u, n] = max(best_UN[u, n], weights[sinks + n] / sum(weights))
    return best_UN


def threshold(score_LUT: np.ndarray, budget: int, sinks: int) -> tuple[float, int]:
    """Return the lowest score that stays, and how many candidates stay, over all layers and heads."""
    layers, heads, _ = score_LUT.shape
    count = (budget - sinks) * layers * heads
    return float(np.sort(score_LUT[:, :, sinks:].ravel())[::-1][count - 1]), count
