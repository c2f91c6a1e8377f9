"""The size of a model, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.models import folder, layers
from kvbench.models.load import checked_config
from kvbench.models.pretrained import Pretrained, skeleton
from kvbench.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: as in the model's config.
        itemsize: bytes of a number in weights and cache.
        weight_bytes: bytes of all parameters, tied ones counted once; of a quantised model, those of its weight files,
            or 0 if these are not there yet.
        local_layers: those of the layers that keep a window instead of being compressed.
        window: tokens of the largest window; 0 without such layers.
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
    local_layers: int = 0
    window: int = 0

    @property
    def compressed_layers(self) -> int:
        """Return the number of layers that attend to the whole prompt, which are the ones that are compressed."""
        return self.layers - self.local_layers

    @property
    def token_bytes(self) -> int:
        """Return the bytes of one token's keys and values in the compressed layers of a full cache."""
        return self.compressed_layers * self.kv_heads * 2 * self.head_dim * self.itemsize


def shape(spec: ModelSpec) -> Shape:
    """Return the sizes of a model from its config alone. Raises ValueError when the config is out of reach."""
    import torch

    config = checked_config(spec)
    declared = getattr(config, "dtype", None) or torch.float32
    dtype = declared if spec.dtype == "auto" else getattr(torch, spec.dtype)
    try:
        parameters = list(skeleton(config, spec.source.trust_remote_code).parameters())
        local, window = layers.local_layers(config)
        hidden, (heads, kv_heads, head_dim) = _largest(config, "hidden_size"), attention_sizes(config)
        return Shape(
            layers=_largest(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            intermediate=_largest(config, "intermediate_size", 4 * hidden),
            vocab=_largest(config, "vocab_size"),
            itemsize=dtype.itemsize,
            weight_bytes=_weight_bytes(spec, config, sum(p.numel() for p in parameters) * dtype.itemsize),
            local_layers=local,
            window=window,
        )
    except ValueError as error:
        raise ValueError(f"{spec.setting}: {error}") from error


def attention_sizes(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Return query heads, KV heads and head dimension, each the largest where layers differ.

    Raises:
        ValueError: the config does not say how many heads there are.
    """
    heads = _largest(config, "num_attention_heads")
    kv_heads = _largest(config, "num_key_value_heads", heads)
    return heads, kv_heads, _largest(config, "head_dim", _largest(config, "hidden_size") // heads)


def _weight_bytes(spec: ModelSpec, config: PreTrainedConfig, plain: int) -> int:
    """Return the bytes of a model's weights: `plain` if they are not quantised."""
    if getattr(config, "quantization_config", None) is None or not isinstance(spec.source, Pretrained):
        return plain
    config_json = spec.source.files().config_json
    if config_json is None:
        return 0
    try:
        stored = folder.tensors(config_json.parent)
    except ValueError:  # a snapshot of the hub without its weights; loading fetches them, or says what is wrong
        return 0
    return sum((config_json.parent / file).stat().st_size for file in {tensor.file for tensor in stored.values()})


def _largest(config: PreTrainedConfig, name: str, default: int | None = None) -> int:
    """Return a size, the largest where layers differ."""
    values = layers.sizes(config, name)
    if not values and default is None:
        raise ValueError(f"config.json does not say {name}")
    return max(values, default=default or 0)
