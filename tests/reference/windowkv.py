"""WindowKV, naively: scores of windows, budgets of groups, and the windows that stay."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tests.reference import scores
from tests.reference.allocate import largest_remainder


def windows(tokens: int, size: int) -> list[list[int]]:
    """Return the tokens of each window; the last may be shorter."""
    return [list(range(begin, min(begin + size, tokens))) for begin in range(0, tokens, size)]


def window_scores(
    q_HTD: np.ndarray, k_UTD: np.ndarray, suffix: int, size: int, rule: str, scaling: float | None = None
) -> list[float]:
    """Return a score per window of the tokens before the last `suffix`."""
    mass_HN = scores.window_means(q_HTD, k_UTD, suffix, scaling=scaling) * suffix
    out = []
    for window in windows(mass_HN.shape[1], size):
        part = [sorted((float(head[j]) for j in window), reverse=True) for head in mass_HN]
        best = part if rule == "average" else [head[: max(1, size // 2)] for head in part]
        out.append(sum(map(sum, best)) / sum(map(len, best)))
    return out


def groups(layers: int, shared: int) -> list[int]:
    """Return the group of every layer; layers that are left over join the last group."""
    number = max(1, layers // shared)
    return [min(layer // shared, number - 1) for layer in range(layers)]


def reference_budgets(base: int, layers: int, shared: int, beta: int) -> list[int]:
    """Return the tokens of every layer in addition to the suffix, as the repository counts them."""
    of = groups(layers, shared)
    number = of[-1] + 1
    if number == 1:
        return [base] * layers
    last = base * shared // beta
    first = 2 * base - last
    step = (first - last) // (number - 1)
    table = [first, *(first - group * step for group in range(1, number - 1)), last]
    return [table[group] for group in of]


def exact_budgets(base: int, layers: int, shared: int, beta: int, most: int) -> list[int]:
    """Return budgets that add up to `base` per layer; what a full layer cannot take goes to the others."""
    of = groups(layers, shared)
    last = base * shared // beta if of[-1] else base
    first = 2 * base - last
    weights = [first - Fraction(group * (first - last), max(1, of[-1])) for group in of]
    wanted, full = base * layers, set[int]()
    while True:
        rest, mass = wanted - most * len(full), sum(w for i, w in enumerate(weights) if i not in full)
        parts = [
            Fraction(most) if i in full else Fraction(rest) * w / mass if mass else Fraction(rest, layers - len(full))
            for i, w in enumerate(weights)
        ]
        over = {i for i, part in enumerate(parts) if i not in full and part >= most}
        if not over:
            return largest_remainder(parts, wanted)
        full |= over


def whole_windows(scores_W: list[float], tokens: int, size: int, budget: int) -> list[int]:
    """Return the windows that stay by the repository's rule, the best first; all of them if the budget allows it."""
    order = sorted(range(len(scores_W)), key=lambda w: (-scores_W[w], w))
    if tokens <= budget:
        return order
    bottom = math.ceil((tokens - budget) / size)
    return [] if bottom * size >= tokens else order[:-bottom]


def with_part(scores_W: list[float], tokens: int, size: int, budget: int) -> list[int]:
    """Return `budget` tokens: the best windows, and the first tokens of the next one."""
    order = sorted(range(len(scores_W)), key=lambda w: (-scores_W[w], w))
    flat = [token for w in order for token in windows(tokens, size)[w]]
    return sorted(flat[:budget])
