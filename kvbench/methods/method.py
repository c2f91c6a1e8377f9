"""A method: what it keeps, asked with plain tensors.

Shape suffixes: H query heads, U KV heads, T tokens of the compressed span, D head dimension, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvbench.methods.allowance import allowed, fits_late
from kvbench.methods.budgets import Budget
from kvbench.methods.composed import Composed
from kvbench.methods.context import EarlierScores, LayerContext
from kvbench.methods.fitting import CacheShape
from kvbench.methods.kernels import Kernels
from kvbench.methods.model_view import ModelView
from kvbench.methods.prompt_facts import PromptFacts


@dataclass(frozen=True)
class Method(Composed):
    """A compression method, composed by `kvbench.load_method` from conf/method/<name>.yaml."""

    def keep(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        budget: Budget | str | None = None,
        layer: int = 0,
        num_layers: int = 1,
        scaling: float | None = None,
        kernels: Kernels | None = None,
        model: ModelView | None = None,
        token_ids: Tensor | None = None,
        spans: Mapping[str, tuple[int, int]] | None = None,
        hidden: Tensor | None = None,
        probed: Mapping[Any, Any] | None = None,
        task: str | None = None,
        seed: int = 0,
    ) -> list[Tensor]:
        """Return which tokens of one layer stay: one sorted LongTensor of positions per KV head.

        Args:
            q: [H, T, D] queries after RoPE (a leading batch dimension of 1 is accepted, as for k and v).
            k, v: [U, T, D] keys and values.
            budget: tokens per KV head as int, share of T as float, or share of the full cache's bytes as text ("0.2B");
                averaged over layers and heads.
            layer, num_layers: position of the layer, for layer-wise budgets.
            scaling: factor on the logits, 1 / sqrt(D) by default.
            kernels: faster forms of some computations.
            model, token_ids, spans, hidden, probed: further facts, for methods that name them in `needs`:
                a view of the model, [T] ids, {region: (begin, end)}, the layer's [T, E] input, and results of the
                method's own forward passes by their part.
            task: the task of the prompt, localization or aggregation, for methods that depend on it.
            seed: for methods that draw random numbers.

        Raises:
            ValueError: an impossible budget, shapes that do not fit, a fact in `needs` that is not given, or a method
                that needs other layers (`needs_statistics`, or scores of another layer); use `keep_layers`.
        """
        facts = _facts(model=model, token_ids=token_ids, spans=spans, task=task, seed=seed)
        own = self.for_prompt(facts)
        ctx = own._context(q, k, v, scaling, layer, num_layers, kernels, facts, hidden=hidden, probed=probed)
        return own._kept(ctx, budget)

    def _kept(
        self, ctx: LayerContext, budget: Budget | str | None, statistics: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Return `keep` of a layer."""
        shape = CacheShape(ctx.num_layers, ctx.num_kv_heads, len(ctx.q), ctx.k.shape[-1], ctx.k.dtype)
        allowance = allowed(self, budget, ctx.num_tokens, shape)
        if self.evicts and fits_late(self, budget):
            raise ValueError(f"budget={budget}: {self.name} needs all layers for it; use kvbench.generate")
        tokens = None if allowance is None else allowance.tokens
        if not self.drops(tokens, ctx.num_tokens):
            keep_UT = torch.ones(ctx.k.shape[:2], dtype=torch.bool, device=ctx.k.device)
        else:
            totals = self.layer_totals(
                tokens,
                span=ctx.num_tokens,
                layers=ctx.num_layers,
                heads=ctx.num_kv_heads,
                query_heads=ctx.num_kv_heads * ctx.group,
                statistics=statistics,
                extra=0 if allowance is None else allowance.extra,
            )
            if tokens is not None:
                self.check_scored(tokens)
            keep_UT = self.evicting.mask(ctx, tokens, None if totals is None else totals[ctx.layer])
        return [row.nonzero().flatten() for row in keep_UT]

    def keep_layers(
        self,
        layers: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        budget: Budget | str | None = None,
        scaling: float | None = None,
        kernels: Kernels | None = None,
        **facts: Any,
    ) -> list[list[Tensor]]:
        """Return `keep` of all layers of a model at once, given as (q, k, v) triples; serves every method.

        Args:
            facts: as `keep` takes them, the same for all layers. Lists of `hidden` and `probed` have an item per layer.
        """
        each = {name: facts.pop(name, None) for name in ("hidden", "probed")}
        shared = _facts(**facts)
        own, earlier = self.for_prompt(shared), EarlierScores()

        def contexts() -> Iterator[LayerContext]:
            for i, (q, k, v) in enumerate(layers):
                of_layer = {name: value[i] if isinstance(value, list) else value for name, value in each.items()}
                yield own._context(q, k, v, scaling, i, len(layers), kernels, shared, earlier=earlier, **of_layer)

        scores = [own.statistic(ctx) for ctx in contexts()] if self.needs_statistics else None
        return [own._kept(ctx, budget, scores) for ctx in contexts()]

    def _context(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scaling: float | None,
        layer: int,
        num_layers: int,
        kernels: Kernels | None,
        facts: PromptFacts,
        *,
        hidden: Tensor | None = None,
        probed: Mapping[Any, Any] | None = None,
        earlier: EarlierScores | None = None,
    ) -> LayerContext:
        """Return a layer with the given facts. Raises ValueError if one that a part reads is missing."""
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer={layer} must lie in [0, num_layers={num_layers})")
        given = {**vars(facts), "spans": facts.spans or None, "hidden": hidden, "probed": probed}
        missing = sorted(name for name in self.needs if given[name] is None)
        if missing:
            raise ValueError(f"method={self.name}: reads {', '.join(missing)}; give keep({missing[0]}=...)")
        q, k, v = _fitting(*map(_unbatched, (q, k, v)))
        return LayerContext(
            q,
            k,
            v,
            scaling=scaling,
            layer=layer,
            num_layers=num_layers,
            kernels=kernels,
            facts=facts,
            hidden_TE=hidden,
            probed=probed,
            earlier=earlier,
        )


def _facts(
    *,
    model: ModelView | None = None,
    token_ids: Tensor | None = None,
    spans: Mapping[str, tuple[int, int]] | None = None,
    task: str | None = None,
    seed: int = 0,
) -> PromptFacts:
    """Return the facts that all layers of a prompt share."""
    return PromptFacts(token_ids, spans or {}, model, seed, task)


def _fitting(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors of a layer. Raises ValueError if they do not fit together, which might pass unnoticed."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
    if any(x.dim() != 3 for x in (q, k, v)) or 0 in k.shape or len(q) == 0 or len(q) % len(k):
        raise ValueError(f"{shapes} must be [heads, tokens, dim] with query heads a multiple of KV heads")
    if q.shape[1:] != k.shape[1:] or v.shape[:2] != k.shape[:2]:
        raise ValueError(f"{shapes} must have the same tokens, q and k the same dim, and k and v the same heads")
    if not all(x.is_floating_point() for x in (q, k, v)):
        raise ValueError(f"q {q.dtype}, k {k.dtype} and v {v.dtype} must be of floating numbers")
    return q, k, v


def _unbatched(x: Tensor) -> Tensor:
    """Return the tensor without a leading batch dimension of 1."""
    if not isinstance(x, Tensor):
        raise ValueError(f"q, k and v must be tensors, not {type(x).__name__}")
    return x[0] if x.dim() == 4 and x.shape[0] == 1 else x
