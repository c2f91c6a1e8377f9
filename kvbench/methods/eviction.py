"""The parts that choose which tokens of a prompt stay, and how they work together.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.common.kinds import is_integer
from kvbench.methods.base import Heads, LayerBudget, Layers, NumberedHeads, Protected, Score, Select
from kvbench.methods.candidates import Candidates, HeadBudget, HeadSplit
from kvbench.methods.context import LayerContext
from kvbench.methods.dials import EVICTING, as_plain_number
from kvbench.methods.memo import Memo
from kvbench.methods.part_call import part_call

_PROTOCOLS = dict(zip(EVICTING, (Score, Layers, Heads, Select), strict=True))


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """The parts that a method needs to keep some tokens and drop the others.

    A counted selection keeps as many tokens as the budget says; it needs all four parts. Another one decides by itself
    how many stay: it has no layers and no heads, and its method takes no budget.

    Raises:
        ValueError: a part is missing, superfluous, or lacks what its protocol gives to a class that inherits from it.
    """

    score: Score | None = None
    layers: Layers | None = None
    heads: Heads | None = None
    select: Select

    def __post_init__(self) -> None:
        for name, protocol in _PROTOCOLS.items():
            part = getattr(self, name)
            if part is not None and not isinstance(part, protocol):
                raise ValueError(
                    f"{name}={type(part).__name__}: must inherit from kvbench.methods.base.{protocol.__name__}"
                )
        if self.select.counted:
            missing = [name for name in EVICTING if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a method that drops tokens also needs {', '.join(missing)} in its YAML")
        elif self.layers is not None or self.heads is not None:
            raise ValueError(
                f"select={type(self.select).__name__}: decides how many tokens stay; leave out layers and heads"
            )

    @property
    def counted(self) -> bool:
        """True if the kept tokens follow from a budget."""
        return self.select.counted

    @property
    def exact(self) -> bool:
        """True if the kept tokens add up to the budget; False if they add up to a reference's rounding of it."""
        return all(part is None or part.exact for part in (self.layers, self.heads, self.select))

    @property
    def scores(self) -> tuple[Score, ...]:
        """All scores that are read of a layer, the method's own first."""
        return (*(() if self.score is None else (self.score,)), *self.select.scores)

    def budget(
        self,
        tokens: int,
        *,
        span: int,
        layers: int,
        heads: int,
        query_heads: int,
        statistics: Sequence[Tensor] | None = None,
    ) -> LayerBudget:
        """Return a budget of `tokens` per KV head, as layers and heads read it."""
        sinks, window = self.select.protected(tokens)
        return LayerBudget(tokens, span, layers, heads, query_heads, sinks, window, statistics)

    def layer_totals(self, budget: LayerBudget, extra: int = 0) -> list[int]:
        """Return the tokens of every layer, summed over its KV heads.

        Args:
            extra: tokens in addition to the budget, fewer than the model has KV heads. They are spread evenly.
        """
        totals, limit = self._checked_totals(budget), budget.span * budget.heads
        while extra > 0:
            open_layers = [layer for layer, total in enumerate(totals) if total < limit]
            for place, layer in enumerate(open_layers):
                more = min(extra // (len(open_layers) - place), limit - totals[layer])
                totals[layer] += more
                extra -= more
        return totals

    def _checked_totals(self, budget: LayerBudget) -> list[int]:
        """Return what the layers part says. Raises ValueError if it does not share out the budget in whole tokens."""
        assert self.layers is not None
        name = type(self.layers).__name__
        with part_call(f"the layers {name}"):
            totals = self.layers(budget)
        numbers, least, most = _numbers(totals), budget.protected * budget.heads, budget.span * budget.heads
        if len(numbers) != budget.layers or not all(least <= n <= most for n in numbers):
            must = f"a list of {budget.layers} numbers of tokens from {least} to {most}"
            raise ValueError(f"method: the layers {name} returned {_shown(totals)}, must be {must}")
        wanted = budget.tokens * budget.layers * budget.heads
        if self.layers.exact and sum(numbers) != wanted:
            raise ValueError(f"method: the layers {name} returned {totals}, must add up to the budget: {wanted}")
        return numbers

    @property
    def by_numbers(self) -> bool:
        """True if the tokens of every KV head follow from numbers alone, whatever the scores are."""
        return isinstance(self.heads, NumberedHeads) and self.layers is not None and not self.layers.needs_statistics

    def head_tokens(self, layer: int, total: int, budget: LayerBudget) -> list[int]:
        """Return the tokens of every KV head of a layer, if they follow from numbers alone."""
        assert isinstance(self.heads, NumberedHeads)
        free, most = total - budget.protected * budget.heads, budget.span - budget.protected
        numbers = self._checked_counts(self.heads.numbers(layer, free, budget), free, budget.heads, most)
        return [count + budget.protected for count in numbers]

    def _checked_counts(self, counts: object, total: int, heads: int, most: int) -> list[int]:
        """Return what the heads part says. Raises ValueError if it does not share out `total` in whole tokens."""
        assert self.heads is not None
        numbers, name = _numbers(counts), type(self.heads).__name__
        if len(numbers) != heads or not all(0 <= n <= most for n in numbers):
            must = f"a list of {heads} numbers of tokens from 0 to {most}, or a HeadSplit of {total}"
            raise ValueError(f"method: the heads {name} returned {_shown(counts)}, must be {must}")
        if self.heads.exact and sum(numbers) != total:
            raise ValueError(f"method: the heads {name} returned {counts}, must add up to {total}")
        return numbers

    def least(self) -> int:
        """Return the smallest budget in tokens per KV head that exceeds the tokens that are always kept."""
        tokens = 1
        while self.select.protected(tokens).total >= tokens:
            tokens = self.select.protected(tokens).total + 1
        return tokens

    def mask(self, ctx: LayerContext, tokens: int | None, total: int | None) -> Tensor:
        """Return the keep mask [U, T] of a layer. Methods that choose by equal parts share one mask.

        Args:
            tokens: budget per KV head; None if the selection is not counted.
            total: tokens that the layer may keep, summed over its heads; None if the selection is not counted.
        """
        return ctx.memo(("mask", self, tokens, total), lambda: self._mask(ctx, tokens, total))

    def _mask(self, ctx: LayerContext, tokens: int | None, total: int | None) -> Tensor:
        if tokens is None or total is None:
            return self._measured_mask(ctx)
        candidates, counts = self._split(ctx, tokens, total)
        protected = self.select.protected(tokens)
        with ctx.calling("selection", self.select):
            keep_UT = self._checked(ctx, self.select(ctx, candidates, counts, protected))
        if self.select.exact:
            free = counts.total if isinstance(counts, HeadSplit) else sum(counts)
            kept, wanted = tokens_kept(keep_UT), free + protected.total * ctx.num_kv_heads
            if kept not in (None, wanted):
                name = type(self.select).__name__
                raise ValueError(f"method: the selection {name} kept {kept} tokens of a layer, must be {wanted}")
        return keep_UT

    def kept_counts(self, ctx: LayerContext, tokens: int, total: int) -> list[int]:
        """Return how many tokens of a layer each KV head keeps under a budget."""
        candidates, counts = self._split(ctx, tokens, total)
        return [count + self.select.protected(tokens).total for count in candidates.counts(counts)]

    def _split(self, ctx: LayerContext, tokens: int, total: int) -> tuple[Candidates, HeadBudget]:
        """Return the tokens that may be evicted, and how many of them each head keeps."""
        assert self.heads is not None
        protected = self.select.protected(tokens)
        candidates = self._candidates(ctx, protected)
        assert candidates is not None
        budget = self.budget(
            tokens,
            span=ctx.num_tokens,
            layers=ctx.num_layers,
            heads=ctx.num_kv_heads,
            query_heads=ctx.num_kv_heads * ctx.group,
        )
        free = total - protected.total * ctx.num_kv_heads
        with ctx.calling("heads", self.heads):
            counts = self.heads(ctx, candidates, free, budget)
        if isinstance(counts, HeadSplit) and counts.total == free:
            return candidates, counts
        return candidates, self._checked_counts(counts, free, *candidates.values_UN.shape)

    def _measured_mask(self, ctx: LayerContext) -> Tensor:
        """Return the keep mask of a selection that decides by itself how many tokens stay."""
        protected = self.select.protected(ctx.num_tokens)
        if protected.total >= ctx.num_tokens:
            return torch.ones(ctx.num_kv_heads, ctx.num_tokens, dtype=torch.bool, device=ctx.k.device)
        candidates = self._candidates(ctx, protected)
        with ctx.calling("selection", self.select):
            return self._checked(ctx, self.select(ctx, candidates, None, protected))

    def _checked(self, ctx: LayerContext, keep_UT: Tensor) -> Tensor:
        """Return a keep mask. Raises ValueError if it is none, which might pass unnoticed by broadcasting."""
        if not isinstance(keep_UT, Tensor) or keep_UT.shape != ctx.k.shape[:2] or keep_UT.dtype != torch.bool:
            raise ValueError(
                f"method: the selection {type(self.select).__name__} returned {_shown(keep_UT)}, "
                f"must be a mask of [KV heads, tokens] = {list(ctx.k.shape[:2])}"
            )
        return keep_UT

    def _candidates(self, ctx: LayerContext, protected: Protected) -> Candidates | None:
        """Return the tokens that may be evicted, with their scores; None without a score."""
        if self.score is None:
            return None
        score, first, last = self.score, protected.sinks, ctx.num_tokens - protected.window
        return ctx.memo(
            ("candidates", score, protected),
            lambda: Candidates(ctx.score(score)[:, first:last].contiguous(), ctx.kernels, Memo(ctx.watch)),
        )


def tokens_kept(keep_UT: Tensor) -> int | None:
    """Return how many tokens of a layer stay; None on a device for which the host would have to wait."""
    return int(keep_UT.sum()) if keep_UT.device.type == "cpu" else None


def _numbers(answer: object) -> list[int]:
    """Return a list of integers, those of other libraries included, as Python's; an empty one if it is none."""
    numbers = [as_plain_number(number) for number in answer] if isinstance(answer, Sequence) else []
    return numbers if all(map(is_integer, numbers)) else []


def _shown(answer: object) -> str:
    return f"{list(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else str(answer)
