"""Token ids to text, with the spaces before punctuation removed where transformers 4 removed them.

Up to version 4, `decode` removed these spaces for every tokenizer whose configuration asked for it, such as Llama-3's.
Before 4.45 it also did so for those that did not mention it. Version 5 does not do it for BPE tokenizers. A published
prompt that was cut in the middle is decoded text, so it depends on this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

CLEAN_UPS = ("off", "when_true", "unless_false")
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


def cleans_up(tokenizer: Any, rule: str) -> bool:
    """Return True if decoded text is cleaned up under a rule of `Rendering.clean_up_spaces`."""
    if rule == "off" or not hasattr(tokenizer, "init_kwargs"):  # not a tokenizer of transformers
        return False
    configured = tokenizer.init_kwargs.get("clean_up_tokenization_spaces")
    return rule == "unless_false" if configured is None else bool(configured)


def decoder(tokenizer: Any, rule: str = "off", **options: Any) -> Callable[[Sequence[int]], str]:
    """Return the function from ids to text that follows `rule`. options: other arguments of the tokenizer's decode."""
    if hasattr(tokenizer, "clean_up_tokenization_spaces"):  # any tokenizer of transformers
        options["clean_up_tokenization_spaces"] = False
    tidy = cleaned_up if cleans_up(tokenizer, rule) else str
    return lambda ids: tidy(tokenizer.decode(list(ids), **options))
