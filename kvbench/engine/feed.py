"""The attention of a prompt that goes through the decode path in chunks, with eviction after each.

A variant feeds its prompt once. Its other rows, one for each further question on the context, get copies afterwards.

A layer's output for a chunk depends on the chunks before it alone. So all chunks of the prompt pass through a layer,
one after the other, before the next layer; one forward call of the model serves the whole prompt.

Shape suffixes: B variants, H query heads, U KV heads, T tokens of the prompt, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.local import LocalLayer, attend_prompt
from kvbench.engine.caches import LayerCaches, Place
from kvbench.engine.clock import Total, stamp
from kvbench.engine.guard import LayerGuard
from kvbench.engine.variant import Variant
from kvbench.methods.allowance import allowed
from kvbench.methods.budgets import Allowance
from kvbench.methods.decoding import Feed
from kvbench.methods.fitting import CacheShape
from kvbench.methods.memo import Span
from kvbench.methods.model_view import ModelView
from kvbench.methods.prompt_facts import PromptFacts


class FeedPass:
    """The attention over a prompt, for variants whose methods feed it in equal chunks.

    Args:
        variants: different methods and budgets.
        caches: destination of the keys and values.
        places: per variant, the rows to fill.
        span: tokens of the prompt.
        shape: sizes of the layers that are compressed.
        model: a view of the model, for policies that turn keys.
        facts: what the methods' parts may know of the prompt.

    Attributes:
        full_bytes: bytes of the prompt in a full cache of one row, over the layers that are compressed.

    Raises:
        ValueError: a budget that is impossible on this prompt.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        caches: LayerCaches,
        *,
        places: Sequence[Sequence[Place]],
        span: int,
        shape: CacheShape,
        model: ModelView | None,
        facts: PromptFacts,
    ) -> None:
        self._variants = [variant.for_prompt(facts) for variant in variants]
        self._caches, self._places = caches, places
        self._rows = [first.row for first, *_ in places]
        self._span, self._shape, self._model, self._seed = span, shape, model, facts.seed
        self._guard = LayerGuard(caches.plan)
        self._allowed = [allowed(variant.method, variant.budget, span, shape) for variant in self._variants]
        self.full_bytes = 0
        self._copies = Total()

    @property
    def copies_s(self) -> float:
        """The seconds of the call that were spent on copies for further questions. Reading them may wait."""
        return self._copies.seconds

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""
        self._guard.begin()

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attend in one of the model's layers: [B, H, T, D]."""
        self._guard.enter(layer)
        if layer in self._caches.local:
            out_BHTD = self._attend_local(self._caches.local[layer], q_BHTD, k_BUTD, v_BUTD, scaling)
        else:
            out_BHTD = self._attend_in_chunks(layer, q_BHTD, k_BUTD, v_BUTD, scaling)
        self._copy(layer, k_BUTD.device)
        return out_BHTD

    def _attend_local(
        self, local: LocalLayer, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float
    ) -> Tensor:
        """Attend to a window, where chunks make no difference, and store its end for each variant."""
        local.add(self._rows, k_BUTD, v_BUTD)
        return attend_prompt(q_BHTD, k_BUTD, v_BUTD, scaling, local.mask)

    def _attend_in_chunks(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attend in a compressed layer, chunk by chunk."""
        nothing_U0D, full_layer = k_BUTD[0, :, :0], self._caches.plan.index(layer)
        entries = [self._entry(index, full_layer, nothing_U0D) for index in range(len(self._variants))]
        self._caches.kv.add(full_layer, entries, nothing_U0D, nothing_U0D)
        self.full_bytes += k_BUTD[0].nbytes + v_BUTD[0].nbytes
        outs = []
        for chunk in torch.arange(self._span).split(self._feed.chunk):
            at = slice(int(chunk[0]), int(chunk[-1]) + 1)
            outs.append(
                self._caches.attend(layer, self._rows, q_BHTD[:, :, at], k_BUTD[:, :, at], v_BUTD[:, :, at], scaling)
            )
        return torch.cat(outs, 2)

    def finish(self) -> None:
        """End the forward call."""
        self._guard.finish()

    def close(self) -> None:
        """Do nothing: the pass adds nothing to the model."""

    def _copy(self, layer: int, device: torch.device) -> None:
        """Give the other rows of each variant what its first row holds in a layer that has taken the prompt in."""
        if all(len(places) == 1 for places in self._places):
            return
        begin = stamp(device)
        for first, *others in self._places:
            if others:
                self._caches.fork(layer, first.row, [place.row for place in others])
        self._copies.add(Span(begin, stamp(device)))

    @property
    def _feed(self) -> Feed:
        feed = self._variants[0].method.feed
        assert feed is not None
        return feed

    def _entry(self, index: int, layer: int, nothing_U0D: Tensor) -> Entry:
        """Return an empty row of one layer for a variant, with its share of the budget."""
        variant, heads = self._variants[index], len(nothing_U0D)
        decoding = variant.method.decoding
        assert decoding is not None
        return Entry(
            self._rows[index],
            torch.ones(heads, 0, dtype=torch.bool, device=nothing_U0D.device),
            self._span + max(place.reserve for place in self._places[index]),
            decoding=decoding,
            score_UT=nothing_U0D.new_zeros(heads, 0, dtype=torch.float32),
            base_U=self._base(variant, self._allowed[index], layer, heads),
            at_once=self._feed.chunk,
            rotate=None if self._model is None else partial(self._model.rotate, layer=layer),
            seed=self._seed,
        )

    def _base(self, variant: Variant, allowed: Allowance | None, layer: int, heads: int) -> list[int]:
        """Return each head's share of the budget: that of its layer, in equal parts."""
        method, decoding, budget = variant.method, variant.method.decoding, variant.budget
        assert decoding is not None
        if allowed is None:
            return [self._span] * heads
        tokens = allowed.tokens
        if not method.drops(tokens, self._span):
            return [decoding.tokens(budget if isinstance(budget, int) else tokens)] * heads
        shape = self._shape
        totals = method.layer_totals(
            tokens,
            span=self._span,
            layers=shape.layers,
            heads=shape.heads,
            query_heads=shape.query_heads,
            extra=allowed.extra,
        )
        assert totals is not None
        least, more = divmod(totals[layer], heads)
        return decoding.base([least + (head < more) for head in range(heads)], tokens)
