"""Models: what identifies one, whether its config makes sense, and loading it. Importing needs no torch."""

from __future__ import annotations

from kvbench.models.load import Loaded, check, device, eos_ids, identity, load, load_tokenizer, max_length

__all__ = ["Loaded", "check", "device", "eos_ids", "identity", "load", "load_tokenizer", "max_length"]
