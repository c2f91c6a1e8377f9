"""The choices of the variants of a prompt: tokens of each layer, forms of the stores, masks, and the time they took.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.engine.caches import Place
from kvbench.engine.clock import Total
from kvbench.engine.variant import Variant
from kvbench.methods.allowance import allowed, fit, fits_late
from kvbench.methods.budgets import ByteShare
from kvbench.methods.context import LayerContext
from kvbench.methods.fitting import CacheShape, promised_bytes
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.storage import Store
from kvbench.methods.store_fitting import settings_of


class Choice:
    """The tokens that one variant keeps of one prompt.

    Args:
        variant: a method and its budget. Parts that depend on the prompt choose their fields here.
        places: the rows of the cache to fill; none for a variant that feeds its prompt.
        facts: what the method's parts may know of the prompt.
        span: tokens that are compressed.
        shape: sizes of the layers that are compressed.

    Attributes:
        variant: with the fields that it chose by the prompt; method: its method.
        places: the rows of the cache to fill.
        chosen: what the method's parts chose by the prompt, for the record.
        is_late: True if it can choose tokens only after the last layer.
        kept: {layer: its mask of kept tokens [U, T], on the CPU}, where masks are saved.
        time: the seconds that its compression would have taken without other variants, and with a single row.

    Raises:
        ValueError: a budget that is impossible on this prompt.
    """

    def __init__(
        self, variant: Variant, places: Sequence[Place], facts: PromptFacts, span: int, shape: CacheShape
    ) -> None:
        self.chosen = variant.method.chosen(facts)
        begin = time.perf_counter()
        self.variant = variant.for_prompt(facts)
        self.time = Total(time.perf_counter() - begin)
        self.method, self.places = self.variant.method, places
        self._span, self._shape = span, shape
        self._allowed = allowed(self.method, variant.budget, span, shape)
        self._totals: list[int] | None = None
        self._is_divided = False  # among the layers; the totals may be None nevertheless
        self._statistics: list[Tensor] = []
        self.kept: dict[int, Tensor] = {}
        late_budget = fits_late(self.method, variant.budget)
        self.is_late = (self.drops and (self.method.waits or late_budget)) or (self.method.fits_forms and late_budget)

    @property
    def tokens(self) -> int | None:
        """The tokens per KV head that the budget allows; None without a budget."""
        return None if self._allowed is None else self._allowed.tokens

    @property
    def drops(self) -> bool:
        """True if the variant keeps fewer tokens than the prompt has."""
        return self.method.drops(self.tokens, self._span)

    @property
    def stored_tokens(self) -> int:
        """About how many tokens per KV head a row stores."""
        tokens = None if self.method.keeps_prompt else self.tokens
        return self._span if tokens is None else tokens

    def add_statistic(self, ctx: LayerContext) -> None:
        """Take from a layer what the layer budgets depend on."""
        self._statistics.append(self.method.statistic(ctx))

    def settle(self, layers: Sequence[LayerContext]) -> None:
        """Divide the budget of a variant that waited for all layers among them."""
        budget, statistics = self.variant.budget, self._statistics or None
        self._statistics = []
        if isinstance(budget, ByteShare) and fits_late(self.method, budget):
            self._allowed = fit(self.method, budget, layers, statistics, self._shape)
        self._divide(statistics)

    def of_layer(self, layer: int) -> tuple[int | None, int | None]:
        """Return the tokens per KV head that the budget allows, and those of a layer over all of its heads.

        None where the selection is not counted.
        """
        if not self._is_divided:
            self._divide(None)
        tokens, totals = self.tokens, self._totals
        if tokens is not None:
            self.method.check_scored(tokens)
        return tokens, None if totals is None else totals[layer]

    def slots(self, layer: int) -> int:
        """Return about how many slots of a layer's arena the rows will take."""
        if self.method.store is not None or self.method.look is not None:  # they have buffers of their own
            return 0
        reserved = self._shape.heads * sum(place.reserve for place in self.places)
        return self._expected(layer) * len(self.places) + reserved

    def store(self, layer: int) -> Store | None:
        """Return the store that holds a layer's tokens."""
        stores = () if self._allowed is None else self._allowed.stores
        return stores[layer] if stores else self.method.store

    def group(self, layer: int) -> Hashable:
        """Return a key that is equal for variants that are stored in one call: the same keys and values serve all."""
        method, totals = self.method, self._totals
        if method.store is not None or method.look is not None:
            return self
        if method.merge is None or not self.drops:
            return None
        return method.merge, method.evicting, self.tokens, None if totals is None else totals[layer]

    def budget(self) -> tuple[int | float | None, int | None]:
        """Return the tokens per KV head that the budget allowed, and its bytes if it promises any."""
        budget = self.variant.budget
        if self._allowed is None or not isinstance(budget, ByteShare):
            return self.tokens, None
        tokens = self._allowed.tokens + self._allowed.extra / self._shape.segments
        return tokens, promised_bytes(budget, self._span, self._shape)

    def forms(self) -> dict[str, list[Any]] | None:
        """Return the settings of each layer's store that the budget chose; None if it chose none."""
        store = self.method.store
        if store is None or self._allowed is None or not self._allowed.stores:
            return None
        return settings_of(store, self._allowed.stores, self._shape.dim)

    def kept_mask(self) -> Tensor | None:
        """Return which tokens were kept, bool [layers, U, T] on the CPU; None if no masks were saved."""
        return torch.stack([self.kept[layer] for layer in sorted(self.kept)]) if self.kept else None

    def _expected(self, layer: int) -> int:
        """Return about how many tokens of a layer a row will keep, over all heads."""
        most, tokens = self._span * self._shape.heads, self.tokens
        if tokens is None or not self.drops or self.method.keeps_prompt:
            return most
        if not self._is_divided:  # it waits for all layers, which may differ
            return min(2 * tokens * self._shape.heads, most)
        return most if self._totals is None else self._totals[layer]

    def _divide(self, statistics: list[Tensor] | None) -> None:
        """Divide the allowed tokens among the layers."""
        shape = self._shape
        self._is_divided = True
        self._totals = self.method.layer_totals(
            self.tokens,
            span=self._span,
            layers=shape.layers,
            heads=shape.heads,
            query_heads=shape.query_heads,
            statistics=statistics,
            extra=0 if self._allowed is None else self._allowed.extra,
        )


def time_shares(group: Mapping[Choice, Sequence[Entry]]) -> dict[Choice, float]:
    """Return the share of a single row of each variant in the time to store all of them: that of its tokens."""
    tokens = {choice: choice.stored_tokens for choice in group}
    total = sum(tokens[choice] * len(of_rows) for choice, of_rows in group.items())
    return {choice: of_one / total for choice, of_one in tokens.items()}


@contextmanager
def measured(
    choices: Sequence[Choice], ctx: LayerContext, shares: Mapping[Choice, float] | None = None
) -> Iterator[None]:
    """Add the seconds of a block, and of the results that it reuses, to the times of variants.

    Args:
        shares: the share of each variant, where it is not all of the time.
    """
    ctx.watch.user = choices[0] if len(choices) == 1 else None
    begin = ctx.watch.begin()
    yield
    span = ctx.watch.since(begin)
    for choice in choices:
        choice.time.add(span, 1.0 if shares is None else shares[choice])
