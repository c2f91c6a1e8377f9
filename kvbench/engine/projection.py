"""Output projections of a model: they take the attention's output, or something that was made of it.

BitNet normalises the heads' outputs before it projects them, and some models gate them. There, the projection alone
does not say what a head's output becomes.

Shape suffixes: B rows, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.engine.attention import NAME, kvbench_attention, last_logits
from kvbench.engine.survey import AttentionPlan

_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj")
_TOKENS = 3


def projections(attention: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of an attention module that may be its output projection."""
    for name in _NAMES:
        module = getattr(attention, name, None)
        if isinstance(module, nn.Module):
            yield module


@torch.inference_mode()
def changed_inputs(model: PreTrainedModel, plan: AttentionPlan) -> frozenset[int]:
    """Return the compressed layers whose output projection takes something else than the attention's output.

    A forward call over three tokens shows it. Layers whose projection is not seen at work are not among them.
    """
    outputs, inputs, width = _OutputsPass(), dict[int, Tensor](), plan.heads * plan.head_dim

    def hold(layer: int, args: tuple[object, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[-1] == width:
            inputs.setdefault(layer, args[0])

    hooks = []
    for layer in plan.full:
        for module in projections(plan.modules[layer]):
            hooks.append(module.register_forward_pre_hook(lambda _, args, layer=layer: hold(layer, args)))
    device = next(model.get_input_embeddings().parameters()).device
    ids_1T = torch.arange(_TOKENS, device=device)[None]
    inside = model.config._attn_implementation == NAME
    try:
        with nullcontext() if inside else kvbench_attention(model):
            last_logits(model, ids_1T, torch.arange(_TOKENS, device=device)[None], outputs)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(layer for layer, x in inputs.items() if not _is_same(x, outputs.held[layer]))


def _is_same(x: Tensor, out_BTHD: Tensor) -> bool:
    return x.numel() == out_BTHD.numel() and bool(torch.equal(x.flatten(), out_BTHD.flatten().to(x.dtype)))


class _OutputsPass:
    """The attention of a forward call that holds the outputs of all layers."""

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Return the values of each position as its attention output [B, H, T, D]."""
        out_BHTD = v_BUTD.repeat_interleave(q_BHTD.shape[1] // v_BUTD.shape[1], 1)
        self.held[layer] = out_BHTD.transpose(1, 2)
        return out_BHTD

    def finish(self) -> None:
        """End the forward call."""
