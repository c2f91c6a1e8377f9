"""A method at work: its budget in tokens, its checks, and what its parts return for a layer.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvbench.methods.base import Part
from kvbench.methods.budgets import Budget, ByteShare, check_budget
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import InvalidField
from kvbench.methods.parts import Parts
from kvbench.methods.plan import Plan
from kvbench.methods.room import check_decode_room, check_kept_room, check_reading_room, raising
from kvbench.methods.storage import Store


@dataclass(frozen=True)
class Composed(Parts):
    """A compression method: its parts, and what they do under a budget."""

    def tokens(self, budget: Budget | str | None, span: int) -> int | None:
        """Return the tokens per KV head that `budget` allows on a prompt of `span` tokens; None if no budget applies.

        This serves tokens and shares of them; `kvbench.methods.allowance` serves bytes as well. If they count what a
        step reads, they may be more than the prompt has: an answer follows.

        Raises:
            ValueError: the budget is no budget, or leaves no room next to the tokens that are always kept.
        """
        if self.promises is None:
            return None
        if budget is None:
            raise ValueError(f"budget=null: {self.name} needs a budget")
        budget = check_budget(budget)
        if isinstance(budget, ByteShare):
            raise TypeError("the tokens of a budget in bytes depend on the model, see kvbench.methods.allowance")
        if isinstance(budget, int):
            self.check_room(budget)
            return min(budget, span) if self.look is None else budget
        tokens = int(budget * span + 1e-9)  # 0.29 of 100 is 29, although 0.29 * 100 is a hair less
        if self.look is not None:  # a short prompt is read by as many tokens as the look needs
            return max(tokens, self.look.least)
        if tokens < span or self.decode is not None:
            self.check_room(tokens, f"{budget} (of {span} tokens: {tokens})")
        return min(tokens, span)

    def encodes(self, tokens: int, kept: int) -> bool:
        """Return True if the store encodes something of a head with `tokens`, of which it kept `kept` of the prompt."""
        halves = () if self.store is None else self.store.halves
        return any(half is not None and half.encoded(tokens, kept) > 0 for half in halves)

    def unencoded_dials(self) -> list[tuple[str, Any]]:
        """Return the dials, with values, without which the store would encode more of a short head."""
        return list(raising(self.store, self._dials_of("store"), _plain_tokens))

    def check_room(self, tokens: int, budget: str = "") -> None:
        """Check that a budget of `tokens` exceeds what is always kept, or nothing would be selected.

        Args:
            budget: how the user gave the budget; `tokens` if empty.

        Raises:
            ValueError: one line naming `budget` and the dials to change.
        """
        shown = f"budget={budget or tokens}"
        if self.look is not None:
            check_reading_room(self.name, self.look, tokens, shown, self._dials_of("look"))
            return
        check_kept_room(self.name, self.evicting.select, tokens, shown, self._dials_of("select"))
        if self.decoding is not None:
            check_decode_room(self.name, self.decoding, tokens, shown, self._dials_of("decode"))

    def _dials_of(self, part: str) -> dict[str, tuple[str, Any]]:
        """Return {field: (dial, its value)} of the fields of a part that dials feed."""
        return {name: (dial, self.dials[dial]) for (of, name), dial in self.dial_of.items() if of == part}

    def check_scored(self, tokens: int) -> None:
        """Raise ValueError if a token that a budget of `tokens` may evict has no score."""
        score = self.evicting.score
        window, unscored = self.evicting.select.protected(tokens).window, 0 if score is None else score.unscored
        if window < unscored:
            raise ValueError(
                f"method={self.name}: its score ranks none of the last {unscored} tokens, but with {tokens} tokens per "
                f"KV head its selection keeps only the last {window}; give both the same window"
            )

    def check_head_dim(self, head_dim: int) -> None:
        """Raise ValueError, naming the dial to change, if tokens of this head dimension cannot be stored."""
        try:
            if self.store is not None:
                self.store.check(head_dim)
        except InvalidField as error:
            raise ValueError(self._text(error, "store")) from None

    def check_model(self, *, layers: int, heads: int, query_heads: int) -> None:
        """Raise ValueError, naming the dial to change, if a part does not fit a model of this shape."""
        for name, part in self.named_parts.items():
            if isinstance(part, Part):
                try:
                    part.check_model(layers=layers, heads=heads, query_heads=query_heads)
                except InvalidField as error:
                    raise ValueError(self._text(error, name)) from None

    def check_open_ended(self) -> None:
        """Raise ValueError, naming the dial to change, if the method must know how many tokens follow the prompt."""
        try:
            if self.decoding is not None:
                self.decoding.policy.for_answer(None)
        except InvalidField as error:
            raise ValueError(f"{self._text(error, 'decode')}, or use kvbench.generate") from None

    def layer_totals(
        self,
        tokens: int | None,
        *,
        span: int,
        layers: int,
        heads: int,
        query_heads: int,
        statistics: Sequence[Tensor] | None = None,
        extra: int = 0,
    ) -> list[int] | None:
        """Return the tokens of every layer, summed over its KV heads; None if the method decides by itself.

        Args:
            extra: tokens over all layers and heads in addition to `tokens` per head.
        """
        if tokens is None:
            return None if self.evicts else [span * heads] * layers
        if tokens >= span:
            return [span * heads] * layers
        budget = self.evicting.budget(
            tokens, span=span, layers=layers, heads=heads, query_heads=query_heads, statistics=statistics
        )
        return self.evicting.layer_totals(budget, extra)

    def drops(self, tokens: int | None, span: int) -> bool:
        """Return True if the method may drop tokens of a prompt of `span`, of which `tokens` are allowed."""
        return self.evicts and (tokens is None or tokens < span)

    def start_scores(self, ctx: LayerContext) -> Tensor | None:
        """Return the [U, T] scores from which the decode policy starts; None if it needs none."""
        score = None if self.decoding is None else self.decoding.policy.score
        return None if score is None else ctx.score(score)

    def plan(self, ctx: LayerContext, keep_UT: Tensor) -> Plan | None:
        """Return the policy that the selection chooses for each head; None if it chooses none."""
        if self.eviction is None or not self.eviction.select.policies:
            return None
        return self.eviction.select.plan(ctx, keep_UT)

    def statistic(self, ctx: LayerContext) -> Tensor:
        """Return the summary of a layer that layer budgets need of every layer, if `needs_statistics`."""
        layers, score = self.evicting.layers, self.evicting.score
        assert layers is not None and score is not None
        score_UT = ctx.score(score)  # outside of the memo: its seconds would count twice
        with ctx.calling("layers", layers):
            return ctx.memo(("statistic", layers, score), lambda: layers.statistic(ctx, score_UT))

    def merged(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [U, T, D] to store of kept tokens: the layer's own, or merged ones.

        Raises:
            ValueError: the merge returned other shapes.
        """
        if self.merge is None:
            return ctx.k, ctx.v
        with ctx.calling("merge", self.merge):
            merged = self.merge(ctx, keep_UT)
        for x, own in zip(merged, (ctx.k, ctx.v), strict=True):
            if x.shape != own.shape:
                raise ValueError(
                    f"method={self.name}: the merge {type(self.merge).__name__} returned {list(x.shape)}, must be "
                    f"[KV heads, tokens, head dimension] = {list(own.shape)}"
                )
        return merged[0].to(ctx.k.dtype), merged[1].to(ctx.v.dtype)

    def _text(self, error: InvalidField, part: str) -> str:
        """Return the message of a part's error, with dials in the place of the part's fields."""
        return error.text(lambda name: self.dial_of.get((part, name), name))


def _plain_tokens(store: Store) -> int:
    """Return the tokens of a head that a store leaves as they are before it encodes the first."""
    return next(n for n in itertools.count() if any(half is not None and half.encoded(n, n) for half in store.halves))
