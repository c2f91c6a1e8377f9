"""A forward call over a few tokens that shows keys and attention outputs of each layer, to learn how a model is built.

Shape suffixes: B rows, H query heads, U KV heads, T tokens, D head dimension.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.engine.attention import NAME, kvbench_attention, last_logits


class SeenLayers:
    """The attention of the call. Its output at a position is the value there.

    Attributes:
        keys: [U, T, D] by layer of the model, with their rotation.
        outputs: [T, H, D] by layer, as an output projection takes them.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Return the values of each position as its attention output [B, H, T, D]."""
        out_BHTD = v_BUTD.repeat_interleave(q_BHTD.shape[1] // v_BUTD.shape[1], 1)
        self.keys[layer], self.outputs[layer] = k_BUTD[0], out_BHTD[0].transpose(0, 1)
        return out_BHTD

    def finish(self) -> None:
        """End the forward call."""


@torch.inference_mode()
def small_call(model: PreTrainedModel, ids_T: Tensor, position_T: Tensor) -> SeenLayers:
    """Return what the layers of a model do in a forward call over these tokens at these positions."""
    device = next(model.get_input_embeddings().parameters()).device
    seen, inside = SeenLayers(), model.config._attn_implementation == NAME
    with nullcontext() if inside else kvbench_attention(model):
        last_logits(model, ids_T[None].to(device), position_T[None].to(device), seen)
    return seen
