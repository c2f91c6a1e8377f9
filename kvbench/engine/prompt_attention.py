"""The attention of a prompt, with the log-sum-exp that scores by attention can reuse.

On CPUs where torch's products use half of the vector width (`products_cpu`), it is our own C++, for float32.

torch's fused attention computes the log-sum-exp of every query's logits, but scaled_dot_product_attention does not
return it. So the operation that scaled_dot_product_attention would choose is called here. It is private to torch:
before it is used for the first time, it is tried on the beginning of the prompt. Only if the output is equal to the bit
and the log-sum-exp is right, it is used; otherwise scores compute the log-sum-exp themselves, and the log says why.

Shape suffixes: B batch (1 in a prefill), H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from kvbench.engine.products_cpu import is_faster
from kvbench_kernels.ops.host_sums import HostSums

log = logging.getLogger(__name__)

_TRIED_TOKENS = 160  # of a prompt's beginning: more than one tile of any of the kernels
_MOST_ERROR = 1e-3  # of the log-sum-exp; 16-bit inputs give about 1e-4
_usable: dict[tuple[object, ...], bool] = {}

Fused = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def attend_with_lse(
    q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float, wanted: bool = True, host: HostSums | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return causal attention [B, H, T, D], and the natural log-sum-exp of each query's logits, float32 [B, H, T].

    The log-sum-exp is None if it is not wanted, or if the operation that torch chooses here does not compute it. The
    output is the same in both cases.

    Args:
        host: our own functions for CPUs, used where they are faster than torch.
    """
    if host is not None and len(q_BHTD) == 1 and q_BHTD.shape[2] > 1 and is_faster():
        outcome = host.attention(q_BHTD[0], k_BUTD[0], v_BUTD[0], scaling)
        if outcome is not None:
            return outcome[0][None], outcome[1][None]
    fused = _fused(q_BHTD, k_BUTD, v_BUTD, scaling) if wanted else None
    if fused is None:
        return _attend(q_BHTD, k_BUTD, v_BUTD, scaling), None
    return fused(q_BHTD, k_BUTD, v_BUTD)


def _attend(q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
    """Return causal attention [B, H, T, D]."""
    return F.scaled_dot_product_attention(
        q_BHTD, k_BUTD, v_BUTD, is_causal=q_BHTD.shape[2] > 1, scale=scaling, enable_gqa=True
    )


def _fused(q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Fused | None:
    """Return the operation that torch would choose, if it gives the log-sum-exp."""
    if q_BHTD.shape[2] < 2 or q_BHTD.shape[3] % 8 or not hasattr(torch, "_fused_sdp_choice"):
        return None
    chosen = torch._fused_sdp_choice(q_BHTD, k_BUTD, v_BUTD, None, 0.0, True, scale=scaling, enable_gqa=True)
    name, more = _operation(int(chosen), q_BHTD.device)
    operation = getattr(torch.ops.aten, name, None)
    if operation is None:
        return None
    fused = partial(_call, operation, more, scaling)
    key = name, q_BHTD.device, q_BHTD.dtype, q_BHTD.shape[1], k_BUTD.shape[1], q_BHTD.shape[3], scaling
    if key not in _usable:
        q, k, v = (x[:, :, :_TRIED_TOKENS] for x in (q_BHTD, k_BUTD, v_BUTD))
        fault = _fault(fused, q, k, v, scaling)
        if fault is not None:
            log.info("scores compute the log-sum-exp themselves, because %s %s", name, fault)
        _usable[key] = fault is None
    return fused if _usable[key] else None


def _operation(chosen: int, device: torch.device) -> tuple[str, tuple[object, ...]]:
    """Return the name of torch's operation, and its arguments between the values and the probability of dropout."""
    if chosen == int(SDPBackend.FLASH_ATTENTION.value):
        on_cpu = device.type == "cpu"
        return "_scaled_dot_product_flash_attention" + "_for_cpu" * on_cpu, ()
    if chosen == int(SDPBackend.CUDNN_ATTENTION.value):
        return "_scaled_dot_product_cudnn_attention", (None, True)  # no bias; compute the log-sum-exp
    return "", ()


def _call(
    operation: Any, more: tuple[object, ...], scaling: float, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor
) -> tuple[Tensor, Tensor]:
    out_BHTD, lse, *_ = operation(q_BHTD, k_BUTD, v_BUTD, *more, 0.0, True, scale=scaling)
    return out_BHTD, lse.squeeze(-1) if lse.dim() == 4 else lse


def _fault(fused: Fused, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> str | None:
    """Return what is wrong with an operation on these tensors; None if it is right."""
    try:
        out_BHTD, lse_BHT = fused(q_BHTD, k_BUTD, v_BUTD)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"cannot be called: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if not torch.equal(out_BHTD, _attend(q_BHTD, k_BUTD, v_BUTD, scaling)):
        return "has another output than scaled_dot_product_attention"
    k_BHTD = k_BUTD.double().repeat_interleave(q_BHTD.shape[1] // k_BUTD.shape[1], 1)
    logits_BHTT = q_BHTD.double() @ k_BHTD.mT * scaling
    later_TT = torch.ones_like(logits_BHTT[0, 0], dtype=torch.bool).triu_(1)
    exact_BHT = logits_BHTT.masked_fill_(later_TT, -torch.inf).logsumexp(-1)
    if lse_BHT.shape != exact_BHT.shape or lse_BHT.dtype not in (torch.float32, torch.float64):
        return f"returns a log-sum-exp of {lse_BHT.dtype}, {list(lse_BHT.shape)}"
    off = float(((lse_BHT - exact_BHT).abs() / exact_BHT.abs().clamp(min=1)).max())
    return None if off < _MOST_ERROR else f"returns a log-sum-exp that is off by {off:.1e}"
