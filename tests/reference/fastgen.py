"""FastGen by hand (Ge et al. 2023, arXiv 2310.01801): whole attention maps, one KV head and one policy at a time.

Policies are numbered by cost: 0 special, 1 + punctuation, 2 + frequent, 3 + local, 4 full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def attention(q_HTD: Floats, k_UTD: Floats, head: int, scaling: float) -> Floats:
    """Return the causal attention [G, T, T] of the query heads of one KV head."""
    group, tokens = len(q_HTD) // len(k_UTD), q_HTD.shape[1]
    rows = []
    for q_TD in q_HTD[head * group : (head + 1) * group]:
        logits = q_TD @ k_UTD[head].T * scaling
        logits[np.triu_indices(tokens, 1)] = -np.inf
        weights = np.exp(logits - logits.max(1, keepdims=True))
        rows.append(weights / weights.sum(1, keepdims=True))
    return np.stack(rows)


def best(score: Sequence[float], among: Sequence[int], count: int) -> set[int]:
    """Return the `count` positions with the highest scores; of equals, the first."""
    return set(sorted(among, key=lambda j: (-score[j], j))[:count])


def mass_sets(mean: Floats, special: set[int], punctuation: set[int], frequent: float, local: float) -> list[set[int]]:
    """Return what each policy keeps after the last query, by cold-compress' rule."""
    tokens = len(mean)
    score = [float(mean[:, j].sum()) / (tokens - j) for j in range(tokens)]
    typed = special | punctuation
    recent = set(range(tokens - max(1, int(local * tokens)), tokens))
    sets = [special, typed]
    for taken in (typed, typed | recent):
        free = [j for j in range(tokens) if j not in taken]
        sets.append(taken | best(score, free, math.ceil(min(frequent * tokens, len(free)))))
    return [*sets, set(range(tokens))]


def mass(mean: Floats, sets: Sequence[set[int]], local: float) -> list[float]:
    """Return how much attention the average query gives to what each policy shows it."""
    tokens, out = len(mean), []
    near = max(1, int(local * tokens))
    for policy, kept in enumerate(sets):
        total = 0.0
        for query in range(tokens):
            shown = kept
            if policy == 3:
                shown = (kept - (set(range(tokens - near, tokens)) - sets[1])) | set(range(query - near + 1, query + 1))
            total += sum(float(mean[query, j]) for j in shown if 0 <= j <= query)
        out.append(total / tokens)
    return out


def element_sets(
    mean: Floats, special: set[int], punctuation: set[int], frequent: float, local: float
) -> list[set[int]]:
    """Return what each policy keeps, by the rule of adaptive_kv_cache."""
    tokens = len(mean)
    often = best(mean.sum(0).tolist(), range(tokens), int(frequent * tokens))
    recent = set(range(tokens - int(local * tokens), tokens))
    typed = special | punctuation
    return [special, typed, typed | often, typed | often | recent, set(range(tokens))]


def element_error(attention_GTT: Floats, kept: set[int]) -> float:
    """Return the largest change of a kept token's attention; 1 if nothing is kept."""
    worst = 0.0 if kept else 1.0
    for rows in attention_GTT:
        for query, row in enumerate(rows):
            shown = [j for j in sorted(kept) if j <= query]
            total = sum(row[j] for j in shown)
            worst = max([worst, *(abs(row[j] / total - row[j]) for j in shown)])
    return worst


def limit(policy: int, typed: int, tokens: int, kept: int, frequent: float, local: float) -> int | None:
    """Return how many tokens a head may hold, new punctuation apart; None for any number."""
    if policy == 4:
        return None
    shares = round(frequent * tokens) * (policy >= 2) + round(local * tokens) * (policy == 3)
    return max(kept, typed + shares)


def hold(
    held: list[int],
    policy: int,
    most: int | None,
    pinned: set[int],
    records: dict[int, list[float]],
    seen: int,
    near: int,
) -> list[int]:
    """Return what a head holds after a step; `records` has the attention that each token got since it arrived."""
    if most is None:
        return held
    free = [j for j in held if j not in pinned and j < seen - (near if policy == 3 else 0)]
    worth = {j: sum(records[j]) / len(records[j]) if policy >= 2 else j for j in free}
    gone = sorted(free, key=lambda j: (worth[j], -j))[: max(0, len(held) - most)]
    return [j for j in held if j not in gone]
