"""Models: a checked `model` node (`ModelSpec`), and what can be known or loaded of it. Importing needs no torch."""

from __future__ import annotations

from kvbench.models.load import (
    EndIds,
    Loaded,
    decoding_of,
    described,
    device,
    end_ids,
    load,
    load_tokenizer,
    max_length,
)
from kvbench.models.shape import Shape, shape
from kvbench.models.spec import ModelSpec

__all__ = [
    "EndIds",
    "Loaded",
    "ModelSpec",
    "Shape",
    "decoding_of",
    "described",
    "device",
    "end_ids",
    "load",
    "load_tokenizer",
    "max_length",
    "shape",
]
