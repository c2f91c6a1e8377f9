"""The budgets of a prompt's variants: tokens of each layer, forms of the stores, and the masks that came of them.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.engine.variant import Variant
from kvbench.methods.allowance import allowed, fit, fits_late
from kvbench.methods.budgets import ByteShare
from kvbench.methods.context import LayerContext
from kvbench.methods.fitting import CacheShape, promised_bytes
from kvbench.methods.storage import Store
from kvbench.methods.store_fitting import settings_of


class Choices:
    """The tokens that variants keep of a prompt. A variant is given by its index.

    Args:
        variants: with the fields that they choose by the prompt.
        span: tokens that are compressed.
        shape: sizes of the layers that are compressed.
        save_kept: keep the masks for `kept_mask`.

    Raises:
        ValueError: a budget that is impossible on this prompt.
    """

    def __init__(self, variants: Sequence[Variant], span: int, shape: CacheShape, save_kept: bool) -> None:
        self._variants, self._span, self._shape = variants, span, shape
        self._allowed = [allowed(v.method, v.budget, span, shape) for v in variants]
        self._totals: dict[int, list[int] | None] = {}
        self._statistics: dict[int, list[Tensor]] = defaultdict(list)
        self._kept: dict[int, dict[int, Tensor]] | None = defaultdict(dict) if save_kept else None
        self.late = [
            index
            for index, variant in enumerate(variants)
            if (self.drops(index) and (variant.method.waits or fits_late(variant.method, variant.budget)))
            or (variant.method.fits_forms and fits_late(variant.method, variant.budget))
        ]

    def tokens(self, index: int) -> int | None:
        """Return the tokens per KV head that a variant's budget allows; None without a budget."""
        allowed = self._allowed[index]
        return None if allowed is None else allowed.tokens

    def drops(self, index: int) -> bool:
        """Return True if the variant keeps fewer tokens than the prompt has."""
        return self._variants[index].method.drops(self.tokens(index), self._span)

    def add_statistic(self, index: int, ctx: LayerContext) -> None:
        """Take from a layer what the variant's layer budgets depend on."""
        self._statistics[index].append(self._variants[index].method.statistic(ctx))

    def settle(self, index: int, layers: Sequence[LayerContext]) -> None:
        """Divide the budget of a variant that waited for all layers among them."""
        method, budget = self._variants[index].method, self._variants[index].budget
        statistics = self._statistics.pop(index, None)
        if isinstance(budget, ByteShare) and fits_late(method, budget):
            self._allowed[index] = fit(method, budget, layers, statistics, self._shape)
        self._totals[index] = self._layer_totals(index, statistics)

    def of_layer(self, index: int, layer: int) -> tuple[int | None, int | None]:
        """Return the tokens per KV head that a variant's budget allows, and those of a layer over all of its heads.

        None where the selection is not counted.
        """
        if index not in self._totals:
            self._totals[index] = self._layer_totals(index, None)
        tokens, totals = self.tokens(index), self._totals[index]
        if tokens is not None:
            self._variants[index].method.check_scored(tokens)
        return tokens, None if totals is None else totals[layer]

    def expected(self, index: int, layer: int) -> int:
        """Return about how many tokens of a layer a variant will keep, over all heads."""
        most, tokens = self._span * self._shape.heads, self.tokens(index)
        if tokens is None or not self.drops(index) or self._variants[index].method.keeps_prompt:
            return most
        if index not in self._totals:  # it waits for all layers, which may differ
            return min(2 * tokens * self._shape.heads, most)
        totals = self._totals[index]
        return most if totals is None else totals[layer]

    def save(self, index: int, layer: int, keep_UT: Tensor) -> None:
        """Keep a mask for `kept_mask`, if masks are kept."""
        if self._kept is not None:
            self._kept[index][layer] = keep_UT.cpu()

    def store(self, index: int, layer: int) -> Store | None:
        """Return the store that holds a layer's tokens for a variant."""
        allowed = self._allowed[index]
        chosen = () if allowed is None else allowed.stores
        return chosen[layer] if chosen else self._variants[index].method.store

    def group(self, index: int, layer: int) -> Hashable:
        """Return the same for variants that store tokens of the same keys and values, plain or merged, in one call."""
        method, totals = self._variants[index].method, self._totals.get(index)
        if method.store is not None or method.look is not None:
            return index
        if method.merge is None or not self.drops(index):
            return None
        return method.merge, method.evicting, self.tokens(index), None if totals is None else totals[layer]

    def shares(self, group: Mapping[int, Sequence[Entry]]) -> dict[int, float]:
        """Return which share of the time to store several variants a single row of each would take: by its tokens."""
        every = [self._span if self._variants[index].method.keeps_prompt else self.tokens(index) for index in group]
        tokens = {index: self._span if own is None else own for index, own in zip(group, every, strict=True)}
        total = sum(tokens[index] * len(of_rows) for index, of_rows in group.items())
        return {index: tokens[index] / total for index in group}

    def budget(self, index: int) -> tuple[int | float | None, int | None]:
        """Return the tokens per KV head that the budget of a variant allowed, and its bytes if it promises any."""
        allowed, budget = self._allowed[index], self._variants[index].budget
        if allowed is None or not isinstance(budget, ByteShare):
            return None if allowed is None else allowed.tokens, None
        return allowed.tokens + allowed.extra / self._shape.segments, promised_bytes(budget, self._span, self._shape)

    def forms(self, index: int) -> dict[str, list[Any]] | None:
        """Return the settings of each layer's store that the budget of a variant chose; None if it chose none."""
        allowed, store = self._allowed[index], self._variants[index].method.store
        if store is None or allowed is None or not allowed.stores:
            return None
        return settings_of(store, allowed.stores, self._shape.dim)

    def kept_mask(self, index: int) -> Tensor | None:
        """Return which tokens a variant keeps, bool [layers, KV heads, T] on the CPU.

        None without `save_kept`, and for a variant that feeds its prompt.
        """
        if self._kept is None or index not in self._kept:
            return None
        return torch.stack([self._kept[index][layer] for layer in sorted(self._kept[index])])

    def _layer_totals(self, index: int, statistics: list[Tensor] | None) -> list[int] | None:
        allowed, shape = self._allowed[index], self._shape
        return self._variants[index].method.layer_totals(
            None if allowed is None else allowed.tokens,
            span=self._span,
            layers=shape.layers,
            heads=shape.heads,
            query_heads=shape.query_heads,
            statistics=statistics,
            extra=0 if allowed is None else allowed.extra,
        )
