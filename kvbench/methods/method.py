"""A method: its parts put together, as plain data.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kvbench.methods.base import DecodePolicy, Heads, LayerBudget, Layers, Score, Select, Store
from kvbench.methods.candidates import Candidates
from kvbench.methods.context import Kernels, LayerContext
from kvbench.methods.dials import check_budget
from kvbench.methods.fields import InvalidField
from kvbench.methods.memo import Memo


@dataclass(frozen=True)
class Eviction:
    """The four parts that a method needs to keep some tokens and drop the others.

    Raises:
        ValueError: a part lacks what its protocol gives to a class that inherits from it.
    """

    score: Score
    layers: Layers
    heads: Heads
    select: Select

    def __post_init__(self) -> None:
        for name, protocol in (("score", Score), ("layers", Layers), ("heads", Heads), ("select", Select)):
            part = getattr(self, name)
            if not isinstance(part, protocol):
                raise ValueError(
                    f"{name}={type(part).__name__}: must inherit from kvbench.methods.base.{protocol.__name__}"
                )

    def layer_totals(
        self, tokens: int, *, span: int, layers: int, heads: int, statistics: Sequence[Tensor] | None = None
    ) -> list[int]:
        """Return the tokens of every layer, summed over its KV heads."""
        protected = self.select.protected(tokens).total
        return self.layers(LayerBudget(tokens, span, layers, heads, protected, statistics))

    def mask(self, ctx: LayerContext, tokens: int, total: int) -> Tensor:
        """Return the keep mask [U, T] of a layer that may keep `total` tokens over its heads."""
        protected = self.select.protected(tokens)
        first, last = protected.sinks, ctx.num_tokens - protected.window
        candidates = ctx.memo(
            ("candidates", self.score, protected),
            lambda: Candidates(ctx.score(self.score)[:, first:last].contiguous(), ctx.kernels, Memo(ctx.watch)),
        )
        budget = self.heads(candidates, total - protected.total * ctx.num_kv_heads)
        return self.select(ctx, candidates, budget, protected)


@dataclass(frozen=True)
class Method:
    """A compression method, composed by `kvbench.load_method` from conf/method/<name>.yaml.

    Attributes:
        dials: what the user may set, as in the YAML.
        eviction: None for a method that keeps every token (full cache, quantisation): no budget applies to it.
        store: the form in which kept tokens are held; None for plain keys and values.
        decode: what leaves the cache while generating; None for nothing.
        dial_of: (part, field of it) -> the dial that feeds the field, for messages.
    """

    name: str
    dials: Mapping[str, Any] = field(default_factory=dict, hash=False)
    eviction: Eviction | None = None
    store: Store | None = None
    decode: DecodePolicy | None = None
    dial_of: Mapping[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def parts(self) -> tuple[object, ...]:
        """The parts that this method has."""
        evicting = () if self.eviction is None else tuple(vars(self.eviction).values())
        return (*evicting, *(part for part in (self.store, self.decode) if part is not None))

    @property
    def evicts(self) -> bool:
        """True if the method drops tokens, so that a budget applies."""
        return self.eviction is not None

    @property
    def exact(self) -> bool:
        """True if the kept tokens add up to the budget; False if they add up to a reference's rounding of it."""
        return self.eviction is None or (self.eviction.layers.exact and self.eviction.heads.exact)

    @property
    def needs_statistics(self) -> bool:
        """True if layer budgets depend on the scores of all layers. K and V then wait for the prefill's end."""
        return self.eviction is not None and self.eviction.layers.needs_statistics

    @property
    def queries(self) -> int:
        """Queries whose attention to all tokens the score holds at once; for the memory estimate."""
        return 0 if self.eviction is None else self.eviction.score.queries

    def tokens(self, budget: int | float | None, span: int) -> int | None:
        """Return the tokens per KV head that `budget` allows on a prompt of `span` tokens; None if no budget applies.

        Raises:
            ValueError: the budget is no budget, or leaves no room next to the tokens that are always kept.
        """
        if self.eviction is None:
            return None
        if budget is None:
            raise ValueError(f"budget=null: {self.name} needs a budget")
        budget = check_budget(budget)
        if isinstance(budget, int):
            self.check_room(budget)
            return min(budget, span)
        tokens = int(budget * span + 1e-9)  # 0.29 of 100 is 29, although 0.29 * 100 is a hair less
        if tokens < span or self.decode is not None:
            self.check_room(tokens, f"{budget} (of {span} tokens: {tokens})")
        return min(tokens, span)

    def check_room(self, tokens: int, budget: str = "") -> None:
        """Check that a budget of `tokens` exceeds what is always kept, or nothing would be selected.

        Args:
            budget: how the user gave the budget; `tokens` if empty.

        Raises:
            ValueError: one line naming `budget` and the dials to change.
        """
        protected = self._evicting.select.protected(tokens).total
        if tokens <= protected == 0:
            raise ValueError(f"budget={budget or tokens}: {self.name} would keep no token; the budget must be larger")
        if tokens <= protected:
            dials = [dial for (part, _), dial in self.dial_of.items() if part == "select" and self.dials.get(dial)]
            settings = ", ".join(f"method.{dial}={self.dials[dial]}" for dial in dials) or "by its selection"
            raise ValueError(
                f"budget={budget or tokens}: {self.name} always keeps {protected} tokens ({settings}); "
                f"the budget must be larger, or these smaller"
            )

    def check_scored(self, tokens: int) -> None:
        """Raise ValueError if a token that a budget of `tokens` may evict has no score."""
        window, unscored = self._evicting.select.protected(tokens).window, self._evicting.score.unscored
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
            raise ValueError(error.text(lambda name: self.dial_of.get(("store", name), name))) from None

    def layer_totals(
        self, tokens: int, *, span: int, layers: int, heads: int, statistics: Sequence[Tensor] | None = None
    ) -> list[int]:
        """Return the tokens of every layer, summed over its KV heads."""
        if tokens >= span:
            return [span * heads] * layers
        return self._evicting.layer_totals(tokens, span=span, layers=layers, heads=heads, statistics=statistics)

    def scores(self, ctx: LayerContext) -> Tensor:
        """Return [U, T] scores, shared by all variants with an equal score part."""
        return ctx.score(self._evicting.score)

    def statistic(self, ctx: LayerContext) -> Tensor:
        """Return the summary of a layer's scores that layer budgets need of every layer, if `needs_statistics`."""
        return self._evicting.layers.statistic(self.scores(ctx))

    def mask(self, ctx: LayerContext, tokens: int, total: int) -> Tensor:
        """Return the keep mask [U, T] of a layer that may keep `total` tokens over its heads."""
        self.check_scored(tokens)
        return self._evicting.mask(ctx, tokens, total)

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
        kernels: Kernels | None = None,
    ) -> list[Tensor]:
        """Return which tokens of one layer stay: one sorted LongTensor of positions per KV head.

        Args:
            q: [H, T, D] queries after RoPE (a leading batch dimension of 1 is accepted, as for k and v).
            k, v: [U, T, D] keys and values.
            budget: tokens per KV head as int, or share of T as float; averaged over layers and heads.
            layer, num_layers: position of the layer, for layer-wise budgets.
            scaling: factor on the logits, 1 / sqrt(D) by default.
            layer_scores: [T] scores of every layer, for methods whose layer budgets depend on all layers
                (`needs_statistics`); see `layer_statistic`.
            kernels: faster forms of some computations.

        Raises:
            ValueError: an impossible budget, or shapes that do not fit.
        """
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer={layer} must lie in [0, num_layers={num_layers})")
        q, k, v = map(_unbatched, (q, k, v))
        ctx = LayerContext(q, k, v, scaling=scaling, layer=layer, num_layers=num_layers, kernels=kernels)
        tokens = self.tokens(budget, ctx.num_tokens)
        if tokens is None or tokens >= ctx.num_tokens:
            keep_UT = k.new_ones(k.shape[:2]).bool()
        else:
            totals = self.layer_totals(
                tokens, span=ctx.num_tokens, layers=num_layers, heads=ctx.num_kv_heads, statistics=layer_scores
            )
            keep_UT = self.mask(ctx, tokens, totals[layer])
        return [row.nonzero().flatten() for row in keep_UT]

    def keep_layers(
        self,
        layers: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        budget: int | float | None = None,
        scaling: float | None = None,
        kernels: Kernels | None = None,
    ) -> list[list[Tensor]]:
        """Return `keep` of all layers of a model at once, given as (q, k, v) triples; serves every method."""
        scores = [self.layer_statistic(*qkv, scaling=scaling) for qkv in layers] if self.needs_statistics else None
        return [
            self.keep(
                *qkv,
                budget=budget,
                layer=i,
                num_layers=len(layers),
                scaling=scaling,
                layer_scores=scores,
                kernels=kernels,
            )
            for i, qkv in enumerate(layers)
        ]

    def layer_statistic(self, q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None = None) -> Tensor:
        """Return the [T] scores of one layer, as `keep` needs them of every layer if the method `needs_statistics`."""
        q, k, v = map(_unbatched, (q, k, v))
        return self.statistic(LayerContext(q, k, v, scaling=scaling))

    @property
    def _evicting(self) -> Eviction:
        """The eviction of a method that has one."""
        assert self.eviction is not None, f"{self.name} keeps every token"
        return self.eviction


def _unbatched(x: Tensor) -> Tensor:
    """Return the tensor without a leading batch dimension of 1."""
    return x[0] if x.dim() == 4 and x.shape[0] == 1 else x
