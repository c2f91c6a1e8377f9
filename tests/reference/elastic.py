"""Elastic Cache's merge, naively: a dropped token joins the nearest kept one."""

from __future__ import annotations

import numpy as np


def merged(x_TD: np.ndarray, kept: list[int], sinks: int, window: int, into: str = "selected") -> np.ndarray:
    """Return the tokens of one head after the merge; rows that are not kept mean nothing."""
    tokens = len(x_TD)
    targets = [t for t in kept if into == "kept" or sinks <= t < tokens - window]
    members: dict[int, list[int]] = {t: [t] for t in kept}
    for token in range(tokens):
        if token not in members and targets:
            members[min(targets, key=lambda t: (abs(t - token), t))].append(token)
    out = x_TD.copy()
    for place, inside in members.items():
        out[place] = sum(x_TD[i] for i in inside) / len(inside)
    return out
