"""The length of a text: token counts for every kind of tokenizer, and the tokenizer's fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

Counter = Callable[[str], int]


def counter(tokenizer: Any) -> Counter:
    """Return a function from text to number of tokens, without special tokens.

    tokenizer: a Hugging Face tokenizer (the count is len(tokenizer.tokenize(text))), a `tokenizers.Tokenizer`, an
    object with encode(text, add_special_tokens=False), a function text -> int, or "words" for len(text.split()).
    Raises ValueError for anything else.
    """
    if tokenizer == "words":
        return lambda text: len(text.split())
    if hasattr(tokenizer, "backend_tokenizer"):
        return lambda text: _fast(tokenizer, text)
    if hasattr(tokenizer, "tokenize"):
        return lambda text: len(tokenizer.tokenize(text))
    if hasattr(tokenizer, "encode"):
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    if callable(tokenizer):
        count: Callable[[str], int] = tokenizer
        return count
    raise ValueError(f"tokenizer={tokenizer!r}: a tokenizer, a function that counts tokens, or words")


def _fast(tokenizer: Any, text: str) -> int:
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None or backend.padding is not None:
        return len(tokenizer.tokenize(text))  # which switches both off first
    return len(backend.encode(text, add_special_tokens=False))  # saves a list of 100,000 strings


def fingerprint(tokenizer: Any) -> str | None:
    """Return a checksum of what decides token counts; None for a tokenizer that cannot be described.

    For a fast tokenizer it is the checksum of its description, without truncation and padding: using the tokenizer
    can switch these on, and they do not change the counts.
    """
    if tokenizer == "words":
        return "words"
    described = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(described, "to_str"):
        return None
    description = json.loads(described.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
