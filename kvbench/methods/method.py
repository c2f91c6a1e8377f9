"""A method: parts put together, as plain data."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvbench.methods.base import Ask, Candidates, Heads, LayerContext, Layers, Score, Select
from kvbench.methods.decode import DecodePolicy
from kvbench.methods.dials import check_budget, check_room, window_tokens
from kvbench.methods.store import Store


@dataclass(frozen=True)
class Method:
    """A compression method, composed by `kvbench.load_method` from conf/method/<name>.yaml.

    A method without `select` keeps every token, and no budget applies to it (full cache, quantisation).
    """

    name: str
    dials: Mapping[str, Any] = field(default_factory=dict, hash=False)
    score: Score | None = None
    layers: Layers | None = None
    heads: Heads | None = None
    select: Select | None = None
    store: Store | None = None
    decode: DecodePolicy | None = None

    @property
    def parts(self) -> tuple[Any, ...]:
        """The parts that this method has."""
        every = (self.score, self.layers, self.heads, self.select, self.store, self.decode)
        return tuple(part for part in every if part is not None)

    @property
    def evicts(self) -> bool:
        """Whether a budget applies."""
        return self.select is not None

    @property
    def exact(self) -> bool:
        """Whether the kept tokens add up to the budget exactly (else: to a reference's rounding of it)."""
        return bool(self.dials.get("allocation", "exact") == "exact")

    @property
    def needs_statistics(self) -> bool:
        """Whether layer budgets depend on the scores of all layers, so that K and V wait for the prefill's end."""
        return self.layers is not None and self.layers.needs_statistics

    def tokens(self, budget: int | float | None, span: int) -> int | None:
        """Tokens per KV head that `budget` allows on a prompt of `span` tokens; None if no budget applies.

        Raises:
            ValueError: the budget is no budget, or leaves no room beside sinks and window.
        """
        if not self.evicts:
            return None
        if budget is None:
            raise ValueError(f"budget=null: {self.name} needs a budget")
        budget = check_budget(budget)
        if isinstance(budget, int):
            tokens, said = budget, f"{budget}"
        else:  # 1e-9: 0.29 of 100 is 29, whatever binary fractions say
            tokens, said = (
                int(budget * span + 1e-9),
                f"{budget} (of {span} tokens: {int(budget * span + 1e-9)})",
            )
        if tokens < span or isinstance(budget, int) or self.decode is not None:
            check_room(self.name, self.dials, tokens, said)
        return min(tokens, span)

    def layer_totals(
        self, tokens: int, *, span: int, layers: int, heads: int, statistics: Sequence[Tensor] | None = None
    ) -> list[int]:
        """Tokens of every layer, summed over its KV heads."""
        if tokens >= span:
            return [span * heads] * layers
        return self._layers(Ask(tokens, span, layers, heads, self._protected(tokens), statistics))

    def scores(self, ctx: LayerContext) -> Tensor:
        """[U, T] scores, shared by all variants with an equal `score`."""
        return ctx.memo(("score", self.score), lambda: self._score(ctx))

    def mask(self, ctx: LayerContext, tokens: int, total: int) -> Tensor:
        """The keep mask [U, T] of one layer that may keep `total` tokens over its heads."""
        window = self._window(tokens)
        sinks = self._select.sinks
        key: Hashable = ("candidates", self.score, sinks, window)
        candidates = ctx.memo(
            key, lambda: Candidates(self.scores(ctx)[:, sinks : ctx.num_tokens - window].contiguous())
        )
        free = total - (sinks + window) * ctx.num_kv_heads
        by_kernel = getattr(self._select, "by_kernel", None)  # parts need not know of kernels
        scope = getattr(self._heads, "scope", None)
        known = candidates.values_UN.dtype == torch.float32  # rounded to it, other scores would tie
        if ctx.kernels is not None and known and by_kernel is not None and scope is not None:
            mask: Tensor = by_kernel(ctx, candidates, free, scope, window)
            return mask
        return self._select(ctx, candidates, self._heads(candidates, free), window)

    def keep(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        budget: int | float | None = None,
        layer: int = 0,
        num_layers: int = 1,
        scaling: float | None = None,
        layer_scores: Sequence[Tensor] | None = None,
        **context: Any,
    ) -> list[Tensor]:
        """Which tokens of one layer stay.

        Args:
            q: [H, T, D] queries after RoPE (a leading batch dimension of 1 is accepted, as for k and v).
            k, v: [U, T, D] keys and values.
            budget: tokens per KV head as int, or share of T as float; averaged over layers and heads.
            layer, num_layers: position of the layer, for layer-wise budgets.
            scaling: factor on the logits, 1 / sqrt(D) by default.
            layer_scores: [T] scores of every layer, for methods whose layer budgets depend on all layers
                (`needs_statistics`); see `layer_statistic`.
            context: further fields of `LayerContext` (token_ids, spans, shared).

        Returns:
            One sorted LongTensor of kept positions per KV head.

        Raises:
            ValueError: an impossible budget, or shapes that do not fit.
        """
        q, k, v = (x[0] if x.dim() == 4 and x.shape[0] == 1 else x for x in (q, k, v))
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer={layer} must lie in [0, num_layers={num_layers})")
        ctx = LayerContext(q, k, v, scaling=scaling, layer=layer, num_layers=num_layers, **context)
        tokens = self.tokens(budget, ctx.num_tokens)
        if tokens is None or tokens >= ctx.num_tokens:
            keep_UT = k.new_ones(k.shape[:2]).bool()
        else:
            totals = self.layer_totals(
                tokens,
                span=ctx.num_tokens,
                layers=num_layers,
                heads=ctx.num_kv_heads,
                statistics=layer_scores,
            )
            keep_UT = self.mask(ctx, tokens, totals[layer])
        return [row.nonzero().flatten() for row in keep_UT]

    def keep_layers(
        self, layers: Sequence[tuple[Tensor, Tensor, Tensor]], *, budget: int | float | None = None, **context: Any
    ) -> list[list[Tensor]]:
        """`keep` for all layers of a model at once, given as (q, k, v) triples; serves every method.

        Returns:
            Per layer, one sorted LongTensor of kept positions per KV head.
        """
        scaling = context.get("scaling")
        scores = [self.layer_statistic(*qkv, scaling=scaling) for qkv in layers] if self.needs_statistics else None
        return [
            self.keep(*qkv, budget=budget, layer=i, num_layers=len(layers), layer_scores=scores, **context)
            for i, qkv in enumerate(layers)
        ]

    def layer_statistic(self, q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None = None) -> Tensor:
        """[T] scores of one layer, as `keep` wants them of every layer if the method `needs_statistics`."""
        q, k, v = (x[0] if x.dim() == 4 and x.shape[0] == 1 else x for x in (q, k, v))
        return self._layers.statistic(self.scores(LayerContext(q, k, v, scaling=scaling)))

    def _protected(self, tokens: int) -> int:
        return self._select.sinks + self._window(tokens)

    def _window(self, tokens: int) -> int:
        return window_tokens(self._select.window, tokens)

    # `_score` and its like say to readers and type checkers that an evicting method has all four parts.
    @property
    def _score(self) -> Score:
        assert self.score is not None
        return self.score

    @property
    def _layers(self) -> Layers:
        assert self.layers is not None
        return self.layers

    @property
    def _heads(self) -> Heads:
        assert self.heads is not None
        return self.heads

    @property
    def _select(self) -> Select:
        assert self.select is not None
        return self.select
