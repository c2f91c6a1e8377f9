"""A method: its parts put together, as plain data.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kvbench.methods.base import Merge, Part, Probe, Score
from kvbench.methods.context import Kernels, LayerContext, PromptFacts
from kvbench.methods.decoding import Decoding, Feed
from kvbench.methods.dials import check_budget
from kvbench.methods.eviction import Eviction
from kvbench.methods.fields import InvalidField
from kvbench.methods.looking import Look
from kvbench.methods.model_view import ModelView
from kvbench.methods.storage import Store


@dataclass(frozen=True)
class Method:
    """A compression method, composed by `kvbench.load_method` from conf/method/<name>.yaml.

    Attributes:
        dials: what the user may set, as in the YAML.
        eviction: which tokens of the prompt stay; None for a method that keeps all of them.
        probe: forward passes of the method's own, before anything is scored; None for none.
        merge: how kept keys and values take up something of the dropped ones; None for not at all.
        store: the form in which kept tokens are held; None for plain keys and values.
        decode: what leaves the cache while generating, and when; None for nothing.
        look: which tokens a decode step reads; None for all that are kept.
        feed: the chunks in which the prompt goes through the decode path; None for the shared prefill.
        dial_of: (part, field of it) -> the dial that feeds the field, for messages.
    """

    name: str
    dials: Mapping[str, Any] = field(default_factory=dict, hash=False)
    eviction: Eviction | None = None
    probe: Probe | None = None
    merge: Merge | None = None
    store: Store | None = None
    decode: Decoding | None = None
    look: Look | None = None
    feed: Feed | None = None
    dial_of: Mapping[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def named_parts(self) -> dict[str, object]:
        """The parts that this method has, by their names in the YAML."""
        evicting = {} if self.eviction is None else vars(self.eviction)
        policy = None if self.decode is None else self.decode.policy
        parts = {
            **evicting,
            "probe": self.probe,
            "merge": self.merge,
            "feed": self.feed,
            "store": self.store,
            "decode": policy,
            "look": self.look,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def parts(self) -> tuple[object, ...]:
        """The parts that this method has."""
        return tuple(self.named_parts.values())

    @property
    def needs(self) -> frozenset[str]:
        """The fields of a layer's context that some part reads; see `kvbench.methods.base.NEEDS`."""
        return frozenset[str]().union(*(part.needs for part in self.parts if isinstance(part, Part)))

    @property
    def evicts(self) -> bool:
        """True if the method drops tokens of the prompt."""
        return self.eviction is not None

    @property
    def promises(self) -> Literal["kept", "read"] | None:
        """The meaning of a budget to this method; None if it takes no budget.

        "kept": the kept tokens add up to the budget. "read": as many tokens are read in every step. Without a budget
        everything is kept, or the method decides by itself how much; what it kept is measured and reported.
        """
        if self.look is not None:
            return "read"
        return "kept" if self.eviction is not None and self.eviction.counted else None

    @property
    def policy(self) -> Decoding | None:
        """The decode policy, with its dials, of rows that generate; None if nothing leaves while generating."""
        return None if self.decode is None or self.decode.phase == "prefill" else self.decode

    @property
    def keeps_prompt(self) -> bool:
        """True if the whole prompt is kept: it is cut when decoding begins, or a step reads part of it."""
        return self.look is not None or (self.decode is not None and self.decode.phase == "decode")

    @property
    def exact(self) -> bool:
        """True if the kept tokens add up to the budget; False if they add up to a reference's rounding of it."""
        return self.eviction is None or self.eviction.exact

    @property
    def needs_statistics(self) -> bool:
        """True if layer budgets depend on the scores of all layers. K and V then wait for the prefill's end."""
        layers = None if self.eviction is None else self.eviction.layers
        return layers is not None and layers.needs_statistics

    @property
    def waits(self) -> bool:
        """True if keys and values of all layers wait for the prefill's end, before tokens are chosen."""
        return self.needs_statistics or self.probe is not None

    @property
    def queries(self) -> int:
        """Queries whose attention to all tokens a score holds at once; for the memory estimate."""
        return max((score.queries for score in self.all_scores), default=0)

    @property
    def all_scores(self) -> tuple[Score, ...]:
        """All scores that the method reads of a layer, its own first."""
        evicting = () if self.eviction is None else self.eviction.scores
        start = None if self.policy is None else self.policy.policy.score
        return (*evicting, *(() if self.merge is None else self.merge.scores), *(() if start is None else (start,)))

    def tokens(self, budget: int | float | None, span: int) -> int | None:
        """Return the tokens per KV head that `budget` allows on a prompt of `span` tokens; None if no budget applies.

        If they count what a step reads, they may be more than the prompt has: an answer follows.

        Raises:
            ValueError: the budget is no budget, or leaves no room next to the tokens that are always kept.
        """
        if self.promises is None:
            return None
        if budget is None:
            raise ValueError(f"budget=null: {self.name} needs a budget")
        budget = check_budget(budget)
        if isinstance(budget, int):
            self.check_room(budget)
            return min(budget, span) if self.look is None else budget
        tokens = int(budget * span + 1e-9)  # 0.29 of 100 is 29, although 0.29 * 100 is a hair less
        if self.look is not None:  # a short prompt is read by as many tokens as the look needs
            return max(tokens, self.look.least)
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
        if self.look is not None:
            if tokens < self.look.least:
                dials = [
                    f"method.{dial}={self.dials[dial]}" for (part, _), dial in self.dial_of.items() if part == "look"
                ]
                raise ValueError(
                    f"budget={budget or tokens}: {self.name} reads at least {self.look.least} tokens per step "
                    f"({', '.join(dials)}); the budget must be larger, or these smaller"
                )
            return
        protected = self._evicting.select.protected(tokens).total
        if tokens <= protected == 0:
            raise ValueError(f"budget={budget or tokens}: {self.name} would keep no token; the budget must be larger")
        if tokens <= protected:
            settings = ", ".join(f"method.{d}={self.dials[d]}" for d in self._protecting(tokens)) or "by its selection"
            raise ValueError(
                f"budget={budget or tokens}: {self.name} always keeps {protected} tokens ({settings}); "
                f"the budget must be larger, or these smaller"
            )
        self._check_decode_room(tokens, budget)

    def _protecting(self, tokens: int) -> Iterator[str]:
        """Yield the dials without which the selection would always keep fewer tokens."""
        select: Any = self._evicting.select  # a dataclass: only the fields of one are fed by dials
        for (part, name), dial in self.dial_of.items():
            if part == "select":
                try:
                    smaller = replace(select, **{name: 0}).protected(tokens).total
                except (TypeError, ValueError):
                    continue  # no number, or one that cannot be 0
                if smaller < select.protected(tokens).total:
                    yield dial

    def _check_decode_room(self, tokens: int, budget: str) -> None:
        """Raise ValueError if the budget while generating leaves no token that the policy may drop."""
        if self.policy is None:
            return
        generating = self.policy.tokens(tokens)
        protected = self.policy.policy.protects(generating)
        if generating <= protected:
            dial = self.dial_of.get(("decode", "budget"), "decode.budget")
            raise ValueError(
                f"budget={budget or tokens} with method.{dial}={self.policy.budget}: {self.name} always keeps "
                f"{protected} tokens while generating, of {generating}; the budget must be larger"
            )

    def check_scored(self, tokens: int) -> None:
        """Raise ValueError if a token that a budget of `tokens` may evict has no score."""
        score = self._evicting.score
        window, unscored = self._evicting.select.protected(tokens).window, 0 if score is None else score.unscored
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

    def layer_totals(
        self,
        tokens: int | None,
        *,
        span: int,
        layers: int,
        heads: int,
        query_heads: int,
        statistics: Sequence[Tensor] | None = None,
    ) -> list[int] | None:
        """Return the tokens of every layer, summed over its KV heads; None if the method decides by itself."""
        if tokens is None:
            return None if self.evicts else [span * heads] * layers
        if tokens >= span:
            return [span * heads] * layers
        budget = self._evicting.budget(
            tokens, span=span, layers=layers, heads=heads, query_heads=query_heads, statistics=statistics
        )
        return self._evicting.layer_totals(budget)

    def drops(self, tokens: int | None, span: int) -> bool:
        """Return True if the method may drop tokens of a prompt of `span`, of which `tokens` are allowed."""
        return self.evicts and (tokens is None or tokens < span)

    def scores(self, ctx: LayerContext) -> Tensor | None:
        """Return [U, T] scores, shared by all variants with an equal score part; None without one."""
        score = self._evicting.score
        return None if score is None else ctx.score(score)

    def start_scores(self, ctx: LayerContext) -> Tensor | None:
        """Return the [U, T] scores from which the decode policy starts; None if it needs none."""
        score = None if self.policy is None else self.policy.policy.score
        return None if score is None else ctx.score(score)

    def statistic(self, ctx: LayerContext) -> Tensor:
        """Return the summary of a layer that layer budgets need of every layer, if `needs_statistics`."""
        layers, score = self._evicting.layers, self._evicting.score
        assert layers is not None and score is not None
        score_UT = ctx.score(score)  # outside of the memo: its seconds would count twice
        return ctx.memo(("statistic", layers, score), lambda: layers.statistic(ctx, score_UT))

    def mask(self, ctx: LayerContext, tokens: int | None, total: int | None) -> Tensor:
        """Return the keep mask [U, T] of a layer that may keep `total` tokens over its heads; None without a budget."""
        if tokens is not None:
            self.check_scored(tokens)
        return self._evicting.mask(ctx, tokens, total)

    def merged(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values [U, T, D] to store of kept tokens: the layer's own, or merged ones.

        Raises:
            ValueError: the merge returned other shapes.
        """
        if self.merge is None:
            return ctx.k, ctx.v
        merged = self.merge(ctx, keep_UT)
        for x, own in zip(merged, (ctx.k, ctx.v), strict=True):
            if x.shape != own.shape:
                raise ValueError(
                    f"method={self.name}: the merge {type(self.merge).__name__} returned {list(x.shape)}, must be "
                    f"[KV heads, tokens, head dimension] = {list(own.shape)}"
                )
        return merged[0].to(ctx.k.dtype), merged[1].to(ctx.v.dtype)

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
        model: ModelView | None = None,
        token_ids: Tensor | None = None,
        spans: Mapping[str, tuple[int, int]] | None = None,
        hidden: Tensor | None = None,
        probed: Mapping[Any, Any] | None = None,
        seed: int = 0,
    ) -> list[Tensor]:
        """Return which tokens of one layer stay: one sorted LongTensor of positions per KV head.

        Args:
            q: [H, T, D] queries after RoPE (a leading batch dimension of 1 is accepted, as for k and v).
            k, v: [U, T, D] keys and values.
            budget: tokens per KV head as int, or share of T as float; averaged over layers and heads.
            layer, num_layers: position of the layer, for layer-wise budgets.
            scaling: factor on the logits, 1 / sqrt(D) by default.
            layer_scores: the statistics of all layers, for methods whose layer budgets depend on them
                (`needs_statistics`); see `layer_statistic`.
            kernels: faster forms of some computations.
            model, token_ids, spans, hidden, probed: further facts, for methods that name them in `needs`:
                a view of the model, [T] ids, {region: (begin, end)}, the layer's [T, E] input, and results of the
                method's own forward passes by their part.
            seed: for methods that draw random numbers.

        Raises:
            ValueError: an impossible budget, shapes that do not fit, or a fact in `needs` that is not given.
        """
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer={layer} must lie in [0, num_layers={num_layers})")
        ctx = self._context(
            q,
            k,
            v,
            scaling,
            layer,
            num_layers,
            kernels,
            model=model,
            token_ids=token_ids,
            spans=spans,
            hidden=hidden,
            probed=probed,
            seed=seed,
        )
        tokens = self.tokens(budget, ctx.num_tokens)
        if not self.drops(tokens, ctx.num_tokens):
            keep_UT = torch.ones(ctx.k.shape[:2], dtype=torch.bool, device=k.device)
        else:
            totals = self.layer_totals(
                tokens,
                span=ctx.num_tokens,
                layers=num_layers,
                heads=ctx.num_kv_heads,
                query_heads=ctx.num_kv_heads * ctx.group,
                statistics=layer_scores,
            )
            keep_UT = self.mask(ctx, tokens, None if totals is None else totals[layer])
        return [row.nonzero().flatten() for row in keep_UT]

    def keep_layers(
        self,
        layers: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        budget: int | float | None = None,
        scaling: float | None = None,
        kernels: Kernels | None = None,
        **facts: Any,
    ) -> list[list[Tensor]]:
        """Return `keep` of all layers of a model at once, given as (q, k, v) triples; serves every method.

        Args:
            facts: as `keep` takes them, the same for all layers. Lists of `hidden` and `probed` have an item per layer.
        """
        own = [name for name in ("hidden", "probed") if isinstance(facts.get(name), list)]
        of_layer = [facts | {name: facts[name][i] for name in own} for i in range(len(layers))]
        scores = None
        if self.needs_statistics:
            scores = [
                self.layer_statistic(
                    q, k, v, scaling=scaling, layer=i, num_layers=len(layers), kernels=kernels, **of_layer[i]
                )
                for i, (q, k, v) in enumerate(layers)
            ]
        return [
            self.keep(
                q,
                k,
                v,
                budget=budget,
                layer=i,
                num_layers=len(layers),
                scaling=scaling,
                layer_scores=scores,
                kernels=kernels,
                **of_layer[i],
            )
            for i, (q, k, v) in enumerate(layers)
        ]

    def layer_statistic(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scaling: float | None = None,
        layer: int = 0,
        num_layers: int = 1,
        kernels: Kernels | None = None,
        **facts: Any,
    ) -> Tensor:
        """Return the statistic of one layer, as `keep` needs it of every layer if the method `needs_statistics`.

        Args:
            facts: as `keep` takes them.
        """
        return self.statistic(self._context(q, k, v, scaling, layer, num_layers, kernels, **facts))

    def _context(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float | None,
        layer: int,
        num_layers: int,
        kernels: Kernels | None,
        *,
        model: ModelView | None = None,
        token_ids: Tensor | None = None,
        spans: Mapping[str, tuple[int, int]] | None = None,
        hidden: Tensor | None = None,
        probed: Mapping[Any, Any] | None = None,
        seed: int = 0,
    ) -> LayerContext:
        """Return a layer with the given facts. Raises ValueError if one that a part reads is missing."""
        given = {"model": model, "token_ids": token_ids, "spans": spans, "hidden": hidden, "probed": probed}
        missing = sorted(name for name in self.needs if given[name] is None)
        if missing:
            raise ValueError(f"method={self.name}: reads {', '.join(missing)}; give keep({missing[0]}=...)")
        q, k, v = map(_unbatched, (q, k, v))
        return LayerContext(
            q,
            k,
            v,
            scaling=scaling,
            layer=layer,
            num_layers=num_layers,
            kernels=kernels,
            facts=PromptFacts(token_ids, spans or {}, model, seed),
            hidden_TE=hidden,
            probed=probed,
        )

    def _text(self, error: InvalidField, part: str) -> str:
        """Return the message of a part's error, with dials in the place of the part's fields."""
        return error.text(lambda name: self.dial_of.get((part, name), name))

    @property
    def _evicting(self) -> Eviction:
        """The eviction of a method that has one."""
        assert self.eviction is not None, f"{self.name} keeps every token"
        return self.eviction


def _unbatched(x: Tensor) -> Tensor:
    """Return the tensor without a leading batch dimension of 1."""
    return x[0] if x.dim() == 4 and x.shape[0] == 1 else x
