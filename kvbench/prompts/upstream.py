"""The published ways from text to token ids, for numbers that are to be compared with published ones.

The prompt is a string that goes through the tokenizer as it is: a control token that happens to be spelled in a data
set becomes one, a prompt that was cut in the middle is joined as text and tokenised again, and the chat template is
applied to the text. The steps and their order are those of LongBench's prediction script (arXiv 2308.14508) and of the
projects that changed it; `Rendering` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvbench.encoding import PLACEHOLDER, around_user, encoder
from kvbench.prompts.prompt import Ends, Prompt
from kvbench.prompts.strict import check_length, end_of_turn, uses_template

if TYPE_CHECKING:
    from kvbench.benchmarks.base import Rendering, Sample

_LLAMA3_ENDS = ("<|eot_id|>", "<|end_of_text|>")  # also of its base model, which has no template


def render(
    tokenizer: Any,
    sample: Sample,
    rendering: Rendering,
    *,
    span: str,
    chat_template: str = "auto",
    chat_kwargs: Mapping[str, Any] | None = None,
    ends: Ends,
    max_length: int | None = None,
) -> Prompt:
    """Turn a sample into token ids the way `rendering` says.

    span: "prompt" compresses and encodes the whole; "context" the part before the question, by itself. max_length: the
    model's limit. Raises ValueError for a prompt that stays longer than it.
    """
    wrap = _Wrapper(tokenizer, rendering, chat_template, dict(chat_kwargs or {}), sample.chat)
    if span == "context" and rendering.truncation == "context":
        ids, context_len, text = _apart(tokenizer, sample, rendering, wrap, max_length)
    else:
        ids, context_len, text = _whole(tokenizer, sample, rendering, wrap, span)
    check_length(sample, len(ids), max_length)
    stops = {tokenizer.encode(stop, add_special_tokens=False)[-1] for stop in sample.stop}
    stops |= {"all": ends.all, "model": ends.model, "tokenizer": ends.tokenizer}[rendering.stops]
    if rendering.stops == "all":
        stops |= {i for token, i in encoder(tokenizer).specials.items() if token in _LLAMA3_ENDS}
    if rendering.stops == "all" and uses_template(tokenizer, chat_template):
        stops |= end_of_turn(tokenizer, encoder(tokenizer), dict(chat_kwargs or {}))
    return Prompt(
        tuple(ids), context_len, frozenset(stops), text, sample.min_new_tokens, first_may_stop=rendering.first_may_stop
    )


class _Wrapper:
    """The chat wrapper of one sample, applied to strings."""

    def __init__(self, tokenizer: Any, rendering: Rendering, policy: str, kwargs: dict[str, Any], chat: bool) -> None:
        self._tokenizer, self._kwargs = tokenizer, kwargs
        self.kind = rendering.wrapper if chat else "none"
        if self.kind in ("chat", "native") and not uses_template(tokenizer, policy):
            self.kind = "none"

    def around(self, text: str) -> str:
        """The wrapped prompt."""
        if self.kind == "none":
            return text
        if self.kind == "native":
            return self._native(text)
        before, after = self._sides()
        return before + text + after

    def split(self, context: str) -> tuple[str, str]:
        """The template with the context before the border, and what it writes after the border."""
        if self.kind == "native":
            before, _, after = self._native(context + PLACEHOLDER).partition(PLACEHOLDER)
            return before, after
        before, after = self._sides()
        return before + context, after

    def _native(self, text: str) -> str:
        turns = [{"role": "user", "content": text}]
        made = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **self._kwargs)
        return str(made)

    def _sides(self) -> tuple[str, str]:
        if self.kind == "none":
            return "", ""
        if self.kind == "chat":
            return around_user(self._tokenizer, self._kwargs)
        before, _, after = self.kind.partition("{prompt}")
        return before, after


def _whole(
    tokenizer: Any, sample: Sample, rendering: Rendering, wrap: _Wrapper, span: str
) -> tuple[list[int], int, str]:
    """Ids, tokens of the context, and the text, of a prompt that is truncated and wrapped as one string."""
    text = sample.context + sample.question + sample.answer_prefix
    if rendering.wrap_first:
        text = wrap.around(text)
    tails = [sample.question + sample.answer_prefix]
    ids, ends = _encode(tokenizer, text)
    cut = rendering.max_length is not None and len(ids) > int(rendering.max_length)
    if cut and rendering.truncation == "refuse":
        raise ValueError(
            f"benchmark.max_length={rendering.max_length}: the prompt of sample {sample.id} has {len(ids)} tokens"
        )
    if cut:
        half = int(int(rendering.max_length or 0) / 2)
        border, ends = _border(text, tails), ends[:half] + ends[-half:]
        first, last = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))
        text, ids = first + last, ids[:half] + ids[-half:]
        tails.append(last)  # all that is left of a question that was cut itself
        if rendering.truncation == "middle_ids":  # ids stay as they are: no wrapper, and nothing encoded anew
            return ids, _tokens_before(ends, border), text
    if not rendering.wrap_first:
        text = wrap.around(text)
    border = _border(text, tails)
    special = _adds_bos(tokenizer, text, rendering, wrap)
    if span == "context":
        head, _ = _encode(tokenizer, text[:border], special)
        return head + tokenizer.encode(text[border:], add_special_tokens=False), len(head), text
    ids, ends = _encode(tokenizer, text, special)
    return ids, _tokens_before(ends, border), text


def _apart(
    tokenizer: Any, sample: Sample, rendering: Rendering, wrap: _Wrapper, max_length: int | None
) -> tuple[list[int], int, str]:
    """The same where context and question are encoded apart, and only the context's end can be cut."""
    if not sample.chat:
        before, after = sample.context, ""
    elif wrap.kind == "none":  # no template where one was expected
        before, after = (tokenizer.bos_token or "") + sample.context, rendering.bare_tail
    else:
        before, after = wrap.split(sample.context)
    head = tokenizer.encode(before, add_special_tokens=False)
    tail = tokenizer.encode(sample.question + after + sample.answer_prefix, add_special_tokens=False)
    room = rendering.max_length if rendering.max_length is not None else max_length
    if room is not None:
        # a published run has no such care: it would go past the positions that the model knows
        inside = max_length - len(tail) - sample.max_new_tokens if max_length is not None else int(room)
        head = head[: max(1, min(int(room), inside))]
    return head + tail, len(head), before + sample.question + after + sample.answer_prefix


def _encode(tokenizer: Any, text: str, special: bool = True) -> tuple[list[int], list[int]]:
    """Ids and, for each, the place in the text where it ends."""
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(made["input_ids"]), [end for _, end in made["offset_mapping"]]


def _adds_bos(tokenizer: Any, text: str, rendering: Rendering, wrap: _Wrapper) -> bool:
    """Whether the tokenizer puts its own BOS (and the like) before a finished text."""
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    by_wrapper = begins and wrap.kind != "none"
    return not {"added": False, "once": by_wrapper, "missing": begins}[rendering.bos]


def _border(text: str, tails: Sequence[str]) -> int:
    """Where the question begins in the finished text, whose end a template may have trimmed: the first tail found."""
    places = [text.rfind(tail.rstrip()) for tail in tails if tail.strip()]
    return next((place for place in places if place >= 0), len(text))


def _tokens_before(ends: Sequence[int], border: int) -> int:
    """Tokens that end at or before a place of the text; one across the border belongs to the question."""
    return next((index for index, end in enumerate(ends) if end > border), len(ends))
