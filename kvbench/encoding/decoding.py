"""Token ids to text, with the spaces before punctuation removed where transformers 4 removed them.

Up to version 4, `decode` removed these spaces for every tokenizer whose configuration asked for it, such as Llama-3's.
Version 5 does not do it for BPE tokenizers. A published prompt that was cut in the middle is decoded text, so it
depends on this. (Before 4.45 a configuration that did not mention it counted as asking. Version 5 leaves the setting
out when it saves a tokenizer, so here only an explicit setting counts.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# The list of transformers 4, in its order.
_REPLACEMENTS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def cleaned_up(text: str) -> str:
    """Return a text without the spaces that transformers 4 removed: `What ? a != b` becomes `What? a!= b`."""
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    return text


def cleans_up(tokenizer: Any) -> bool:
    """Return True if the tokenizer's configuration asks for decoded text without spaces before punctuation."""
    return getattr(tokenizer, "init_kwargs", {}).get("clean_up_tokenization_spaces") is True


def decoder(tokenizer: Any, clean_up: bool = False, **options: Any) -> Callable[[Sequence[int]], str]:
    """Return the function from ids to text. clean_up: as transformers 4. options: other arguments of `decode`."""
    if hasattr(tokenizer, "clean_up_tokenization_spaces"):  # any tokenizer of transformers
        options["clean_up_tokenization_spaces"] = False
    tidy = cleaned_up if clean_up and cleans_up(tokenizer) else str
    return lambda ids: tidy(tokenizer.decode(list(ids), **options))
