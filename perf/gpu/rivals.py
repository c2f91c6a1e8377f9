"""Other ways to attend to a ragged layer, with nothing but libraries: what our kernels are compared with.

Each function gives `work(i)`, which attends to set i of a `Layer` and returns the output as [S, G, D].
Shape suffixes as in `layers`; L slots of the longest segment.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from layers import Layer, exact
from torch import Tensor

from kvbench_kernels.backends import flash

Attend = Callable[[int], Tensor]
_FA3_ARGUMENTS = (
    "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "seqused_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale",
    "is_causal", "num_splits",
)  # fmt: skip


def varlen(device: torch.device) -> tuple[flash.Varlen, str]:
    """Return torch's flash-attention and its origin, else the one that the backend uses; on a CPU a stand-in.

    The private op is a fairer rival than `varlen_attn`, which calls it and also fills a random state without use.

    Raises:
        ValueError: there is none.
    """
    if device.type != "cuda":
        return _stand_in, "plain torch"
    try:
        return flash.private_of_torch()
    except ValueError:
        return flash.find()


def flash_in_place(layer: Layer) -> Attend:
    """Attend to the arena in place: every segment is a sequence, with live lengths from the device."""
    attention, _ = varlen(layer.device)
    q_SGD, first_S1 = flat_queries(layer), one_each(layer)

    def work(i: int) -> Tensor:
        k_R1D, v_R1D = layer.k_CRD[i][:, None], layer.v_CRD[i][:, None]
        starts, most = (first_S1, layer.start_S1), (1, layer.longest + 1)
        return attention(q_SGD, k_R1D, v_R1D, starts, most, layer.length_CS[i], layer.scaling)

    return work


def fa3_in_place(layer: Layer) -> Attend:
    """Attend by flash-attention 3 of the package fa3-fwd, calling its op directly.

    Raises:
        ValueError: the package is not there, cannot be loaded, or its op is another than expected.
    """
    try:
        importlib.import_module("fa3_fwd._C")
        forward = torch.ops.fa3_fwd.fwd.default
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise ValueError(f"fa3-fwd cannot be loaded: {str(error).splitlines()[0]}") from error
    check_fa3(forward._schema)
    q_SGD, first_S1 = flat_queries(layer), one_each(layer)

    def work(i: int) -> Tensor:
        out: Tensor = forward(
            q_SGD,
            layer.k_CRD[i][:, None],
            layer.v_CRD[i][:, None],
            cu_seqlens_q=first_S1,
            cu_seqlens_k=layer.start_S1,
            seqused_k=layer.length_CS[i],
            max_seqlen_q=1,
            max_seqlen_k=layer.longest + 1,
            softmax_scale=layer.scaling,
            is_causal=False,
            num_splits=0,
        )[0]
        return out

    return work


def check_fa3(schema: torch._C.FunctionSchema) -> None:
    """Check that the op takes the arguments of `fa3_in_place` and needs no others. Raises ValueError."""
    arguments = {argument.name: argument for argument in schema.arguments}
    lacks = [name for name in _FA3_ARGUMENTS if name not in arguments]
    wants = [name for name, a in arguments.items() if name not in _FA3_ARGUMENTS and not a.has_default_value()]
    if lacks or wants:
        raise ValueError(f"fa3-fwd: its op lacks {lacks}, wants {wants}")


def padded_sdpa(layer: Layer, most_bytes: float = 40e9) -> Attend:
    """Attend to segments padded to the longest, with a mask over slots that are not live.

    Raises:
        ValueError: the padded buffers would take more than `most_bytes`.
    """
    shape, slots = layer.shape, -(-layer.longest // 16) * 16
    need = 4 * shape.segments * slots * shape.dim
    sets = min(layer.sets, max(2, int(most_bytes // need)))
    if need * sets > most_bytes:
        raise ValueError(f"padded to {layer.longest} tokens, two sets take {2 * need / 1e9:.0f} GB")
    k_CS1LD = [layer.normal(shape.segments, 1, slots, shape.dim) for _ in range(sets)]
    v_CS1LD = [layer.normal(shape.segments, 1, slots, shape.dim) for _ in range(sets)]
    alive_SL = torch.arange(slots, device=layer.device) < layer.length_CS[0][:, None]
    mask = alive_SL[:, None, None].expand(-1, 1, shape.group, -1)
    q_S1GD = flat_queries(layer)[:, None]

    def work(i: int) -> Tensor:
        k, v = k_CS1LD[i % sets], v_CS1LD[i % sets]
        return F.scaled_dot_product_attention(q_S1GD, k, v, attn_mask=mask, scale=layer.scaling)[:, 0]

    return work


def flat_queries(layer: Layer) -> Tensor:
    """Return the queries of segments as sequences of one token: [S, G, D]."""
    shape = layer.shape
    return layer.q_BHTD.reshape(shape.segments, shape.group, shape.dim)


def one_each(layer: Layer) -> Tensor:
    """Return the boundaries of sequences of one token each: [S1]."""
    return torch.arange(layer.shape.segments + 1, dtype=torch.int32, device=layer.device)


def _stand_in(
    q: Tensor, k: Tensor, v: Tensor, starts: tuple[Tensor, Tensor], most: tuple[int, int], used_S: Tensor,
    scaling: float,
) -> Tensor:  # fmt: skip
    """Compute varlen attention in torch, for the same number of tokens of each sequence."""
    assert int(used_S.max()) <= most[1]
    outs = []
    for of_sequence, start, length in zip(q.split(most[0]), starts[1].tolist(), used_S.tolist(), strict=False):
        for token, q_GD in enumerate(of_sequence):
            live = slice(start, start + length - most[0] + token + 1)
            outs.append(exact(q_GD, k[live, 0], v[live, 0], scaling).to(q.dtype))
    return torch.stack(outs)
