"""Drops at a fixed place of the cache, naively: one list of positions, one token at a time."""

from __future__ import annotations

from fractions import Fraction


def place_of(kept: int, distance: int) -> int:
    """Return the place of the token that leaves, among the `kept` tokens of the prompt."""
    if distance > 0:
        return min(kept, distance)
    return kept // 2 if kept + distance < 1 else kept + distance


def step(held: list[int], position: int, kept: int, span: int, place: int) -> list[int]:
    """Append a token to a cache that held `kept` of `span` tokens after the prefill; drop one above the drop ratio."""
    held = [*held, position]
    forget = int(len(held) - (position + 1) * Fraction(kept, span))
    return held[:place] + held[place + 1 :] if forget > 0 else held
