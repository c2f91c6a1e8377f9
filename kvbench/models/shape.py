"""How large a model is, known before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.models import tiny
from kvbench.models.load import check, load_config


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, intermediate, vocab: as the model's config has them.
        itemsize: bytes of a number in weights and cache.
        weight_bytes: of all parameters, tied ones once.
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
        """Bytes of one token's keys and values in all layers of a full cache."""
        return self.layers * self.kv_heads * 2 * self.head_dim * self.itemsize


def shape(cfg: Mapping[str, Any]) -> Shape:
    """The sizes of a `model` node's model, from its config file alone. Raises ValueError when that is out of reach."""
    import torch
    from transformers import AutoModelForCausalLM

    check(cfg)
    config = tiny.config(cfg) if cfg["kind"] == "tiny" else load_config(cfg)
    declared = getattr(config, "dtype", None) or torch.float32
    dtype = declared if cfg["dtype"] == "auto" else getattr(torch, cfg["dtype"])
    with torch.device("meta"):  # parameters without memory: the count is exact for any architecture
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=cfg.get("trust_remote_code") is True)
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
        weight_bytes=sum(p.numel() for p in made.parameters()) * dtype.itemsize,
    )
