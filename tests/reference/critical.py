"""CriticalKV's two stages, naively."""

from __future__ import annotations

import numpy as np


def output_norms(v_UTD: np.ndarray, weight_HDE: np.ndarray) -> np.ndarray:
    """Return the mean over a KV head's query heads of the sum of absolute outputs of each value: [U, T]."""
    group = len(weight_HDE) // len(v_UTD)
    norms = np.zeros(v_UTD.shape[:2])
    for u in range(len(v_UTD)):
        for t in range(v_UTD.shape[1]):
            outputs = [v_UTD[u, t] @ weight_HDE[u * group + i] for i in range(group)]
            norms[u, t] = sum(float(np.abs(out).sum()) for out in outputs) / group
    return norms


def stages(
    scores_S: np.ndarray, norms_S: np.ndarray, count: int, first: int, epsilon: float = 1e-4
) -> tuple[list[int], np.ndarray]:
    """Return the tokens of the first stage, and the scores by which all tokens are ranked after it."""
    order = sorted(range(len(scores_S)), key=lambda j: (-float(scores_S[j]), j))
    chosen = order[:first]
    second = (np.asarray(scores_S) + epsilon) * norms_S
    second[chosen] = np.inf
    return chosen, second
