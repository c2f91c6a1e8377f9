"""Crossovers: the pool sizes at which a method becomes faster or slower than a full cache.

Needs the standard library only, because the GPU suite reads it too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEMORY = "memory"  # the pool of the full cache that is as large as the memory allows
FULL_CACHES = ("constrained", "unconstrained")
RATES = ("tokens_per_s", "request_tokens_per_s")
_WORDS = {"tokens_per_s": "decode steps", "request_tokens_per_s": "whole requests"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """The tokens per second of a method and of a full cache in a pool; 0 if no row fits into the pool."""

    pool: int
    method: float
    full: float

    @property
    def is_faster(self) -> bool:
        """True if the method is faster than the full cache."""
        return self.method > self.full


@dataclass(frozen=True)
class Crossing:
    """A change between two neighbouring pool sizes.

    Attributes:
        low, high: the measured sizes, in tokens.
        pool: the size in between at which both are equally fast, interpolated between the logarithms of sizes and
            ratios; None if no row fits in one of the two cells.
        below: True if the method is faster in smaller pools, False if it is faster in larger ones.
    """

    low: int
    high: int
    pool: int | None
    below: bool


@dataclass(frozen=True)
class Crossover:
    """The comparison of a method with one full cache over all measured pool sizes.

    Attributes:
        name, budget: the method.
        rate: "tokens_per_s" of decode steps, or "request_tokens_per_s" of whole requests.
        full: "constrained", in the same pool, or "unconstrained", in a pool as large as the memory allows.
        verdict: "always" faster, "never", "crosses", or "unknown" if there is no pool size to compare.
        least, most: the smallest and the largest size that was compared; None if there is none.
        crossings: the changes, by size.
    """

    context: int
    kernel: str
    name: str
    budget: str
    rate: str
    full: str
    verdict: str
    least: int | None
    most: int | None
    crossings: tuple[Crossing, ...]


def crossovers(rows: Iterable[Row]) -> list[Crossover]:
    """Compare every method of a table with both full caches, at each context length and kernel.

    Args:
        rows: rows with context, kernel, name, budget, full_cache, pool (tokens or `MEMORY`), status, and the rates.
    """
    results = []
    places: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        places.setdefault((row["context"], row["kernel"]), []).append(row)
    for (context, kernel), of_place in places.items():
        methods = dict.fromkeys((row["name"], row["budget"]) for row in of_place if not row["full_cache"])
        for name, budget in methods:
            own = [row for row in of_place if (row["name"], row["budget"]) == (name, budget) and not row["full_cache"]]
            for rate in RATES:
                for full in FULL_CACHES:
                    points = compared(own, of_place, rate, full)
                    changes = tuple(_crossings(points))
                    faster = {point.is_faster for point in points}
                    verdict = (
                        "unknown" if not points else "crosses" if changes else "always" if True in faster else "never"
                    )
                    least, most = (points[0].pool, points[-1].pool) if points else (None, None)
                    results.append(Crossover(context, kernel, name, budget, rate, full, verdict, least, most, changes))
    return results


def compared(own: Iterable[Row], rows: Iterable[Row], rate: str, full: str) -> list[Point]:
    """Return the points of a method by size, where both its rate and that of the full cache are known."""
    of_full = {row["pool"]: value for row in rows if row["full_cache"] and (value := rate_of(row, rate)) is not None}
    points = []
    for row in own:
        value, other = rate_of(row, rate), of_full.get(row["pool"] if full == "constrained" else MEMORY)
        if value is not None and other is not None and row["pool"] != MEMORY and value + other > 0:
            points.append(Point(row["pool"], value, other))
    return sorted(points, key=lambda point: point.pool)


def rate_of(row: Row, rate: str) -> float | None:
    """Return a rate of a row: 0 if not even one of its rows fits into the pool, None if nothing was measured."""
    return 0.0 if row["status"] == "no_room" else row.get(rate)


def _crossings(points: Sequence[Point]) -> Iterable[Crossing]:
    for low, high in itertools.pairwise(points):
        if low.is_faster != high.is_faster:
            yield Crossing(low.pool, high.pool, _between(low, high), low.is_faster)


def _between(low: Point, high: Point) -> int | None:
    """Return the size at which the ratio of the rates is 1."""
    if 0 in (low.method, low.full, high.method, high.full):
        return None
    first, last = math.log(low.method / low.full), math.log(high.method / high.full)
    share = first / (first - last)
    return round(math.exp(math.log(low.pool) + share * (math.log(high.pool) - math.log(low.pool))))


def in_words(crossover: Crossover, memory: str = "") -> str:
    """Return a comparison as half a sentence.

    Args:
        memory: what the unconstrained full cache is, in brackets.
    """
    full = "constrained" if crossover.full == "constrained" else f"unconstrained{memory}"
    if crossover.verdict == "unknown":
        return f"no comparison with the {full} full cache"
    over = f"from {size(crossover.least)} to {size(crossover.most)}"
    if crossover.verdict in ("always", "never"):
        return f"{crossover.verdict} faster than the {full} full cache, {over}"
    changes = " and ".join(_change(crossing) for crossing in crossover.crossings)
    return f"faster than the {full} full cache {changes}"


def _change(crossing: Crossing) -> str:
    side = "below" if crossing.below else "above"
    between = f"between {size(crossing.low)} and {size(crossing.high)}"
    return f"{side} a size {between}" if crossing.pool is None else f"{side} {size(crossing.pool)} ({between})"


def lines(comparisons: Sequence[Crossover], rows: Iterable[Row] = ()) -> list[str]:
    """Return a line for each method, rate, context length and kernel, with the comparison to both full caches."""
    table = list(rows)
    several = len({(crossover.context, crossover.kernel) for crossover in comparisons}) > 1
    by_line: dict[tuple[object, ...], list[Crossover]] = {}
    for crossover in comparisons:
        key = crossover.context, crossover.kernel, crossover.name, crossover.budget, crossover.rate
        by_line.setdefault(key, []).append(crossover)
    texts = []
    for (context, kernel, name, budget, rate), pair in by_line.items():
        at = f", context {context}, {kernel}" if several else ""
        label = f"{name}" if budget == "full" else f"{name}, {budget}"
        halves = "; ".join(in_words(crossover, _memory(crossover, table)) for crossover in pair)
        texts.append(f"{label}{at}, {_WORDS[str(rate)]}: {halves}.")
    return texts


def _memory(crossover: Crossover, rows: Iterable[Row]) -> str:
    """Return the rows and tokens of the unconstrained full cache that a method is compared with."""
    for row in rows:
        place = row["context"], row["kernel"], row["full_cache"], row["pool"]
        if place == (crossover.context, crossover.kernel, True, MEMORY) and row.get("pool_tokens"):
            return f" ({row['batch']} rows, {size(row['pool_tokens'])})"
    return ""


def size(tokens: int | None) -> str:
    """Return a number of tokens with three digits, in multiples of 1024 where it has more."""
    if tokens is None:
        return "–"
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= unit:
            shown = tokens / unit
            return f"{shown:.0f}{letter}" if shown >= 100 or shown == int(shown) else f"{shown:.3g}{letter}"
    return str(tokens)
