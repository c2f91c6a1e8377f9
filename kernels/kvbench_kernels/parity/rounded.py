"""The small ops of a step in double precision, with every rounding to 16 bits that torch's operations would do.

The kernels round there as well. Without these roundings, a right kernel would differ from the exact result by all of
them together, and where a few numbers decide the error, by more than the bounds allow.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the nearest numbers that `dtype` holds, in double precision."""
    return x.to(dtype).double()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the RMSNorm over the last dimension: what it scales is rounded before it is multiplied by the weight."""
    scale = 1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return weight * rounded(x * scale, dtype)


def turned(
    x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor, weight_D: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return heads rotated by RoPE, after an RMSNorm if there is a weight: both products are rounded before the sum."""
    if weight_D is not None:
        x_NHD = rounded(rms_norm(x_NHD, weight_D, eps, dtype), dtype)
    low, high = x_NHD.chunk(2, dim=-1)
    other_NHD = torch.cat((-high, low), dim=-1)
    return rounded(x_NHD * cos_ND[:, None], dtype) + rounded(other_NHD * sin_ND[:, None], dtype)


def silu_mul(both_NF: Tensor, dtype: torch.dtype) -> Tensor:
    """Return SiLU of the first half times the second: SiLU is rounded before the product."""
    gate_NF, up_NF = both_NF.chunk(2, dim=1)
    return rounded(F.silu(gate_NF), dtype) * up_NF
