"""The published ways from text to token ids, for numbers that are to be compared with published ones.

The prompt is a string that goes through the tokenizer as it is: a control token that happens to be spelled in a data
set becomes one, a prompt that was cut in the middle is joined as text and tokenised again, and the chat template is
applied to the text. The steps and their order are those of LongBench's prediction script (arXiv 2308.14508) and of the
projects that changed it; `Rendering` says which.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from kvbench.encoding import PLACEHOLDER, around_user, cleaned_up, decoder, encoder, has_template, rendered
from kvbench.encoding.decoding import cleans_up
from kvbench.prompts.prompt import Cut, Prompt
from kvbench.prompts.strict import check_length, end_of_turn, missing_bos, tokens_before

if TYPE_CHECKING:
    from kvbench.benchmarks.base import Rendering, Sample
    from kvbench.models import EndIds

log = logging.getLogger(__name__)

_LLAMA3_ENDS = ("<|eot_id|>", "<|end_of_text|>")  # also of its base model, which has no template


def render(
    tokenizer: Any,
    sample: Sample,
    rendering: Rendering,
    *,
    span: str,
    chat_template: str = "auto",
    chat_kwargs: Mapping[str, Any] | None = None,
    ends: EndIds,
    max_length: int | None = None,
) -> Prompt:
    """Turn a sample into token ids the way `rendering` says.

    span: "prompt" compresses and encodes the whole; "context" the part before the question, by itself. max_length: the
    model's limit. Raises ValueError for a prompt that stays longer than the limit.
    """
    wrap = _Wrapper(tokenizer, rendering, chat_template, dict(chat_kwargs or {}), sample.chat)
    if span == "context" and rendering.truncation == "context":
        ids, context_len, text, cut = _apart(tokenizer, sample, rendering, wrap, max_length)
    else:
        ids, context_len, text, cut = _whole(tokenizer, sample, rendering, wrap, span)
    _check_positions(sample, rendering, len(ids), max_length)
    stops = {_stop_id(tokenizer, stop) for stop in sample.stop}
    stops |= {"all": ends.all, "model": ends.model, "tokenizer": ends.tokenizer}[rendering.stops]
    if rendering.stops == "all":
        stops |= {i for token, i in encoder(tokenizer).specials.items() if token in _LLAMA3_ENDS}
    if rendering.stops == "all" and has_template(tokenizer, chat_template):
        stops |= end_of_turn(tokenizer, encoder(tokenizer), dict(chat_kwargs or {}))
    return Prompt(
        tuple(ids),
        context_len,
        frozenset(stops),
        text,
        sample.min_new_tokens,
        first_may_stop=rendering.first_may_stop,
        clean_up_spaces=rendering.clean_up_spaces and cleans_up(tokenizer),
        cut=cut,
        task=sample.task,
        template_len=tokens_before(ids, *(_encode(tokenizer, wrap.front, special)[0] for special in (False, True))),
    )


class _Wrapper:
    """The chat wrapper of one sample, applied to strings."""

    def __init__(self, tokenizer: Any, rendering: Rendering, policy: str, kwargs: dict[str, Any], chat: bool) -> None:
        self._tokenizer, self._kwargs = tokenizer, kwargs
        self.kind = rendering.wrapper if chat else "none"
        if self.kind in ("chat", "native") and not has_template(tokenizer, policy):
            self.kind = "none"

    def around(self, text: str) -> str:
        """Return the wrapped prompt."""
        if self.kind == "none":
            return text
        if self.kind == "native":
            return self._native(text)
        before, after = self._sides()
        return before + text + after

    def split(self, context: str) -> tuple[str, str]:
        """Return the template with the context before the border, and what it writes after the border."""
        if self.kind == "native":
            before, _, after = self._native(context + PLACEHOLDER).partition(PLACEHOLDER)
            return before, after
        before, after = self._sides()
        return before + context, after

    @property
    def front(self) -> str:
        """The text that comes before the context."""
        return self.split("")[0]

    def _native(self, text: str) -> str:
        return rendered(self._tokenizer, [{"role": "user", "content": text}], self._kwargs)

    def _sides(self) -> tuple[str, str]:
        if self.kind == "none":
            return "", ""
        if self.kind == "chat":
            return around_user(self._tokenizer, self._kwargs)
        before, _, after = self.kind.partition("{prompt}")
        return before, after


def _whole(
    tokenizer: Any, sample: Sample, rendering: Rendering, wrap: _Wrapper, span: str
) -> tuple[list[int], int, str, Cut | None]:
    """Return ids, tokens of the context, text and cut of a prompt that is truncated and wrapped as one string."""
    text = sample.context + sample.question + sample.answer_prefix
    if rendering.wrap_first:
        text = wrap.around(text)
    tails = [sample.question + sample.answer_prefix]
    ids, ends = _encode(tokenizer, text)
    cut = None
    is_cut = rendering.max_length is not None and len(ids) > int(rendering.max_length)
    if is_cut and rendering.truncation == "refuse":
        raise ValueError(
            f"benchmark.max_length={rendering.max_length}: the prompt of sample {sample.id} has {len(ids)} tokens"
        )
    if is_cut:
        half = int(int(rendering.max_length or 0) / 2)
        cut = Cut(len(ids) - 2 * half, len(ids), "in the middle of the prompt")
        border, ends = _border(text, tails), ends[:half] + ends[-half:]
        decode = decoder(tokenizer, rendering.clean_up_spaces, skip_special_tokens=True)
        first, last = (decode(part) for part in (ids[:half], ids[-half:]))
        text, ids = first + last, ids[:half] + ids[-half:]
        if rendering.clean_up_spaces and cleans_up(tokenizer):
            tails.append(cleaned_up(tails[0]))
        tails.append(last)  # all that is left of a question that was cut itself
        if rendering.truncation == "middle_ids":  # ids stay as they are: no wrapper, nothing is encoded again
            return ids, _tokens_before(ends, border), text, cut
    if not rendering.wrap_first:
        text = wrap.around(text)
    border = _border(text, tails)
    special = _adds_bos(tokenizer, text, rendering, wrap)
    if span == "context":
        head, _ = _encode(tokenizer, text[:border], special)
        return head + tokenizer.encode(text[border:], add_special_tokens=False), len(head), text, cut
    ids, ends = _encode(tokenizer, text, special)
    return ids, _tokens_before(ends, border), text, cut


def _apart(
    tokenizer: Any, sample: Sample, rendering: Rendering, wrap: _Wrapper, max_length: int | None
) -> tuple[list[int], int, str, Cut | None]:
    """Return the same where context and question are encoded apart, and only the context's end can be cut."""
    if not sample.chat:
        before, after = sample.context, ""
    elif wrap.kind == "none":  # no template where one was expected
        before, after = (tokenizer.bos_token or "") + sample.context, rendering.bare_tail
    else:
        before, after = wrap.split(sample.context)
    head = tokenizer.encode(before, add_special_tokens=False)
    tail = tokenizer.encode(sample.question + after + sample.answer_prefix, add_special_tokens=False)
    total = len(head)
    room = rendering.max_length if rendering.max_length is not None else max_length
    if room is not None:
        # published code does not check this: it goes past the positions that the model knows
        inside = max_length - len(tail) - sample.max_new_tokens if max_length is not None else int(room)
        head = head[: max(1, min(int(room), inside))]
    cut = Cut(total - len(head), total, "at the end of the context") if len(head) < total else None
    return head + tail, len(head), before + sample.question + after + sample.answer_prefix, cut


def _encode(tokenizer: Any, text: str, special: bool = True) -> tuple[list[int], list[int]]:
    """Return ids and, for each, the place in the text where it ends."""
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, ends = list(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]
    bos = missing_bos(tokenizer) if special else None
    return (ids, ends) if bos is None else ([bos, *ids], [0, *ends])


def _adds_bos(tokenizer: Any, text: str, rendering: Rendering, wrap: _Wrapper) -> bool:
    """Return True if the tokenizer puts its own BOS (and the like) before a finished text."""
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    by_wrapper = begins and wrap.kind != "none"
    return not {"added": False, "once": by_wrapper, "missing": begins}[rendering.bos]


def _border(text: str, tails: Sequence[str]) -> int:
    """Return where the question begins in the finished text: at the first tail that occurs in it.

    A template may have trimmed the end of the text.
    """
    places = [text.rfind(tail.rstrip()) for tail in tails if tail.strip()]
    return next((place for place in places if place >= 0), len(text))


def _tokens_before(ends: Sequence[int], border: int) -> int:
    """Return the number of tokens that end before a place of the text; one across it belongs to the question."""
    return next((index for index, end in enumerate(ends) if end > border), len(ends))


def _stop_id(tokenizer: Any, stop: str) -> int:
    """Return the last token of a stop string, as LongBench's script does. Raises ValueError where there is none."""
    ids = tokenizer.encode(stop, add_special_tokens=False)
    if not ids or ids[-1] == tokenizer.unk_token_id:
        raise ValueError(
            f"benchmark: this tokenizer has no token for {stop!r}, which ends the answers of this dataset; "
            "leave the dataset out, or take another benchmark.protocol"
        )
    return int(ids[-1])


def _check_positions(sample: Sample, rendering: Rendering, tokens: int, max_length: int | None) -> None:
    """Raise ValueError for a prompt and an answer that the model's positions do not hold.

    A published protocol that cuts at a length of its own may go past them with its answer, as its authors did.
    """
    if rendering.truncation in ("middle", "middle_ids"):
        check_length(sample, tokens, max_length, answer=0)
        if max_length is not None and tokens + sample.max_new_tokens - 1 > max_length:
            _say_beyond(max_length, rendering.max_length)
    else:
        check_length(sample, tokens, max_length)


@cache
def _say_beyond(max_length: int, cut: int | str | None) -> None:
    log.warning(
        "prompts of %s tokens and their answers go past the model's %s positions, as in the published runs; "
        "benchmark.max_length=N cuts further",
        cut,
        max_length,
    )
