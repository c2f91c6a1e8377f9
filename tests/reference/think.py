"""Naive ThinK: the weight of each channel, and the channels that are dropped."""

from __future__ import annotations

import numpy as np


def channel_weights(queries_HWD: np.ndarray, keys_UND: list[np.ndarray]) -> np.ndarray:
    """Return [U, D]: mean squared query times mean squared kept key, channel by channel.

    Query heads of a group count by the mean of their mean squares.
    """
    heads, group = len(keys_UND), len(queries_HWD) // len(keys_UND)
    out = np.zeros((heads, queries_HWD.shape[2]))
    for u in range(heads):
        for d in range(queries_HWD.shape[2]):
            of_group = []
            for h in range(u * group, (u + 1) * group):
                of_group.append(sum(float(q[d]) ** 2 for q in queries_HWD[h]) / len(queries_HWD[h]))
            keys = sum(float(k[d]) ** 2 for k in keys_UND[u]) / len(keys_UND[u])
            out[u, d] = sum(of_group) / group * keys
    return out


def dropped(weights_D: np.ndarray, ratio: float) -> tuple[set[int], set[int], int]:
    """Return the channels that must be dropped, those that may be instead of each other (ties), and how many are."""
    count = int(len(weights_D) * ratio)
    limit = sorted(weights_D)[count - 1]
    must = {d for d, weight in enumerate(weights_D) if weight < limit}
    return must, {d for d, weight in enumerate(weights_D) if weight == limit}, count


def pruned_tokens(kept: int, recent: int) -> int:
    """Return how many of the oldest kept tokens of a prompt lose channels; generated tokens never do."""
    return kept - recent if kept > recent else 0
