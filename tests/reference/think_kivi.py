"""Naive ThinK + KIVI: keys that lose channels before KIVI quantises them; the plain ones stay whole."""

from __future__ import annotations

import numpy as np

from tests.reference import kivi, think


def restored(
    keys_TD: np.ndarray, values_TD: np.ndarray, kept: int, channels: list[int], bits: int, group: int, residual: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return one head's keys and values as attention reads them; the first `kept` tokens are of the prompt."""
    old_keys, old_values = kivi.quantised_tokens(kept, len(keys_TD), residual)
    keys, values = keys_TD.copy(), values_TD.copy()
    keys[:old_keys] = 0
    keys[:old_keys, channels] = kivi.quantise_keys(keys_TD[:old_keys, channels], bits, group)
    values[:old_values] = kivi.quantise_values(values_TD[:old_values], bits, group)
    return keys, values


def channel_weights(queries_HWD: np.ndarray, keys_UND: list[np.ndarray], residual: int) -> np.ndarray:
    """Return [U, D]: the weights of ThinK, by the kept keys that are quantised; by all if none are."""
    old = [keys[: kivi.quantised_tokens(len(keys), len(keys), residual)[0] or len(keys)] for keys in keys_UND]
    return think.channel_weights(queries_HWD, old)


def head_bytes(kept: int, dim: int, ratio: float, bits: int, group: int, residual: int, itemsize: int) -> float:
    """Return the bytes of one head at the end of a prompt, with a 16-bit index for each channel that stays."""
    keys, values = kivi.quantised_tokens(kept, kept, residual)
    stay, code = dim - int(ratio * dim), bits / 8 + 2 * itemsize / group
    return (keys * stay + values * dim) * code + (2 * kept - keys - values) * dim * itemsize + 2 * stay
