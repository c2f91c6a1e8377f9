"""Chinese word segmentation by jieba: silent, without a cache file, and apart from jieba's global tokenizer."""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from typing import Any


@lru_cache(maxsize=32)  # a prediction is scored against several answers
def tokens_zh(text: str) -> tuple[str, ...]:
    """Return jieba's words of a text (default dictionary, exact mode, HMM on), white space included."""
    return tuple(_tokenizer().cut(text))


@cache
def _tokenizer() -> Any:
    """Return a tokenizer of our own, which takes half a second once per process.

    jieba's own start reads a cache of the dictionary from the shared temporary folder, where any user can put
    one, and prints to stderr. A dictionary to which other code has added words would change scores.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated; escape sequences of an old source
        import jieba

        tokenizer = jieba.Tokenizer()
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
