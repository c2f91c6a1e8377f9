"""Models: what identifies one, whether its config makes sense, and loading it. Importing needs no torch."""

from __future__ import annotations

from kvbench.models.cache import Kept
from kvbench.models.load import (
    Loaded,
    check,
    check_answers,
    device,
    ends,
    eos_ids,
    identity,
    load,
    load_tokenizer,
    max_length,
)
from kvbench.models.shape import Shape, shape

__all__ = [
    "Kept",
    "Loaded",
    "Shape",
    "check",
    "check_answers",
    "device",
    "ends",
    "eos_ids",
    "identity",
    "load",
    "load_tokenizer",
    "max_length",
    "shape",
]
