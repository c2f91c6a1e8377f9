"""The requests that a model cannot answer: too long for its positions, or with ids outside its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from kvbench.engine.rope import grows_with_length, switch_length
from kvbench.engine.survey import AttentionPlan
from kvbench.methods.method import Method


def check_methods(plan: AttentionPlan, methods: Iterable[Method]) -> None:
    """Raise ValueError, in one line, for a method whose parts do not fit the model."""
    for method in methods:
        method.check_head_dim(plan.head_dim)
        method.check_model(layers=len(plan.full), heads=plan.kv_heads, query_heads=plan.heads)


class RequestLimits:
    """The limits of a model.

    Args:
        plan: how its layers attend.
        max_length: tokens of prompt and answer together, without the last; by default the model's own limit. A model
            with learned positions never goes beyond its own.
    """

    def __init__(self, model: PreTrainedModel, plan: AttentionPlan, max_length: int | None = None) -> None:
        config = model.config.get_text_config()
        own = getattr(config, "max_position_embeddings", None)
        own = int(own) if isinstance(own, int) and own > 0 else None
        learned = getattr(config, "rope_parameters", None) is None
        lengths = [] if max_length is None else [(max_length, f"model.max_length is {max_length}")]
        if own is not None and (learned or (max_length is None and not grows_with_length(model))):
            lengths.append((own, f"the model has {own} positions"))
        if plan.limit is not None:
            lengths.append((plan.limit, plan.reason))
        self._limit = min(lengths, default=None, key=lambda pair: pair[0])
        self._switch = switch_length(model)
        embedding = next(model.get_input_embeddings().parameters())
        self._vocab = int(embedding.shape[0])

    def error(self, ids: Sequence[int], max_new_tokens: int, span: int | None = None) -> str | None:
        """Return one line that says why a request cannot be answered; None if it can.

        Args:
            span: tokens of the prompt that are prefilled together; by default all. The others are appended.
        """
        if not 0 <= min(ids) <= max(ids) < self._vocab:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            return f"token id {wrong} is not in the model's vocabulary of {self._vocab}; use the model's own tokenizer"
        return self.length_error(len(ids), max_new_tokens, span)

    def pass_error(self, name: str, span: int, tokens: int) -> str | None:
        """Return one line that says why a method cannot read `tokens` more after a context; None if it can."""
        needed = span + tokens
        reads = f"method={name}: it reads {tokens} more tokens after a context of {span}"
        if self._limit is not None and needed > self._limit[0]:
            return f"{reads}, but {self._limit[1]}; choose a shorter context or another method"
        if self._switch is not None and span <= self._switch < needed:
            return (
                f"{reads}, and the model changes its rotary frequencies at {self._switch} tokens (longrope); choose "
                "another context or method"
            )
        return None

    def length_error(self, prompt: int, max_new_tokens: int, span: int | None = None) -> str | None:
        """Return one line that says why a prompt and an answer of these lengths are impossible; None if not.

        Args:
            span: as for `error`.
        """
        needed = prompt + max(0, max_new_tokens - 1)  # the last token is never read again
        request = f"a prompt of {prompt} tokens and max_new_tokens={max_new_tokens}"
        if self._limit is not None and needed > self._limit[0]:
            limit, reason = self._limit
            remedy = f"give max_new_tokens={limit - prompt + 1} at most" if prompt <= limit else "shorten the prompt"
            return f"{request} need {needed} positions, but {reason}; {remedy}"
        first = prompt if span is None else span
        if self._switch is not None and first <= self._switch < needed:
            most = self._switch - prompt + 1
            part = f"{request}, of which {first} tokens are read first," if first < prompt else request
            remedy = f"give max_new_tokens={most} at most" if most > 0 else "shorten the prompt"
            return (
                f"{part} cross the {self._switch} tokens at which the model changes its rotary frequencies "
                f"(longrope), and no cache can follow; {remedy}"
            )
        return None
