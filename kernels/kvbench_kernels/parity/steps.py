"""Comparisons of the small ops between the products of a decode step, and of the products."""

from __future__ import annotations

import math

import torch

from kvbench_kernels.parity.inputs import error, normal, same, wider
from kvbench_kernels.parity.rounded import rms_norm, rounded, turned
from kvbench_kernels.parity.rounded import silu_mul as rounded_silu_mul


def add_rms_norm(device: torch.device, seed: int, dtype: torch.dtype, size: int, added: bool) -> float:
    """Compare `add_rms_norm`; the residual stream and x are slices of wider rows."""
    g = torch.Generator().manual_seed(seed)
    residual_NC, x_NC = (normal(g, 3, size + 8, dtype=dtype)[:, :size] for _ in range(2))
    weight_C = normal(g, size, dtype=dtype)
    stream = wider(residual_NC, device, dtype)
    other = wider(x_NC, device, dtype) if added else None
    out = torch.ops.kvb.add_rms_norm(stream, other, weight_C.to(device, dtype), 1e-5)
    sum_NC = rounded(residual_NC + x_NC, dtype) if added else residual_NC
    exact = rms_norm(sum_NC, weight_C, 1e-5, dtype)
    return error(out, exact) if same(stream, sum_NC) else math.inf


def rope(device: torch.device, seed: int, dtype: torch.dtype, dim: int, normed: bool) -> float:
    """Compare `rope`; queries and keys are slices of the same rows, as after one product."""
    g = torch.Generator().manual_seed(seed)
    both_NHD = normal(g, 3, 6 + 2 + 1, dim, dtype=dtype)
    cos_ND, sin_ND = (normal(g, 3, dim, dtype=dtype).clamp(-1, 1) for _ in range(2))
    q_weight, k_weight = (normal(g, dim, dtype=dtype) if normed else None for _ in range(2))
    actual = both_NHD.to(device, dtype, copy=True)
    on_device = [None if x is None else x.to(device, dtype) for x in (cos_ND, sin_ND, q_weight, k_weight)]
    torch.ops.kvb.rope(actual[:, :6], actual[:, 6:8], *on_device, 1e-6)
    parts = zip(both_NHD.split((6, 2, 1), dim=1), (q_weight, k_weight), strict=False)
    exact_NHD = torch.cat([turned(x_NHD, cos_ND, sin_ND, weight, 1e-6, dtype) for x_NHD, weight in parts], dim=1)
    return error(actual[:, :8], exact_NHD) if same(actual[:, 8:], both_NHD[:, 8:]) else math.inf


def silu_mul(device: torch.device, seed: int, dtype: torch.dtype, size: int) -> float:
    """Compare `silu_mul`; gate and up are halves of the same rows, as after one product."""
    g = torch.Generator().manual_seed(seed)
    both_NF = 4 * normal(g, 3, 2 * size, dtype=dtype)
    gate_NF, up_NF = both_NF.to(device, dtype).chunk(2, dim=1)
    return error(torch.ops.kvb.silu_mul(gate_NF, up_NF), rounded_silu_mul(both_NF, dtype))


def linear(
    device: torch.device, seed: int, dtype: torch.dtype, tokens: int, inputs: int, outputs: int, how: str
) -> float:
    """Compare `linear`, or `linear_rope` with a word as D64, which rotates all heads but one of 64 outputs each.

    x is a slice of wider rows. `how` may have the words bias, gated and early, too.
    """
    g = torch.Generator().manual_seed(seed)
    x_NC, weight_OC = normal(g, tokens, inputs, dtype=dtype), normal(g, outputs, inputs, dtype=dtype) / 8
    bias_O = normal(g, outputs, dtype=dtype) if "bias" in how else None
    bias = None if bias_O is None else bias_O.to(device, dtype)
    arguments = wider(x_NC, device, dtype), weight_OC.to(device, dtype), bias, "gated" in how
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an early product does not wait for the kernel that writes the weight
    exact = x_NC @ weight_OC.T if bias_O is None else x_NC @ weight_OC.T + bias_O
    if "D" in how:
        dim = int(how.partition("D")[2].split()[0])
        cos_ND, sin_ND = (normal(g, tokens, dim, dtype=dtype).clamp(-1, 1) for _ in range(2))
        heads, exact = outputs // dim - 1, rounded(exact, dtype)
        head_NHD = exact[:, : heads * dim].unflatten(1, (heads, dim))
        head_NHD.copy_(turned(head_NHD, cos_ND, sin_ND, None, 0.0, dtype))
        turn = (x.to(device, dtype) for x in (cos_ND, sin_ND))
        return error(torch.ops.kvb.linear_rope(*arguments[:3], *turn, heads, "early" in how), exact)
    if "gated" in how:
        exact = rounded_silu_mul(rounded(exact, dtype), dtype)
    return error(torch.ops.kvb.linear(*arguments, "early" in how), exact)
