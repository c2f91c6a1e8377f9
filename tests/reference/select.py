"""Naive selection: which tokens a KV head keeps, and the comparison that forgives true ties only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Two scores closer than this (relative to the larger one) count as equal.
RTOL = {"float64": 1e-9, "float32": 1e-5}


def best(scores_S: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Return the `count` largest scores in ascending index order; ties go to the lower index."""
    order = sorted(range(len(scores_S)), key=lambda j: (-float(scores_S[j]), j))
    return sorted(order[:count])


def with_window(selected: list[int], tokens: int, window: int) -> list[int]:
    """Return selected tokens followed by the last `window` ones."""
    return selected + list(range(tokens - window, tokens))


def snapkv(scores_US: np.ndarray, tokens: int, window: int, count: int) -> list[list[int]]:
    """Return the `count` best tokens of every KV head plus the window."""
    return [with_window(best(row, count), tokens, window) for row in scores_US]


def h2o(sums_UT: np.ndarray, window: int, count: int) -> list[list[int]]:
    """Return the `count` heaviest tokens before the recent window, plus the window."""
    tokens = sums_UT.shape[1]
    return [with_window(best(row[: tokens - window], count), tokens, window) for row in sums_UT]


def streaming(tokens: int, budget: int, sinks: int) -> list[int]:
    """Return the first `sinks` tokens and the most recent ones."""
    return [j for j in range(tokens) if tokens <= budget or j < sinks or j >= tokens - (budget - sinks)]


def adaptive(scores_US: np.ndarray, tokens: int, window: int, caps: list[int]) -> list[list[int]]:
    """Return the `caps[u]` best tokens of every KV head u plus the window."""
    return [with_window(best(row, cap), tokens, window) for row, cap in zip(scores_US, caps, strict=True)]


def prefixkv(scores_T: np.ndarray, forget: int, start: int) -> list[int]:
    """Drop the `forget` least important tokens between the first `start` and the last one."""
    tokens = len(scores_T)
    candidates = scores_T[start : tokens - 1]
    kept = best(candidates, max(0, len(candidates) - forget))
    return list(range(start)) + [start + j for j in kept] + [tokens - 1]


def explain_mismatch(
    kept: Sequence[int], scores_S: Sequence[float] | np.ndarray, count: int, rtol: float
) -> str | None:
    """Explain what is wrong with `kept` as a choice of the `count` best scores up to ties; None if nothing is.

    Every score above the threshold (the count-th largest) must be kept, all others kept must equal it.
    """
    if len(set(kept)) != len(kept) or len(kept) != count:
        return f"kept {len(kept)} ({len(set(kept))} distinct) instead of {count}"
    if count == 0:
        return None
    scores = [float(x) for x in scores_S]
    threshold = sorted(scores, reverse=True)[count - 1]
    slack = rtol * abs(threshold)
    chosen = set(kept)
    missing = [j for j, x in enumerate(scores) if x > threshold + slack and j not in chosen]
    wrong = [j for j in chosen if scores[j] < threshold - slack]
    return f"missing {missing}, kept without reason {wrong}" if missing or wrong else None


def explain_tie_order(
    kept: Sequence[int], scores_S: Sequence[float] | np.ndarray, count: int, rtol: float
) -> str | None:
    """Explain which tied scores are kept in place of lower indices; None if the lowest are kept."""
    problem = explain_mismatch(kept, scores_S, count, rtol)
    if problem or count == 0:
        return problem
    scores = [float(x) for x in scores_S]
    threshold = sorted(scores, reverse=True)[count - 1]
    tied = [j for j, x in enumerate(scores) if abs(x - threshold) <= rtol * abs(threshold)]
    got = sorted(set(kept) & set(tied))
    return None if got == tied[: len(got)] else f"tied {tied}: kept {got} instead of {tied[: len(got)]}"
