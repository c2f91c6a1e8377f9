"""Naive StreamingLLM: keys are held without rotation, and rotated by their places in the cache in every step."""

from __future__ import annotations

import numpy as np


def rotated(x_D: np.ndarray, position: int, theta: float = 100.0) -> np.ndarray:
    """Return a vector rotated by its position, halves of the dimension as pairs."""
    half = len(x_D) // 2
    angle = position * theta ** (-np.arange(half) / half)
    a, b = x_D[:half], x_D[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def outputs(
    q_ND: np.ndarray, k_ND: np.ndarray, v_ND: np.ndarray, chunks: list[int], sinks: int, limit: int
) -> np.ndarray:
    """Return the attention output of every token of one head, fed in chunks; tokens leave after each chunk."""
    held: list[int] = []
    out = np.zeros_like(v_ND)
    first = 0
    for chunk in chunks:
        held += range(first, first + chunk)
        for token in range(first, first + chunk):
            place = held.index(token)
            query = rotated(q_ND[token], place)
            logits = np.array([rotated(k_ND[held[i]], i) @ query for i in range(place + 1)])
            weights = np.exp(logits - logits.max())
            out[token] = weights @ v_ND[held[: place + 1]] / weights.sum()
        held = [t for t in held if t < sinks] + [t for t in held if t >= sinks][max(0, len(held) - limit) :]
        first += chunk
    return out
