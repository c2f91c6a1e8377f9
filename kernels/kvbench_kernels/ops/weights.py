"""The attention weights of a step for decode policies that read them, and the search for the slot worth least.

Shape suffixes: B rows, U KV heads, N segments, G query heads per KV head, T newest tokens, C slots, R slots of the
arena, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvbench_kernels.ops import require
from kvbench_kernels.ops.library import Library
from kvbench_kernels.ops.pointers import DTYPE

MOST_DIM = 256  # of the compiled kernel
MOST_QUERIES = 65535  # of a lane, group x tokens


def weights(q_NGTD: Tensor, k_RD: Tensor, start_N: Tensor, length_N: Tensor, scaling: float, width: int) -> Tensor:
    """Return the softmax of queries over the live slots of N segments: [N, G, T, width], 0 on empty slots.

    It is computed in float32, or in float64 if the inputs are float64. Query t of T sees the first length - T + t + 1
    slots.

    Args:
        start_N: first slot of each segment.
        length_N: live slots of each segment, at most `width`.
        width: slots of the result; at least the largest length.
    """
    slot_C = torch.arange(width, device=q_NGTD.device)
    at_NC = (start_N.long()[:, None] + slot_C).clamp(max=len(k_RD) - 1)
    dtype = _wide(q_NGTD.dtype)
    logits_NQC = torch.bmm(q_NGTD.flatten(1, 2).to(dtype) * scaling, k_RD[at_NC].to(dtype).transpose(1, 2))
    return softmax_over_visible(logits_NQC, length_N, q_NGTD.shape[2])


def softmax_over_visible(logits_NQC: Tensor, length_N: Tensor, tokens: int) -> Tensor:
    """Return the softmax of logits [N, G x T, C] over the slots that each query sees, as [N, G, T, C]. In place."""
    visible_NT = length_N.long()[:, None] + torch.arange(1 - tokens, 1, device=length_N.device)
    hidden_NTC = torch.arange(logits_NQC.shape[2], device=length_N.device) >= visible_NT[..., None]
    logits_NGTC: Tensor = logits_NQC.unflatten(1, (-1, tokens)).masked_fill_(hidden_NTC[:, None], -torch.inf)
    return logits_NGTC.softmax(-1)


def least(worth_BUC: Tensor, pos_BUC: Tensor, length_BU: Tensor) -> Tensor:
    """Return, per head, the live slot that is worth least; of equals, the one whose token came last: [B, U].

    Slots c >= length hold no token. A worth of inf protects a token as long as another one has less.
    """
    live_BUC = torch.arange(worth_BUC.shape[-1], device=worth_BUC.device) < length_BU[..., None]
    worth_BUC = worth_BUC.masked_fill(~live_BUC, torch.inf)
    least_BUC = (worth_BUC == worth_BUC.amin(-1, keepdim=True)) & live_BUC
    return torch.where(least_BUC, pos_BUC, -1).argmax(-1)


def decode_weights(
    q_NGTD: Tensor, k_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float, width: int
) -> Tensor:
    """Return `weights` of the segments of N lanes: the op of this name in torch."""
    index_N = segment_N.long()
    return weights(q_NGTD, k_RD, start_S1[index_N], length_S[index_N], scaling, width)


def check(
    q_NGTD: Tensor, k_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float, width: int,
    *, compiled: bool,
) -> None:  # fmt: skip
    """Check the arguments of `decode_weights`. Raises ValueError."""
    require.arena(k_RD, k_RD, start_S1, length_S, compiled)
    require.index("segment_N", segment_N, k_RD)
    if q_NGTD.dim() != 4 or q_NGTD.shape[3] != k_RD.shape[1] or q_NGTD.shape[0] != segment_N.numel():
        raise ValueError("q_NGTD: must be [lanes, query heads per KV head, tokens, head dimension of k_RD]")
    require.alike("q_NGTD", q_NGTD, k_RD)
    if width < 1:
        raise ValueError(f"width={width}: must be at least 1")
    if compiled:
        if not q_NGTD.is_contiguous():
            raise ValueError("q_NGTD: must be contiguous")
        if k_RD.shape[1] > MOST_DIM or q_NGTD.shape[1] * q_NGTD.shape[2] > MOST_QUERIES:
            raise ValueError(f"q_NGTD: the kernel takes {MOST_QUERIES} queries of {MOST_DIM} numbers per lane at most")


def launch(
    library: Library, stream: int | None, q_NGTD: Tensor, k_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    segment_N: Tensor, scaling: float, width: int, *, name: str = "decode_weights",
    dtypes: Mapping[torch.dtype, int] = DTYPE,
) -> Tensor:  # fmt: skip
    """Call the compiled kernel, or that of the CPU, whose struct is the same."""
    lanes, group, tokens, dim = q_NGTD.shape
    out_NGTC = q_NGTD.new_empty(lanes, group, tokens, width, dtype=torch.float32)
    library.call(
        name,
        stream,
        q=q_NGTD.data_ptr(),
        k=k_RD.data_ptr(),
        start=start_S1.data_ptr(),
        length=length_S.data_ptr(),
        segment=segment_N.data_ptr(),
        out=out_NGTC.data_ptr(),
        scaling=scaling,
        lanes=lanes,
        group=group,
        tokens=tokens,
        dim=dim,
        width=width,
        dtype=dtypes[k_RD.dtype],
    )
    return out_NGTC


def fake(
    q_NGTD: Tensor, k_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float, width: int
) -> Tensor:
    """Return the shape and dtype of the result, for tracing."""
    return q_NGTD.new_empty(*q_NGTD.shape[:3], width, dtype=_wide(q_NGTD.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
