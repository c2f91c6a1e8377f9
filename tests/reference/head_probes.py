"""The scores of HeadKV's probes, naively: loops over steps, layers, heads and positions, as in Important_Head."""

from __future__ import annotations

from collections.abc import Sequence

Weights = Sequence[Sequence[Sequence[Sequence[float]]]]
"""Attention of a decode step, by step, layer, head and key."""


def naive_scores(
    probe: str, steps: Weights, tokens: Sequence[int], ids: Sequence[int], needle: tuple[int, int]
) -> list[list[float]]:
    """Return the score of every layer and head for one answer."""
    begin, end = needle
    length = end - begin
    total = [[0.0 for _ in layer] for layer in steps[0]]
    for token, step in zip(tokens, steps, strict=True):
        for i, layer in enumerate(step):
            for j, weights in enumerate(layer):
                order = sorted(range(len(weights)), key=lambda place: -weights[place])
                if probe == "retrieval":
                    place = order[0]
                    if begin <= place < end and ids[place] == token:
                        total[i][j] += 1 / length
                else:
                    for place in order[:length]:
                        if begin <= place < end:
                            total[i][j] += weights[place] / length
    return total
