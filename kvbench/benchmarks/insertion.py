"""The place of a needle: cut the haystack at a token count, step back to the end of a sentence, insert.

This is the construction of the original needle test (gkamradt, LLMTest_NeedleInAHaystack), which PyramidKV
(arXiv 2406.02069) and its successors inherited, here with the essays in sorted order. It knows a sentence by the token
of its full stop. In texts without such tokens, such as Chinese or code, it would put every needle at the beginning.
There the needle goes to the last sentence or line end shortly before its depth, or else to a token border.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from kvbench.benchmarks.base import Tokenizer, encode

Decode = Callable[[Sequence[int]], str]

_SPARSE = 250  # tokens per full stop above which full stops do not mark the sentences of a text; prose has 10 to 60
_REACH = 0.05  # how far before its depth a needle may be placed, as a share of the context, without full stops
_LEAST_REACH = 8  # tokens
_WINDOW = 8  # tokens decoded to look at a border; no character has more
# The sentence ends of Chinese, Japanese, Arabic, Urdu, Hindi, Burmese, Ethiopic, Armenian, Khmer and the Latin ones.
_SENTENCE_END = re.compile("(?:[.!?…。！？．｡؟۔।॥။።։។][\"'”’」』）)]*\\s*|\\n\\s*)\\Z")
_BROKEN = "\ufffd"  # what half of a character decodes to


@dataclass(frozen=True)
class Placement:
    """A context with its needle.

    token: index of the needle's first token, None at depth 100. depth: the percent that was reached.
    """

    text: str
    token: int | None
    depth: float


def trimmed(tokenizer: Tokenizer, decode: Decode, ids: Sequence[int], length: int) -> list[int]:
    """Return the first `length` tokens, encoded again from their text: a cut word may be split differently."""
    return encode(tokenizer, decode(ids[:length]))


def stops_mark_sentences(ids: Sequence[int], stop_ids: Collection[int]) -> bool:
    """Return True if full stops are frequent enough in a haystack to be the ends of its sentences."""
    stops = sum(i in stop_ids for i in ids)
    return stops > 0 and len(ids) / stops <= _SPARSE


def insert(
    decode: Decode,
    context_ids: Sequence[int],
    needle_ids: Sequence[int],
    limit: int,
    depth: int,
    stop_ids: Collection[int] | None,
) -> Placement:
    """Return a context of at most `limit` tokens with the needle at `depth` percent.

    stop_ids: tokens that end a sentence, such as those of "."; a merged token such as ".\\n" does not. None: look for
    the ends of sentences and lines in the text. Raises ValueError for a needle that does not fit.
    """
    room = limit - len(needle_ids)
    if room < 1:
        raise ValueError(
            f"benchmark.lengths: {limit} tokens (a length minus benchmark.buffer) leave no room next to "
            f"a needle of {len(needle_ids)} tokens"
        )
    context = list(context_ids[:room])
    if stop_ids is None:
        context = _whole_characters(decode, context)
    if depth == 100:
        return Placement(decode([*context, *needle_ids]), None, 100.0)
    index = int(len(context) * (depth / 100))  # in this order, as the original
    index = _border_near(decode, context, index) if stop_ids is None else _after_stop(context, index, stop_ids)
    reached = round(100 * index / len(context), 1)
    return Placement(decode([*context[:index], *needle_ids, *context[index:]]), index, reached)


def _after_stop(context: Sequence[int], index: int, stop_ids: Collection[int]) -> int:
    """Return the last place at or before `index` that follows a full stop; 0 if there is none."""
    while index > 0 and context[index - 1] not in stop_ids:
        index -= 1
    return index


def _border_near(decode: Decode, context: Sequence[int], index: int) -> int:
    """Return the last end of a sentence or line shortly before `index`, else the nearest token border before it."""
    reach = max(_LEAST_REACH, int(_REACH * len(context)))
    borders = [place for place in range(index, max(0, index - reach), -1) if _is_border(decode, context, place)]
    for place in borders:
        if _SENTENCE_END.search(decode(context[max(0, place - _WINDOW) : place])):
            return place
    return borders[0] if borders else index


def _whole_characters(decode: Decode, context: list[int]) -> list[int]:
    """Return a context without the bytes of half a character at its end."""
    for cut in range(min(_WINDOW, len(context))):
        kept = context[: len(context) - cut]
        if not decode(kept[-_WINDOW:]).endswith(_BROKEN):
            return kept
    return context


def _is_border(decode: Decode, context: Sequence[int], place: int) -> bool:
    """Return True if no character extends across this place: a byte token can be a part of a character."""
    before, after = decode(context[max(0, place - _WINDOW) : place]), decode(context[place : place + _WINDOW])
    return not before.endswith(_BROKEN) and not after.startswith(_BROKEN)
