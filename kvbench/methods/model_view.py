"""The facts about a model that parts of a method may read, apart from its queries, keys and values.

Shape suffixes: H query heads, D head dimension, E hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

TOKEN_KINDS = ("special", "punctuation", "newline", "digit")


class ModelView(Protocol):
    """A read-only view of a model and its tokenizer, for parts with "model" in their `needs`."""

    def o_proj(self, layer: int) -> Tensor:
        """Return [H, D, E], the weight that turns each query head's output into a part of the layer's output.

        Quantised weights are dequantised.

        Args:
            layer: position among the layers that are compressed, as `LayerContext.layer`.

        Raises:
            ValueError: the attention of this model has no such projection; names the model.
        """
        ...

    def rotate(self, x: Tensor, by: Tensor, layer: int) -> Tensor:
        """Return queries or keys, rotated by further positions with the layer's own rotary embedding.

        In a layer without positions they stay as they are.

        Args:
            x: [..., T, D] after (or before) the rotation.
            by: [T] positions or one position, negative to rotate back.
            layer: position among the layers that are compressed, as `LayerContext.layer`.

        Raises:
            ValueError: this model rotates in a way that the view does not reproduce; names the model.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens. Raises ValueError without a tokenizer."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens spelled out. Raises ValueError without a tokenizer."""
        ...

    def answer_prefix(self) -> list[int]:
        """Return the token ids that the chat template writes between a user's words and the answer.

        They end the user's turn and begin the next one. Empty without a template.
        """
        ...

    def ids(self, kind: str) -> Tensor:
        """Return the sorted token ids of a kind: special, punctuation, newline or digit."""
        ...
