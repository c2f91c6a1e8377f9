"""Output projections of a model: they take the attention's output, or something that was made of it.

BitNet normalises the heads' outputs before it projects them, and some models gate them. There, the projection alone
does not say what a head's output becomes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbench.engine.small_call import small_call
from kvbench.engine.survey import AttentionPlan

_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj")


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
    inputs, width = dict[int, Tensor](), plan.heads * plan.head_dim

    def hold(layer: int, args: tuple[object, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[-1] == width:
            inputs.setdefault(layer, args[0])

    hooks = [
        module.register_forward_pre_hook(lambda _, args, layer=layer: hold(layer, args))
        for layer in plan.full
        for module in projections(plan.modules[layer])
    ]
    try:
        outputs = small_call(model, torch.arange(3), torch.arange(3)).outputs
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(
        layer for layer, x in inputs.items() if not torch.equal(x.flatten(), outputs[layer].flatten().to(x))
    )
