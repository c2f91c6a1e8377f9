"""Naive budget rules: tokens per layer (pyramid, prefix) and per head (adaptive).

"Reference" rules repeat the integer arithmetic of the published code; "real" rules return exact fractions,
which a largest-remainder rounding then turns into integers. `base` is always the budget without the window.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def as_fraction(value: float) -> Fraction:
    """Return the decimal that a person typed: 0.2 is 1/5, not the nearest binary number."""
    return Fraction(repr(value))


def largest_remainder(real: list[Fraction], total: int) -> list[int]:
    """Round down, then give the missing units to the largest fractions, the lower index first."""
    out = [math.floor(x) for x in real]
    order = sorted(range(len(real)), key=lambda i: (-(real[i] - out[i]), i))
    for i in order[: total - sum(out)]:
        out[i] += 1
    return out


def is_largest_remainder(got: list[int], real: list[Fraction], total: int, slack: float = 1e-9) -> bool:
    """Return True if `got` sums to `total` and no unit could move to a share that is owed more.

    Exact ties may fall either way (`slack`), because decimals such as 0.2 have no exact binary form.
    """
    over = [float(g - x) for g, x in zip(got, real, strict=True)]
    return sum(got) == total and max(over) - min(over) <= 1 + slack


def pyramid_ends(base: int, beta: int, scored: int) -> tuple[int, int]:
    """Return the tokens selected in the last and in the first layer (min, max); `scored` = tokens before the window."""
    low = base // beta
    high = 2 * base - low
    if high >= scored:
        high = scored
        low = 2 * base - high
    return low, high


def pyramid_reference(base: int, beta: int, tokens: int, window: int, layers: int, middle: bool = True) -> list[int]:
    """Return selected tokens per layer as KVCache-Factory counts: floored step, uniform when tokens < 2 * base.

    `middle=False` leaves that branch out, as the AdaKV code does. One layer gets `base`.
    """
    if layers == 1 or (middle and tokens < 2 * base):
        return [base] * layers
    low, high = pyramid_ends(base, beta, tokens - window)
    step = (high - low) // (layers - 1)
    return [high - layer * step for layer in range(layers)]


def pyramid_real(base: int, beta: int, tokens: int, window: int, layers: int, middle: bool = True) -> list[Fraction]:
    """Return the line from max to min in exact fractions; its sum is layers * base."""
    if layers == 1 or (middle and tokens < 2 * base):
        return [Fraction(base)] * layers
    low, high = pyramid_ends(base, beta, tokens - window)
    return [high - Fraction(layer * (high - low), layers - 1) for layer in range(layers)]


def normalised(scores_US: np.ndarray, base: int) -> np.ndarray:
    """Weigh every head by the share of its mass that its best `base` tokens hold: an option of Ada-KV."""
    out = np.array(scores_US, dtype=np.float64)
    for u in range(out.shape[0]):
        best = sorted(scores_US[u], reverse=True)[:base]
        out[u] *= sum(best) / sum(scores_US[u])
    return out


def adaptive_counts(scores_US: np.ndarray, picks: int) -> list[int]:
    """Count how many of the `picks` best entries of all heads each head holds (lower head first in ties)."""
    heads, size = scores_US.shape
    entries = [(-scores_US[u, j], u, j) for u in range(heads) for j in range(size)]
    counts = [0] * heads
    for _, u, _ in sorted(entries)[:picks]:
        counts[u] += 1
    return counts


def adaptive_reference(counts: list[int], base: int, floor: float) -> list[int]:
    """Return the caps of the AdaKV code: truncated floor, float32 arithmetic, halves rounded to even."""
    kept_floor = int(base * floor)
    shares = np.asarray(counts, dtype=np.float32) * np.float32(1 - floor) + np.float32(kept_floor)
    return [int(x) for x in np.rint(shares)]


def adaptive_real(counts: list[int], base: Fraction, floor: float) -> list[Fraction]:
    """Return the mix in exact fractions; its sum is the sum of `counts` if that is heads * base."""
    alpha = as_fraction(floor)
    return [(1 - alpha) * count + alpha * base for count in counts]


def prefix_search(layer_scores: list[np.ndarray], budget: int, start: int) -> tuple[list[int], int, list]:
    """Search as PrefixKV does. Return (forget per layer before rescaling, target, trace of (p, forget)).

    All layers keep the same cumulative share p of their sorted importance; `start` first tokens and the last
    one are protected. Stops when the total is within 5 tokens of the target, at the latest after 60 steps.
    """
    tokens = len(layer_scores[0])
    target = len(layer_scores) * (tokens - budget)
    cdfs = []
    for scores in layer_scores:
        ordered = sorted((float(x) for x in scores), reverse=True)
        cdfs.append(np.cumsum(np.array(ordered) / sum(ordered)))
    left, right, trace, forget = 0.0, 1.0, [], [0] * len(cdfs)
    for _ in range(60):
        p = (left + right) / 2
        forget = []
        for cdf in cdfs:
            kept = sum(1 for x in cdf if x < p) + 1
            forget.append(max(0, tokens - kept - (start + 1)))
        trace.append((p, forget))
        if abs(sum(forget) - target) < 5:
            break
        if sum(forget) < target:
            right = p
        else:
            left = p
    return forget, target, trace


def prefix_real(layer_scores: list[np.ndarray], budget: int, start: int) -> list[Fraction]:
    """Return rescaled drops per layer as exact fractions (sum: the target); may exceed what a layer can drop."""
    forget, target, _ = prefix_search(layer_scores, budget, start)
    return [Fraction(f * target, max(1, sum(forget))) for f in forget]


def prefix_reference(layer_scores: list[np.ndarray], budget: int, start: int) -> list[int]:
    """Return drops per layer with the published truncation."""
    return [math.floor(x) for x in prefix_real(layer_scores, budget, start)]
