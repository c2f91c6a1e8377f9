"""Chinese word segmentation by jieba: silent, without a cache file, and apart from jieba's global tokenizer."""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from typing import Any


@lru_cache(maxsize=32)  # a prediction is scored against several answers
def tokens_zh(text: str) -> tuple[str, ...]:
    """jieba's words of a text (default dictionary, exact mode, HMM on), white space included."""
    return tuple(_tokenizer().cut(text))


@cache
def _tokenizer() -> Any:
    """A tokenizer of our own: half a second, once per process.

    jieba's own start reads a cache of the dictionary from the shared temporary folder, where anybody may have put
    one, and talks on stderr. A dictionary that other code has added words to would change scores.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated; escape sequences of an old source
        import jieba

        tokenizer = jieba.Tokenizer()
        tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
