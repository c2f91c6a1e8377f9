"""The budget of generated tokens over the steps of an answer: SCOPE's three schedules (arXiv 2412.13649)."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from torch import Tensor, where

from kvbench.methods.decoding import DecodePolicy
from kvbench.methods.fields import InvalidField, check_at_least, check_one_of


@dataclass(frozen=True)
class GrowingBudget(DecodePolicy):
    """A policy with a budget for generated tokens, in addition to the tokens of the prompt.

    Args:
        tokens: generated tokens that a head holds, of which the newest `recent` always stay.
        schedule: "slide": a budget of `tokens`; "adaptive": it grows from `recent` to `tokens`, by one every `delta`
            steps (0: see `for_answer`); "discontinuous": the same, with `delta` steps before each cut.
    """

    tokens: int = 512
    recent: int = 256
    schedule: str = "slide"
    delta: int = 0
    adds_to_prompt: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_at_least(self, "recent", 0)
        check_at_least(self, "delta", 0)
        check_one_of(self, "schedule", ("slide", "adaptive", "discontinuous"))
        if self.tokens <= self.recent:
            raise InvalidField("tokens", self.tokens, "must be larger than {recent}", recent=self.recent)
        if self.delta and self.schedule == "slide":
            raise InvalidField("delta", self.delta, "has no effect with {schedule}", schedule="slide")

    def for_answer(self, new: int | None) -> Self:
        """Return the policy for at most `new` tokens: its budget reaches `tokens` with the last of them."""
        if self.schedule == "slide" or self.delta:
            return self
        if new is None:
            raise InvalidField("delta", 0, "how many tokens will follow is not known here; give steps")
        return replace(self, delta=max(1, (new - self.recent) // (self.tokens - self.recent)))

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        """Return the tokens that a head may hold: those of the prompt, and its generated ones."""
        delta, since_B1 = self.delta or 1, steps_B1 * 0
        if self.schedule == "discontinuous":  # a token more in every step since the last cut
            first = _first_cut(self.tokens, self.recent, delta)
            since_B1 = where(steps_B1 < first, steps_B1, (steps_B1 - first) % (delta + 1))
        start = self.tokens if self.schedule == "slide" else self.recent
        grown_B1 = (start + (steps_B1 - since_B1 - 1) // delta).clamp(max=self.tokens)
        return base_BU + where(steps_B1 == since_B1, steps_B1, grown_B1 + since_B1)


@lru_cache
def _first_cut(tokens: int, recent: int, delta: int) -> int:
    """Return the step of the first cut: `delta` steps after the generated tokens are as many as the budget."""
    return delta + next(n for n in range(1, tokens + 1) if n >= min(tokens, recent + (n - 1) // delta))
