"""CSP's two scores and its selection, naively: loops over queries and tokens."""

from __future__ import annotations

import math

import numpy as np


def region_scores(
    q_HTD: np.ndarray, k_UTD: np.ndarray, asks_T: list[bool], queries: int, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return what every token gets from the last queries of its own region, and of the other one: [H, T] each."""
    heads, tokens = q_HTD.shape[:2]
    group = heads // len(k_UTD)
    within, across = np.zeros((heads, tokens)), np.zeros((heads, tokens))
    for h in range(heads):
        for i in range(tokens - queries, tokens):
            powers = [math.exp(float(q_HTD[h, i] @ k_UTD[h // group, j]) * scaling) for j in range(i + 1)]
            for j, power in enumerate(powers):
                target = within if asks_T[i] == asks_T[j] else across
                target[h, j] += power / (1 + sum(powers))
    return within, across


def chosen(
    within_N: np.ndarray, across_N: np.ndarray, count: int, ratio: float, reference: bool = False
) -> tuple[list[int], list[int]]:
    """Return the tokens that a head takes by the first score, and those by the second."""
    by_across = int(count * ratio)
    by_within = int(count * (1 - ratio)) if reference else count - by_across

    def best(scores: np.ndarray, number: int, without: list[int]) -> list[int]:
        left = [j for j in range(len(scores)) if j not in without]
        return sorted(left, key=lambda j: (-float(scores[j]), j))[:number]

    first = best(within_N, by_within, [])
    return first, best(across_N, by_across, [] if reference else first)
