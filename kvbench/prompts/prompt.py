"""A rendered prompt, and how to show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvbench.common.tasks import check_task
from kvbench.encoding import encoder

VERSION = 2  # of the rendering rules; part of every protocol, raised when ids change


@dataclass(frozen=True)
class Cut:
    """The part of a prompt that its protocol left out: `left_out` of `total` tokens.

    total: tokens of what was cut: the whole prompt, or the context. where: the place in words.
    """

    left_out: int
    total: int
    where: str


@dataclass(frozen=True)
class Prompt:
    """Token ids ready for a model. `ids[:context_len]` is BOS, chat prefix and context.

    text: the same for the human eye, special tokens written out.
    min_new_tokens: no stop token can be chosen before this many tokens are generated.
    first_may_stop: False: the first token does not end the answer, whichever it is.
    clean_up_spaces: remove the spaces before punctuation from the answer, as transformers 4 did.
    cut: what the protocol left out; None: nothing.
    template_len: tokens of BOS and chat prefix, which come before the context's own.
    task: "localization" or "aggregation", for methods that adapt to it; None: they decide by the words of the prompt.

    Raises:
        ValueError: a task of another name.
    """

    ids: tuple[int, ...]
    context_len: int
    stop_ids: frozenset[int]
    text: str
    min_new_tokens: int = 0
    first_may_stop: bool = True
    clean_up_spaces: bool = False
    cut: Cut | None = None
    task: str | None = None
    template_len: int = 0

    def __post_init__(self) -> None:
        check_task(self.task, "prompt")


def show(prompt: Prompt, tokenizer: Any) -> str:
    """Return a prompt for the human eye: specials in ⟦⟧, the context's end, the stop ids named, and what was cut."""
    special = set(encoder(tokenizer).specials.values())
    parts: list[str] = []
    plain: list[int] = []

    def flush() -> None:
        parts.append(tokenizer.decode(plain, clean_up_tokenization_spaces=False) if plain else "")
        plain.clear()

    for place, i in enumerate(prompt.ids):
        if place == prompt.context_len:
            flush()
            parts.append(f"\n⟦ context ends: {place} tokens ⟧\n")
        if i in special:
            flush()
            parts.append(f"⟦{tokenizer.convert_ids_to_tokens(i)}⟧")
        else:
            plain.append(i)
    flush()
    stops = [f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(prompt.stop_ids)]
    end = f"{len(prompt.ids)} tokens; stops at: {', '.join(stops) or 'nothing'}"
    if prompt.cut is not None:
        end += f"\ncut: {prompt.cut.left_out} of {prompt.cut.total} tokens left out {prompt.cut.where}"
    return f"{''.join(parts)}⟦ answer starts ⟧\n\n{end}"
