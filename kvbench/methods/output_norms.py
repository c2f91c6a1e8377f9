"""The size of a token's value in the output of its layer.

Shape suffixes: H query heads, U KV heads, T tokens, D head dimension, E hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods.context import LayerContext

_BLOCK = 1024  # tokens whose outputs are held at once


def output_norms(ctx: LayerContext) -> Tensor:
    """Return the mean L1 norm of v W_O over the query heads of each KV head: [U, T]. Needs the view of the model."""
    return ctx.memo("output_norms", lambda: _output_norms(ctx))


def _output_norms(ctx: LayerContext) -> Tensor:
    assert ctx.model is not None
    weight_HDE = ctx.model.o_proj(ctx.layer)
    of_kernel_HT = None if ctx.sums is None else ctx.sums.output_norms(ctx.v, weight_HDE)
    if of_kernel_HT is not None:
        return of_kernel_HT.view(ctx.num_kv_heads, ctx.group, -1).mean(1)
    norms = []
    for head, weight_DE in enumerate(weight_HDE):
        wide_DE = weight_DE.to(ctx.v.device, ctx.dtype)
        blocks = ctx.v[head // ctx.group].split(_BLOCK)
        norms.append(torch.cat([(v_TD.to(ctx.dtype) @ wide_DE).abs_().sum(-1) for v_TD in blocks]))
    return torch.stack(norms).view(ctx.num_kv_heads, ctx.group, -1).mean(1)
