"""The size of a model, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.models import layers
from kvbench.models.load import checked_config
from kvbench.models.pretrained import skeleton
from kvbench.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: as in the model's config.
        itemsize: bytes of a number in weights and cache.
        weight_bytes: bytes of all parameters, tied ones counted once.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    itemsize: int
    weight_bytes: int

    @property
    def token_bytes(self) -> int:
        """Return the bytes of one token's keys and values in all layers of a full cache."""
        return self.layers * self.kv_heads * 2 * self.head_dim * self.itemsize


def shape(spec: ModelSpec) -> Shape:
    """Return the sizes of a model from its config alone. Raises ValueError when the config is out of reach."""
    import torch

    config = checked_config(spec)
    declared = getattr(config, "dtype", None) or torch.float32
    dtype = declared if spec.dtype == "auto" else getattr(torch, spec.dtype)
    try:
        parameters = list(skeleton(config, spec.source.trust_remote_code).parameters())
        hidden, heads = _largest(config, "hidden_size"), _largest(config, "num_attention_heads")
        return Shape(
            layers=_largest(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=_largest(config, "num_key_value_heads", heads),
            head_dim=_largest(config, "head_dim", hidden // heads),
            hidden=hidden,
            intermediate=_largest(config, "intermediate_size", 4 * hidden),
            vocab=_largest(config, "vocab_size"),
            itemsize=dtype.itemsize,
            weight_bytes=sum(p.numel() for p in parameters) * dtype.itemsize,
        )
    except ValueError as error:
        raise ValueError(f"{spec.setting}: {error}") from error


def compressed_layers(spec: ModelSpec) -> int:
    """Return the number of layers that attend to the whole prompt, which are the ones that are compressed."""
    config = checked_config(spec)
    return layers.full_layers(config) or _largest(config, "num_hidden_layers")


def _largest(config: PreTrainedConfig, name: str, default: int | None = None) -> int:
    """Return a size, the largest where layers differ."""
    values = layers.sizes(config, name)
    if not values and default is None:
        raise ValueError(f"config.json does not say {name}")
    return max(values, default=default or 0)
