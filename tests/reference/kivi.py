"""Naive KIVI: the quantiser of one group, and which tokens are quantised at every moment."""

from __future__ import annotations

import numpy as np


def quantise_group(values: np.ndarray, bits: int) -> tuple[list[int], float, float]:
    """Return codes, scale and minimum of one group; halves round to even, a constant group gets code 0."""
    low, high = min(values), max(values)
    scale = (high - low) / (2**bits - 1)
    codes = []
    for x in values:
        steps = 0 if scale == 0 else round(float((x - low) / scale))
        codes.append(min(max(steps, 0), 2**bits - 1))
    return codes, float(scale), float(low)


def restore_group(codes: list[int], scale: float, low: float) -> np.ndarray:
    """Return the values that the codes stand for."""
    return np.array([code * scale + low for code in codes])


def quantise_keys(keys_TD: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Quantise and restore keys: groups of `group` consecutive tokens of one channel (T a multiple of `group`)."""
    out = np.zeros_like(keys_TD)
    for d in range(keys_TD.shape[1]):
        for t in range(0, keys_TD.shape[0], group):
            out[t : t + group, d] = restore_group(*quantise_group(keys_TD[t : t + group, d], bits))
    return out


def quantise_values(values_TD: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Quantise and restore values: groups of `group` channels of one token (D a multiple of `group`)."""
    out = np.zeros_like(values_TD)
    for t in range(values_TD.shape[0]):
        for d in range(0, values_TD.shape[1], group):
            out[t, d : d + group] = restore_group(*quantise_group(values_TD[t, d : d + group], bits))
    return out


def quantised_tokens(prompt: int, seen: int, residual: int) -> tuple[int, int]:
    """Return (quantised keys, quantised values) between steps, after `seen` tokens of which `prompt` came at once.

    Keys leave full precision in blocks of `residual`, values one by one; both oldest first.
    """
    keys = 0 if prompt < residual else prompt - prompt % residual
    values = 0 if prompt <= residual else prompt - residual
    for tokens in range(prompt + 1, seen + 1):
        if tokens - keys == residual:
            keys = tokens
        if tokens - values == residual + 1:
            values += 1
    return keys, values
