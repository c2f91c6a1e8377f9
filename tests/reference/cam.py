"""Naive CaM while decoding: a token that leaves hands its value, in parts, to those that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Uniform = Callable[[int], float]
"""The random number of the token at a position."""

MASK = 2**64 - 1


def uniform(*counters: int) -> float:
    """Return a number in [0, 1) by SplitMix64, from 24 bits."""
    x = 0
    for counter in counters:
        x = ((x ^ counter) + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        x ^= x >> 31
    return ((x >> 40) % 2**24) / 2**24


def chance(own: float, followers: Sequence[float]) -> float:
    """Return the probability that a token is merged into its followers, from their accumulated attention."""
    mean = sum(followers) / max(1, len(followers))
    if mean == 0:
        return 0.0 if own == 0 else 1.0
    return min(1.0, own / mean)


def merge(
    before: Sequence[int],
    after: Sequence[int],
    attention: dict[int, float],
    values: dict[int, list[float]],
    budget: int,
    draw: Uniform,
) -> None:
    """Change the values of one head in place: tokens of `before` that are not in `after` hand theirs on."""
    for position in [p for p in sorted(before) if p not in after]:
        followers = [p for p in sorted(after) if p > position][:budget]
        if draw(position) < chance(attention[position], [attention[p] for p in followers]):
            for p in followers:
                shares = zip(values[p], values[position], strict=True)
                values[p] = [old + more / len(followers) for old, more in shares]


def forward(
    attention: Sequence[float],
    values: Sequence[Sequence[float]],
    window: int,
    start: int,
    draw: Sequence[float],
    gives: Sequence[bool],
) -> list[list[float]]:
    """Return the values of one head of a prompt, after tokens handed theirs on to the next `window` ones.

    `attention` is the mean of the last queries; the first `start` and the last `window` tokens give nothing.
    """
    merged = [list(value) for value in values]
    for at in range(start, len(values) - window):
        most = max([*attention[:start], *attention[at : at + window]])
        if most > 0 and gives[at] and draw[at] < attention[at] / most:
            for other in range(at + 1, at + window + 1):
                merged[other] = [old + more / window for old, more in zip(merged[other], merged[at], strict=True)]
    return merged
