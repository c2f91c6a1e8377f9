"""HeadKV's capacities, naively: a pool that is shared out by head scores, and a least number for every head."""

from __future__ import annotations

from fractions import Fraction

from tests.reference.allocate import largest_remainder


def query_head_capacities(means: list[float], base: int, beta: float, temp: float = 1) -> list[int]:
    """Return the capacity of every query head as HeadKV's repository computes it, before it clips to the prompt."""
    pool = base // beta * len(means)
    powers = [(mean / sum(means)) ** temp for mean in means]
    return [round(power / sum(powers) * pool + (base - base // beta)) for power in powers]


def reference(means: list[float], group: int, base: int, beta: float, candidates: int, temp: float = 1) -> list[int]:
    """Return the capacity of every KV head: the rounded mean of its query heads, at most all candidates."""
    caps = query_head_capacities(means, base, beta, temp)
    return [min(candidates, round(sum(caps[i : i + group]) / group)) for i in range(0, len(caps), group)]


def exact(means: list[float], group: int, base: int, beta: float, candidates: int, temp: float = 1) -> list[int]:
    """Return capacities that add up to `base` per KV head; what a full head cannot take goes to the others."""
    pool = Fraction(base // beta) * len(means)
    powers = [Fraction((mean / sum(means)) ** temp) if temp != 1 else Fraction(mean) for mean in means]
    least, total = Fraction(base) - Fraction(base // beta), sum(powers)
    shares = [power / total * pool + least for power in powers]
    weights = [sum(shares[i : i + group]) / group for i in range(0, len(shares), group)]
    wanted, full = base * len(weights), set[int]()
    while True:
        rest = wanted - candidates * len(full)
        mass = sum(w for i, w in enumerate(weights) if i not in full)
        parts = [Fraction(candidates) if i in full else rest * w / mass for i, w in enumerate(weights)]
        over = {i for i, part in enumerate(parts) if i not in full and part >= candidates}
        if not over:
            return largest_remainder(parts, wanted)
        full |= over
