"""Where a needle goes: cut the haystack at a token count, step back to the end of a sentence, insert.

This is the construction of the original needle test (gkamradt, LLMTest_NeedleInAHaystack), which PyramidKV
(arXiv 2406.02069) and its successors inherited, here with the essays in sorted order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvbench.benchmarks.base import Tokenizer


def insert_needle(
    tokenizer: Tokenizer,
    haystack: str,
    needle: str,
    length: int,
    depth: int,
    *,
    buffer: int = 200,
    period_ids: Collection[int] | None = None,
) -> tuple[str, int | None]:
    """A context of at most `length - buffer` tokens with the needle at `depth` percent.

    Returns the context and the token index of the needle, None for depth 100, where the needle comes last.
    period_ids: tokens that end a sentence, by default those of "."; a merged one such as ".\\n" does not.
    A haystack shorter than `length` is repeated.
    """
    period_ids = encode(tokenizer, ".") if period_ids is None else period_ids
    ids = trimmed(tokenizer, haystack_ids(tokenizer, haystack, length), length)
    return insert_ids(tokenizer, ids, encode(tokenizer, needle), length - buffer, depth, period_ids)


def haystack_ids(tokenizer: Tokenizer, haystack: str, length: int) -> list[int]:
    """At least `length` tokens of the haystack, which is repeated as text where it is too short."""
    ids = encode(tokenizer, haystack)
    if not ids:
        raise ValueError("benchmark.haystack: the text is empty")
    repeats = 1
    while len(ids) < length:  # once, unless joining the copies merged tokens
        repeats = max(repeats + 1, -(-length * repeats // len(ids)))
        ids = encode(tokenizer, haystack * repeats)
    return ids


def trimmed(tokenizer: Tokenizer, ids: Sequence[int], length: int) -> list[int]:
    """The first `length` tokens, encoded anew from their text: a cut word may be split differently."""
    return encode(tokenizer, tokenizer.decode(list(ids[:length])))


def insert_ids(
    tokenizer: Tokenizer,
    context_ids: Sequence[int],
    needle_ids: Sequence[int],
    limit: int,
    depth: int,
    period_ids: Collection[int],
) -> tuple[str, int | None]:
    """Insert at token level: `limit` tokens at most, the needle included. Returns as `insert_needle` does."""
    room = limit - len(needle_ids)
    if room < 1:
        raise ValueError(
            f"benchmark.lengths: {limit} tokens (a length minus benchmark.buffer) leave no room beside "
            f"a needle of {len(needle_ids)} tokens"
        )
    context = list(context_ids[:room])
    if depth == 100:
        return tokenizer.decode([*context, *needle_ids]), None
    index = int(len(context) * (depth / 100))  # in this order, as the original
    while index > 0 and context[index - 1] not in period_ids:
        index -= 1
    return tokenizer.decode([*context[:index], *needle_ids, *context[index:]]), index


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)
