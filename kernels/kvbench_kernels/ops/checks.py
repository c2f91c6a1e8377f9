"""The checks of each op's arguments, one function per op. A ValueError names the argument.

Shape suffixes as in `reference`. With `compiled`, the check is that of the compiled kernels, which need more than the
reference: a 16-bit dtype, a head dimension they are compiled for, and rows that can be read 16 bytes at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench_kernels.ops import require
from kvbench_kernels.ops.packed import check as packed_decode  # noqa: F401
from kvbench_kernels.ops.weights import check as decode_weights  # noqa: F401

GROUPS = ("mean", "max", "sum")
POOLS = ("max", "avg", "none")
SCOPES = ("head", "layer")
MOST_TOKENS = 16  # of the compiled `linear`


def ragged_append(
    k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor, k_BUTD: Tensor, v_BUTD: Tensor,
    status: Tensor, *, compiled: bool,
) -> None:  # fmt: skip
    require.arena(k_RD, v_RD, start_S1, length_S, compiled)
    require.new_tokens(k_BUTD, v_BUTD, k_RD, segment_N, compiled)
    require.shaped("status", status, (1,), torch.int32, k_RD)


def ragged_decode(
    q_BHTD: Tensor, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, segment_N: Tensor, scaling: float,
    out_BHTD: Tensor, workspace: Tensor, settled: bool = False, *, compiled: bool,
) -> None:  # fmt: skip
    require.arena(k_RD, v_RD, start_S1, length_S, compiled)
    require.decoding(q_BHTD, k_RD, segment_N, out_BHTD, compiled)
    if compiled:
        require.scratch(workspace, k_RD)


def ragged_append_decode(
    q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor,
    segment_N: Tensor, scaling: float, out_BHTD: Tensor, workspace: Tensor, status: Tensor,
    settled: bool = False, *, compiled: bool,
) -> None:  # fmt: skip
    require.arena(k_RD, v_RD, start_S1, length_S, compiled)
    require.new_tokens(k_BUTD, v_BUTD, k_RD, segment_N, compiled)
    require.decoding(q_BHTD, k_RD, segment_N, out_BHTD, compiled)
    if (q_BHTD.shape[0], q_BHTD.shape[2]) != (k_BUTD.shape[0], k_BUTD.shape[2]):
        raise ValueError("q_BHTD: must have the rows and tokens of k_BUTD")
    require.shaped("status", status, (1,), torch.int32, k_RD)
    if compiled:
        require.scratch(workspace, k_RD)


def window_score(
    q_HWD: Tensor, k_UTD: Tensor, lse_HW: Tensor | None, scaling: float, group: str, pool: str, kernel_size: int,
    *, compiled: bool,
) -> None:  # fmt: skip
    require.prompt(q_HWD, k_UTD, "q_HWD", compiled)
    if q_HWD.shape[1] > k_UTD.shape[1] or q_HWD.shape[1] == 0:
        raise ValueError("q_HWD: must be one to all of the tokens of k_UTD")
    if lse_HW is not None:
        _lse("lse_HW", lse_HW, q_HWD)
    require.one_of("group", group, GROUPS)
    require.one_of("pool", pool, POOLS)
    if pool != "none" and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size={kernel_size}: must be odd")


def row_lse(q_HTD: Tensor, k_UTD: Tensor, scaling: float, *, compiled: bool) -> None:
    _causal(q_HTD, k_UTD, compiled)


def column_sums(q_HTD: Tensor, k_UTD: Tensor, lse_HT: Tensor, scaling: float, *, compiled: bool) -> None:
    _causal(q_HTD, k_UTD, compiled)
    _lse("lse_HT", lse_HT, q_HTD)


def select(score_UN: Tensor, total: int, floor: float, scope: str, *, compiled: bool) -> None:
    if score_UN.dim() != 2 or not score_UN.is_floating_point():
        raise ValueError("score_UN: must be [KV heads, tokens], of a floating dtype")
    if compiled and (score_UN.dtype != torch.float32 or not score_UN.is_contiguous()):
        raise ValueError("score_UN: must be contiguous float32 for the kernels")
    require.one_of("scope", scope, SCOPES)
    heads, tokens = score_UN.shape
    if heads == 0:
        raise ValueError("score_UN: has no heads")
    if not 0 <= total <= heads * tokens:
        raise ValueError(f"total={total}: must be between 0 and {heads * tokens}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: must be between 0 and 1")


def ragged_gather(
    k_UTD: Tensor, v_UTD: Tensor, keep_ST: Tensor, head_S: Tensor, start_S1: Tensor, k_RD: Tensor, v_RD: Tensor,
    *, compiled: bool,
) -> None:  # fmt: skip
    require.arena(k_RD, v_RD, start_S1, None, compiled)
    if k_UTD.dim() != 3 or k_UTD.shape[2] != k_RD.shape[1]:
        raise ValueError("k_UTD: must be [KV heads, tokens, head dimension of k_RD]")
    if v_UTD.shape != k_UTD.shape:
        raise ValueError("v_UTD: must have the shape of k_UTD")
    require.alike("k_UTD", k_UTD, k_RD)
    require.alike("v_UTD", v_UTD, k_RD)
    require.index("head_S", head_S, k_RD)
    if start_S1.numel() != head_S.numel() + 1:
        raise ValueError("start_S1: must have one element more than head_S")
    require.shaped("keep_ST", keep_ST, (head_S.numel(), k_UTD.shape[1]), torch.bool, k_RD)
    if compiled:
        require.steps("k_UTD", k_UTD)
        require.steps("v_UTD", v_UTD)


def ragged_relayout(
    k_RD: Tensor, v_RD: Tensor, start_S1: Tensor, length_S: Tensor, source_M: Tensor, start_M1: Tensor, k_QD: Tensor,
    v_QD: Tensor, *, compiled: bool,
) -> None:  # fmt: skip
    require.arena(k_RD, v_RD, start_S1, length_S, compiled)
    require.index("source_M", source_M, k_RD)
    require.index("start_M1", start_M1, k_RD)
    if start_M1.numel() != source_M.numel() + 1:
        raise ValueError("start_M1: must have one element more than source_M")
    if k_QD.dim() != 2 or k_QD.shape[1] != k_RD.shape[1] or not k_QD.is_contiguous():
        raise ValueError("k_QD: must be contiguous, [slots, head dimension of k_RD]")
    if v_QD.shape != k_QD.shape or not v_QD.is_contiguous():
        raise ValueError("v_QD: must be contiguous and of the shape of k_QD")
    require.alike("k_QD", k_QD, k_RD)
    require.alike("v_QD", v_QD, k_RD)
    if compiled:
        require.steps("k_QD", k_QD)
        require.steps("v_QD", v_QD)


def add_rms_norm(residual_NC: Tensor, x_NC: Tensor | None, weight_C: Tensor, eps: float, *, compiled: bool) -> None:
    if residual_NC.dim() != 2:
        raise ValueError("residual_NC: must be [tokens, hidden size]")
    _vector("weight_C", weight_C, residual_NC)
    if x_NC is not None:
        require.like("x_NC", x_NC, residual_NC)
    if compiled:
        require.step_op("residual_NC", residual_NC, 8, 16384)
        require.steps("weight_C", weight_C)
        if x_NC is not None:
            require.steps("x_NC", x_NC)


def rope(
    q_NHD: Tensor, k_NUD: Tensor, cos_ND: Tensor, sin_ND: Tensor, q_weight_D: Tensor | None,
    k_weight_D: Tensor | None, eps: float, *, compiled: bool,
) -> None:  # fmt: skip
    if q_NHD.dim() != 3 or q_NHD.shape[2] % 2:
        raise ValueError("q_NHD: must be [tokens, query heads, head dimension], the last even")
    rows, _, dim = q_NHD.shape
    if k_NUD.dim() != 3 or (k_NUD.shape[0], k_NUD.shape[2]) != (rows, dim):
        raise ValueError("k_NUD: must be [tokens of q_NHD, KV heads, head dimension of q_NHD]")
    require.alike("k_NUD", k_NUD, q_NHD)
    require.like("cos_ND", cos_ND, q_NHD[:, 0])
    require.like("sin_ND", sin_ND, q_NHD[:, 0])
    weights = {"q_weight_D": q_weight_D, "k_weight_D": k_weight_D}
    for name, weight_D in weights.items():
        if weight_D is not None:
            _vector(name, weight_D, q_NHD)
    if compiled:
        require.step_op("q_NHD", q_NHD, 16, 512)
        for name, x in {"k_NUD": k_NUD, "cos_ND": cos_ND, "sin_ND": sin_ND, **weights}.items():
            if x is not None:
                require.steps(name, x)


def silu_mul(gate_NF: Tensor, up_NF: Tensor, *, compiled: bool) -> None:
    if gate_NF.dim() != 2:
        raise ValueError("gate_NF: must be [tokens, width of the MLP]")
    require.like("up_NF", up_NF, gate_NF)
    if compiled:
        require.step_op("gate_NF", gate_NF, 8, None)
        require.steps("up_NF", up_NF)


def linear(x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, gated: bool, early: bool, *, compiled: bool) -> None:
    if x_NC.dim() != 2:
        raise ValueError("x_NC: must be [tokens, inputs]")
    if weight_OC.dim() != 2 or weight_OC.shape[1] != x_NC.shape[1]:
        raise ValueError("weight_OC: must be [outputs, inputs of x_NC]")
    require.shaped("weight_OC", weight_OC, tuple(weight_OC.shape), x_NC.dtype, x_NC)
    if bias_O is not None:
        require.shaped("bias_O", bias_O, (weight_OC.shape[0],), x_NC.dtype, x_NC)
    if weight_OC.shape[0] == 0 or (gated and weight_OC.shape[0] % 2):
        raise ValueError(f"weight_OC: has {weight_OC.shape[0]} rows; must be at least one, with gated an even number")
    if compiled:
        require.step_op("x_NC", x_NC, 8, None)
        require.steps("weight_OC", weight_OC)
        if x_NC.shape[0] > MOST_TOKENS:
            raise ValueError(f"x_NC: has {x_NC.shape[0]} tokens; the kernel takes up to {MOST_TOKENS}")


def linear_rope(
    x_NC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, cos_ND: Tensor, sin_ND: Tensor, heads: int, early: bool, *,
    compiled: bool,
) -> None:  # fmt: skip
    linear(x_NC, weight_OC, bias_O, False, early, compiled=compiled)
    if cos_ND.dim() != 2 or cos_ND.shape[0] != x_NC.shape[0] or cos_ND.shape[1] % 2 or cos_ND.shape[1] == 0:
        raise ValueError("cos_ND: must be [tokens of x_NC, head dimension], the last even")
    for name, x_ND in (("cos_ND", cos_ND), ("sin_ND", sin_ND)):
        require.shaped(name, x_ND, tuple(cos_ND.shape), x_NC.dtype, x_NC)
    if weight_OC.shape[0] % cos_ND.shape[1]:
        raise ValueError(f"weight_OC: has {weight_OC.shape[0]} rows; must be heads of {cos_ND.shape[1]} rows")
    if not 0 <= heads <= weight_OC.shape[0] // cos_ND.shape[1]:
        raise ValueError(f"heads: {heads}; weight_OC has {weight_OC.shape[0] // cos_ND.shape[1]}")


def _vector(name: str, weight: Tensor, x: Tensor) -> None:
    require.shaped(name, weight, (x.shape[-1],), x.dtype, x)


def _causal(q_HTD: Tensor, k_UTD: Tensor, compiled: bool) -> None:
    require.prompt(q_HTD, k_UTD, "q_HTD", compiled)
    if q_HTD.shape[1] != k_UTD.shape[1]:
        raise ValueError("q_HTD: must have the tokens of k_UTD")


def _lse(name: str, lse: Tensor, q: Tensor) -> None:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    require.shaped(name, lse, tuple(q.shape[:2]), dtype, q)
