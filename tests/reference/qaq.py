"""Naive QAQ: the outliers, the bits, and the restored numbers of one token of one KV head."""

from __future__ import annotations

import math

import numpy as np


def outliers(x_D: np.ndarray, share: float) -> set[int]:
    """Return the places of the numbers that stay in full precision."""
    if share == 0:
        return set()
    ordered, count = sorted(x_D), len(x_D)
    low = ordered[math.ceil(share / 2 * count) - 1]
    high = ordered[math.floor((1 - share / 2) * count) - 1]
    places = {d for d, x in enumerate(x_D) if x <= low or x > high}
    return set() if len(places) == count else places


def unit_outliers(x_UD: np.ndarray, share: float) -> list[set[int]]:
    """Return the places of the outliers in each head of a token whose heads are quantised together (level layer)."""
    dim = x_UD.shape[1]
    places = outliers(x_UD.flatten(), share)
    return [{place - head * dim for place in places if place // dim == head} for head in range(len(x_UD))]


def restore_unit(x_UD: np.ndarray, bits: int, share: float) -> np.ndarray:
    """Return the restored numbers [U, D] of a token whose heads are quantised together."""
    return restore(x_UD.flatten(), bits, share)[1].reshape(x_UD.shape)


def key_limit(tokens: int, error: float, q_norm: float) -> float:
    """Return the largest error of a number of a key."""
    return math.sqrt(12 / q_norm * math.log(tokens**3 / (tokens - 1) * error**2 + 1))


def value_limit(tokens: int, error: float, attention: float) -> float:
    """Return the largest error of a number of a value, given the most attention that a late query pays to it."""
    return math.sqrt(12 / tokens) * error / attention


def bits_of(x_D: np.ndarray, limit: float, least: int, most: int, share: float, symmetric: bool = False) -> int:
    """Return the bits of a token."""
    rest = [float(x) for d, x in enumerate(x_D) if d not in outliers(x_D, share)]
    width = 2 * max(map(abs, rest)) if symmetric else max(rest) - min(rest)
    return min(max(math.ceil(math.log2(width / (2 * limit) + 1)), least), most)


def restore(x_D: np.ndarray, bits: int, share: float, symmetric: bool = False) -> tuple[dict[int, int], np.ndarray]:
    """Return the codes by place, outliers left out, and the restored numbers. Without bits there is only the mean."""
    gone = outliers(x_D, share)
    rest = [float(x) for d, x in enumerate(x_D) if d not in gone]
    mean = 0.0 if symmetric else sum(rest) / len(rest)
    scale = (2 * max(map(abs, rest)) if symmetric else max(rest) - min(rest)) / 2**bits
    codes, out = {}, np.array(x_D, dtype=float)
    for d, x in enumerate(x_D):
        if d not in gone:
            steps = 0 if scale == 0 else round((float(x) - mean) / scale)
            codes[d] = 0 if bits == 0 else min(max(steps, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
            out[d] = codes[d] * scale + mean
    return codes, out


def token_bytes(x_D: np.ndarray, bits: int, share: float, itemsize: int, symmetric: bool = False) -> int:
    """Return the bytes of a token: codes, outliers with a byte for their place, scale and mean, bits, and its place."""
    rows = math.ceil(len(x_D) * bits / 8) + len(outliers(x_D, share)) * (1 + itemsize)
    return rows + (1 if symmetric else 2) * itemsize + 1 + 6
