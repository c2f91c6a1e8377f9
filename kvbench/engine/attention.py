"""The one seam to transformers: an attention function registered under the name "kvbench".

transformers hands it post-RoPE queries, keys and values of every layer. What to do with them travels as the keyword
argument `kvbench` of the model's forward call: no state on modules, nothing patched. Because no mask function is
registered under the name, transformers builds no mask, which is right for whole prompts and for ragged decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "kvbench"


class AttentionPass(Protocol):
    """What one forward call does in every layer.

    Shape suffixes: B batch, H query heads, U KV heads, T tokens of the call, D head dimension.
    """

    seen: int  # tokens of the sequence before this call

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attention output [B, H, T, D]."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    kvbench: AttentionPass | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if kvbench is None:
        raise ValueError('attention "kvbench" only works inside kvbench.generate or kvbench.compressed')
    if softcap is not None or s_aux is not None:
        raise ValueError(
            f"model: {type(module).__name__} caps its logits or has attention sinks of its own; choose another"
        )
    if sliding_window is not None and kvbench.seen + query.shape[2] > sliding_window:
        raise ValueError(
            f"model: {type(module).__name__} looks back {sliding_window} tokens only; choose a model with full "
            "attention, or keep prompt and answer shorter"
        )
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return kvbench.attend(layer, query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)


@contextmanager
def kvbench_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run the model with our attention function; what it had before returns on exit."""
    before = model.config._attn_implementation
    if before == NAME:
        raise ValueError("kvbench.generate and kvbench.compressed cannot run inside kvbench.compressed")
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"model: {type(model).__name__} does not use transformers' attention interface; choose another"
        )
    try:
        yield
    finally:
        model.set_attn_implementation(before)
