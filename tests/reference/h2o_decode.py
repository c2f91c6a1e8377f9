"""Naive H2O while decoding: accumulate attention, evict after every step."""

from __future__ import annotations

from collections.abc import Callable

from .select import best

Row = Callable[[list[int]], list[float]]


def evict(kept: list[int], acc: list[float], heavy: int, recent: int) -> tuple[list[int], list[float]]:
    """Keep the `heavy` slots with the largest sums outside the last `recent` slots, and those last ones."""
    n = len(kept)
    if n <= heavy + recent:
        return kept, acc
    slots = best(acc[: n - recent], heavy) + list(range(n - recent, n))
    return [kept[i] for i in slots], [acc[i] for i in slots]


def prefill(rows: list[list[float]], heavy: int, recent: int) -> tuple[list[int], list[float]]:
    """Add up the causal rows of one head, then evict once. Return (positions, accumulated scores)."""
    acc = [sum(row[j] for row in rows if j < len(row)) for j in range(len(rows))]
    return evict(list(range(len(rows))), acc, heavy, recent)


def step(
    kept: list[int], acc: list[float], position: int, row: Row, heavy: int, recent: int
) -> tuple[list[int], list[float]]:
    """Add a token at `position`; `row(positions)` gives its attention over the cache, itself last."""
    now = [*kept, position]
    weights = row(now)
    return evict(now, [w + a for w, a in zip(weights, [*acc, 0.0], strict=True)], heavy, recent)


def decode(
    rows: list[list[float]], row: Row, steps: int, heavy: int, recent: int
) -> list[tuple[list[int], list[float]]]:
    """Return the state after the prefill and after each of `steps` tokens."""
    states = [prefill(rows, heavy, recent)]
    for i in range(steps):
        states.append(step(*states[-1], len(rows) + i, row, heavy, recent))
    return states
