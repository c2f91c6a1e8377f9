"""The size of a model, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.models.spec import ModelSpec


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
    from transformers import AutoModelForCausalLM

    config = spec.source.config()
    declared = getattr(config, "dtype", None) or torch.float32
    dtype = declared if spec.dtype == "auto" else getattr(torch, spec.dtype)
    with torch.device("meta"):  # parameters without memory: the count is exact for any architecture
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.source.trust_remote_code)
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    return Shape(
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        hidden=int(text.hidden_size),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocab=int(text.vocab_size),
        itemsize=dtype.itemsize,
        weight_bytes=sum(p.numel() for p in skeleton.parameters()) * dtype.itemsize,
    )
