"""kvbench: experiments with KV-cache compression of long-context language models.

    kvbench.load_method("ada_snapkv", window=8).keep(q, k, v, budget=128)
    kvbench.generate(model, tokenizer, prompts, [("snapkv", 128), ("fullkv", None)])
    with kvbench.compressed(model, "snapkv", budget=0.2): model.generate(...)

Importing kvbench loads neither torch nor transformers; the first use does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kvbench.api import Generation, Variant, compressed, generate, load_method, load_model

__all__ = ["Generation", "Variant", "compressed", "generate", "load_method", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("kvbench.api"), name)
    raise AttributeError(f"module 'kvbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
