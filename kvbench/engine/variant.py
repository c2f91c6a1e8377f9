"""The input and the output of the engine."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from kvbench.cache.base import TokensRead
from kvbench.methods.budgets import Budget, check_budget
from kvbench.methods.method import Method
from kvbench.methods.prompt_facts import PromptFacts, Spans


class PromptLike(Protocol):
    """A rendered prompt; `kvbench.prompts.Prompt` is one."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def context_len(self) -> int: ...
    @property
    def stop_ids(self) -> frozenset[int]: ...
    @property
    def min_new_tokens(self) -> int: ...
    @property
    def first_may_stop(self) -> bool: ...
    @property
    def task(self) -> str | None: ...
    @property
    def template_len(self) -> int: ...


def spans_of(prompt: PromptLike, span: int) -> Spans:
    """Return the named regions of the first `span` tokens of a prompt; see `PromptFacts.spans`."""
    context = min(prompt.context_len, span)
    return {"template": (0, min(prompt.template_len, span)), "context": (0, context), "question": (context, span)}


def span_tokens(prompt: PromptLike, question: str) -> int:
    """Return how many tokens of a prompt are compressed: all (question aware), or its context alone (agnostic)."""
    return prompt.context_len if question == "agnostic" else len(prompt.ids)


@dataclass(frozen=True)
class Variant:
    """A method under a budget.

    Args:
        budget: tokens per KV head as an int, a share of the prompt as a float, a share of the full cache's bytes as a
            text such as "0.25B", None for no budget.
    """

    method: Method
    budget: Budget | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.budget, str):
            object.__setattr__(self, "budget", check_budget(self.budget))

    def for_prompt(self, facts: PromptFacts) -> Variant:
        """Return the variant with which a prompt is compressed; see `Composed.for_prompt`."""
        method = self.method.for_prompt(facts)
        return self if method is self.method else replace(self, method=method)

    def __str__(self) -> str:
        return f"{self.method.name}-{self.budget}" if self.method.takes(self.budget) else self.method.name


@dataclass(frozen=True, eq=False)
class Request:
    """Prompts with one context, and the variants that answer each of them, with one prefill for all.

    Attributes:
        rows: a prompt and a variant for every generation. The compressed tokens of all prompts are the same; the
            prompts differ in the tokens after them, their questions.
        max_new_tokens: most tokens of each answer.
        seed: seed of the run, for methods that draw random numbers.
        save_kept: return which tokens are kept, see `Generation.kept_mask`.
    """

    rows: Sequence[tuple[PromptLike, Variant]]
    max_new_tokens: int
    seed: int = 0
    save_kept: bool = False

    @classmethod
    def of(cls, prompt: PromptLike, variants: Iterable[Variant], max_new_tokens: int, seed: int = 0) -> Request:
        """Return the request of a single prompt under some variants."""
        return cls([(prompt, variant) for variant in variants], max_new_tokens, seed)

    @property
    def prompts(self) -> list[PromptLike]:
        """The different prompts, in the order of the rows."""
        return list({id(prompt): prompt for prompt, _ in self.rows}.values())

    @property
    def variants(self) -> list[Variant]:
        """The different variants, in the order of the rows. Each compresses the context once."""
        return list(dict.fromkeys(variant for _, variant in self.rows))

    def part(self, count: int) -> Request:
        """Return the request of the first `count` rows."""
        return replace(self, rows=self.rows[:count])

    def select(self, places: Iterable[int]) -> Request:
        """Return the request of the rows with these indices."""
        return replace(self, rows=[self.rows[place] for place in places])


def context_key(prompt: PromptLike, question: str) -> Hashable:
    """Return a key that is equal for prompts that can share a prefill: same tokens of the context, same task."""
    return prompt.context_len, prompt.template_len, prompt.task, tuple(prompt.ids[: span_tokens(prompt, question)])


@dataclass(frozen=True)
class Timings:
    """Seconds of one row. No time that only other rows needed is included.

    All rows of a request share the forward pass over the context, and all questions under one variant share its
    compression. Both are counted in full for each row, as in a run of this row alone.

    Attributes:
        prefill_s: forward pass over the prompt without compression.
        compress_s: scoring, selecting and storing for this row, as if it were the only one. A score that
            several variants share is computed once and counted for each of them.
        ttft_s: time to first token: prefill, compression and, question-agnostic, the question's tokens. Questions of
            equal length are fed together.
        tpot_s: time per output token after the first, with the whole batch decoding; None for a single token.
            Prefills of prompts that join the batch in between do not count.
    """

    prefill_s: float
    compress_s: float
    ttft_s: float
    tpot_s: float | None


@dataclass
class Generation:
    """One row: the answer of a variant to a prompt, and the tokens it kept.

    Kept tokens and bytes count over the layers that attend to the whole prompt. Layers with a window keep all of it and
    do not count.

    Attributes:
        text: decoded tokens without the stop token.
        token_ids: generated ids, the stop token included.
        finish_reason: "stop", "length" or "failed".
        prompt_tokens: tokens of the whole prompt; span: of the part that was compressed.
        budget_tokens: tokens per KV head that the budget allowed, under a budget in bytes their mean; None without one.
        budget_bytes: bytes that a budget in bytes allowed; None for another one.
        kept: stored tokens per layer and KV head right after compression; empty if nothing was computed.
        kept_max: most tokens any head stored, prefill and decoding included.
        read: tokens that a query head read per decode step; None for a method that reads all that it keeps.
        kv_bytes: bytes of the kept keys and values right after compression.
        held_bytes: the same with what the decode policy knows of each token; None if the cache only simulates.
        forms: {setting of the store: its value in each layer}, where a budget in bytes chose them; else None.
        chosen: what the method chose by the prompt, such as its task; empty if it chooses nothing.
        slack_bytes: bytes reserved for further tokens.
        kv_bytes_full: bytes of the same span in a full cache.
        rows: rows that decoded together when this one began, those of other prompts included.
        kernel: name of the backend that attended to the cache, one of `kvbench_kernels.backends.NAMES`.
        decode_step: "fused" if our own small ops ran between the products of the decode steps, "transformers" if not.
        error: why the row failed, in one line; None otherwise. Its tokens up to then are in `token_ids`.
        kept_mask: which tokens are stored right after compression, bool [layers, KV heads, span], where the request
            asks for it; None for a method that takes its prompt in chunks.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    span: int
    budget_tokens: int | float | None
    kept: list[list[int]]
    kept_max: int
    kv_bytes: int
    slack_bytes: int
    kv_bytes_full: int
    rows: int
    kernel: str
    decode_step: str = "transformers"
    timings: Timings = field(default_factory=lambda: Timings(0.0, 0.0, 0.0, None))
    error: str | None = None
    read: TokensRead | None = None
    budget_bytes: int | None = None
    held_bytes: int | None = None
    kept_mask: Tensor | None = None
    forms: Mapping[str, Sequence[Any]] | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept_total(self) -> int:
        """Stored tokens over all layers and KV heads."""
        return sum(map(sum, self.kept))

    @property
    def kept_mean(self) -> float:
        """Stored tokens per KV head, averaged over layers and heads; 0 if nothing was computed."""
        return self.kept_total / max(1, sum(map(len, self.kept)))
