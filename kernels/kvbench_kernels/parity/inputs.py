"""Random inputs of the comparisons, and the errors of their results.

Shape suffixes as in kvbench_kernels.ops.reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# ‖out - exact‖ / ‖exact‖: half a unit in the last place of the output; computing in float32 adds a tenth of it
BOUND = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
SCORE_BOUND = 1e-4
NAN = float("nan")


@dataclass
class Arena:
    """Buffers of S segments, of which `segment_N` are in the call; on the host, in double precision."""

    k_RD: Tensor
    v_RD: Tensor
    start_S1: Tensor
    length_S: Tensor
    segment_N: Tensor

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Copy the five tensors to a device, in the order of the ops' arguments."""
        k_RD, v_RD = (x.to(device, dtype, copy=True) for x in (self.k_RD, self.v_RD))
        start_S1, length_S, segment_N = (
            x.to(device, copy=True) for x in (self.start_S1, self.length_S, self.segment_N)
        )
        return k_RD, v_RD, start_S1, length_S, segment_N


def arena(g: torch.Generator, lanes: int, dim: int, longest: int, room: int, dtype: torch.dtype) -> Arena:
    """Draw an arena with at least `room` free slots in each segment, and 3 segments that belong to no lane."""
    segments = lanes + 3
    length_S = torch.randint(0, longest + 1, (segments,), generator=g, dtype=torch.int32)
    length_S[0], length_S[1] = longest, 64  # one long segment, and one at the edge of a tile
    capacity_S = length_S + room + torch.randint(0, 9, (segments,), generator=g, dtype=torch.int32)
    start_S1 = torch.cat([capacity_S.new_zeros(1), capacity_S.cumsum(0, dtype=torch.int32)])
    slots = int(start_S1[-1])
    k_RD, v_RD = normal(g, slots, dim, dtype=dtype), normal(g, slots, dim, dtype=dtype)
    for start, length, end in zip(start_S1, length_S, start_S1[1:], strict=False):
        k_RD[start + length : end] = NAN
        v_RD[start + length : end] = NAN
    segment_N = torch.randperm(segments, generator=g)[:lanes].to(torch.int32)
    return Arena(k_RD, v_RD, start_S1, length_S, segment_N)


def error(out: Tensor, exact: Tensor) -> float:
    """Return ‖out - exact‖ / ‖exact‖; NaN if `out` contains NaN."""
    return float((out.cpu().double() - exact).norm() / exact.norm().clamp_min(1e-30))


def bound_of(dtype: torch.dtype, numbers: int) -> float:
    """Return the bound of a result of that many numbers; for a few it is doubled.

    float32 may round a number between two operations to the other neighbour than double precision does. This moves one
    result by a unit in the last place, 1.6 times the bound in bfloat16, which counts if there are few others.
    """
    return (2 if numbers < 64 else 1) * BOUND[dtype]


def same(out: Tensor, exact: Tensor) -> bool:
    """Return True if the tensors are equal; NaN equals NaN."""
    return torch.equal(out.cpu().double().nan_to_num(nan=1e30), exact.double().nan_to_num(nan=1e30))


def normal(g: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Draw normal numbers that `dtype` holds exactly, in double precision."""
    return torch.randn(shape, generator=g).to(dtype).double()


def empty(slots: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return buffers for keys and values, full of NaN."""
    k_RD, v_RD = torch.full((2, slots, dim), NAN, dtype=torch.float64).unbind()
    return k_RD, v_RD


def wider(x_NC: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copy a matrix into a slice of wider rows of NaN."""
    wide = torch.full((x_NC.shape[0], x_NC.shape[1] + 16), NAN, dtype=dtype, device=device)
    wide[:, : x_NC.shape[1]] = x_NC.to(device, dtype)
    return wide[:, : x_NC.shape[1]]


def prompt(g: torch.Generator, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw queries and keys of a prompt, as transposed views."""
    q_THD, k_TUD = normal(g, tokens, 6, 64, dtype=dtype), normal(g, tokens, 2, 64, dtype=dtype)
    return q_THD.transpose(0, 1), k_TUD.transpose(0, 1)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
