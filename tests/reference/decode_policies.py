"""Naive decode policies: one list of positions per KV head, one token at a time.

`weights[u][g]` is the attention of query head g of KV head u to the head's positions, itself last.
"""

from __future__ import annotations

from collections.abc import Sequence

Weights = Sequence[Sequence[Sequence[float]]]


def drop_worst(kept: list[int], worth: Sequence[float], count: int, free: Sequence[bool]) -> list[int]:
    """Drop the `count` positions worth least among the free ones; of equals, the latest."""
    order = sorted((i for i in range(len(kept)) if free[i]), key=lambda i: (worth[i], -kept[i]))
    gone = set(order[:count])
    return [position for i, position in enumerate(kept) if i not in gone]


def tova(heads: list[list[int]], weights: Weights, limit: int) -> list[list[int]]:
    """Drop what all heads together attend to least; all heads hold the same positions."""
    rows = [row for of_head in weights for row in of_head]
    mean = [sum(row[i] for row in rows) / len(rows) for i in range(len(heads[0]))]
    return [drop_worst(kept, mean, max(0, len(kept) - limit), [True] * len(kept)) for kept in heads]


def sliding(heads: list[list[int]], limit: int, sinks: int) -> list[list[int]]:
    """Keep the sinks and the newest positions."""
    out = []
    for kept in heads:
        first = [position for position in kept if position < sinks]
        rest = [position for position in kept if position >= sinks]
        out.append(first + rest[max(0, len(kept) - limit) :])
    return out


class ScopeSchedule:
    """SCOPE's budget of generated tokens, step by step: one list of counters, as its authors count.

    After every step, `window(held)` gives the budget if the step cuts, and None if it cuts nothing.
    """

    def __init__(self, tokens: int, recent: int, schedule: str, delta: int) -> None:
        self.tokens, self.recent, self.schedule, self.delta = tokens, recent, schedule, delta
        self.step = self.skipped = 0

    def window(self, held: int) -> int | None:
        """Return the budget after a step in which a head holds `held` generated tokens."""
        grown = min(self.tokens, self.recent + self.step // self.delta) if self.delta else self.tokens
        self.step += 1
        if self.schedule == "discontinuous" and held >= grown:
            if self.skipped < self.delta:
                self.skipped += 1
                return None
            self.skipped = 0
        return grown


def scope(heads: list[list[int]], weights: Weights, prompt: int, schedule: ScopeSchedule) -> list[list[int]]:
    """Freeze the prompt's positions; of the generated ones keep the newest and the best of this step."""
    window = schedule.window(sum(position >= prompt for position in heads[0]))
    out = []
    for kept, of_head in zip(heads, weights, strict=True):
        old = [position for position in kept if position < prompt]
        new = kept[len(old) :]
        if window is not None and len(new) > window:
            mean = [sum(row[len(old) + i] for row in of_head) / len(of_head) for i in range(len(new))]
            free = [i < len(new) - schedule.recent for i in range(len(new))]
            new = drop_worst(new, mean, len(new) - window, free)
        out.append(old + new)
    return out


def corm(
    heads: list[list[int]],
    weights: Weights,
    important: list[dict[int, list[int]]],
    seen: int,
    history: int,
    recent: int,
) -> list[list[int]]:
    """Drop positions that none of the last `history` queries found important; `important` is updated.

    `important[u][query]` lists the positions that the query found important.
    """
    out = []
    for u, (kept, of_head) in enumerate(zip(heads, weights, strict=True)):
        above = {p for row in of_head for p, w in zip(kept, row, strict=True) if w >= 1 / len(kept)}
        important[u][seen - 1] = sorted(above)
        wanted = {p for query in range(max(0, seen - history), seen) for p in important[u].get(query, [])}
        if seen <= history:
            wanted = set(kept)
        out.append([p for p in kept if p in wanted or p >= seen - recent])
    return out
