"""The shared prefill: full attention, and in every layer each variant takes what it keeps.

Compression happens inside the layer, while the prefill proceeds: at any time one layer's full keys and values are
held, and what has been kept. Only variants whose layer budgets need all layers' statistics wait for the end.

Shape suffixes: B batch (1), H query heads, U KV heads, T tokens of the prompt, D head dimension.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kvbench.cache.base import Entry, KVCache
from kvbench.engine.variant import Variant
from kvbench.methods.context import LayerContext


def now(device: torch.device) -> float:
    """Wall clock after everything queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PrefillPass:
    """Attends causally over the prompt and fills the cache, row `first_row + i` with what variant i keeps.

    Args:
        variants: one row each.
        cache: where kept keys and values go.
        num_layers: layers of the model.
        token_ids: [T] ids of the span.
        reserve: tokens that will be appended to each row.
        first_row: the cache's row of the first variant; the others follow.

    Raises:
        ValueError: a budget that is impossible on this prompt.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        cache: KVCache,
        *,
        num_layers: int,
        token_ids: Tensor,
        reserve: int,
        first_row: int = 0,
    ) -> None:
        self.seen = 0
        self._variants, self._cache = variants, cache
        self._num_layers, self._reserve, self._first_row = num_layers, reserve, first_row
        self.span = len(token_ids)
        self.tokens = [v.method.tokens(v.budget, self.span) for v in variants]
        self.full_bytes = 0
        self.compress_s = 0.0
        self._totals: dict[int, list[int]] = {}
        self._waiting: list[LayerContext] = []

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        out_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BUTD, v_BUTD, is_causal=q_BHTD.shape[2] > 1, scale=scaling, enable_gqa=True
        )
        begin = now(k_BUTD.device)
        ctx = LayerContext(
            q_BHTD[0],
            k_BUTD[0],
            v_BUTD[0],
            scaling=scaling,
            layer=layer,
            num_layers=self._num_layers,
            kernels=self._cache.prompt,
        )
        self._compress(ctx)
        self.full_bytes += k_BUTD.nbytes + v_BUTD.nbytes
        self.compress_s += now(k_BUTD.device) - begin
        return out_BHTD

    def finish(self) -> None:
        """Let the variants choose that needed all layers."""
        if not self._waiting:
            return
        begin = now(self._waiting[0].k.device)
        for row in self._late_rows():
            method = self._variants[row].method
            statistics = [method.statistic(ctx) for ctx in self._waiting]
            self._totals[row] = self._layer_totals(row, self._waiting[0].num_kv_heads, statistics)
        while self._waiting:
            ctx = self._waiting.pop(0)
            self._cache.add(ctx.layer, [self._entry(row, ctx) for row in self._late_rows()], ctx.k, ctx.v)
        self.compress_s += now(ctx.k.device) - begin

    def _compress(self, ctx: LayerContext) -> None:
        late = self._late_rows()
        entries = [self._entry(row, ctx) for row in range(len(self._variants)) if row not in late]
        self._cache.add(ctx.layer, entries, ctx.k, ctx.v)
        if late:
            evictions = (self._variants[row].method.eviction for row in late)
            ctx.keep_scores(eviction.score for eviction in evictions if eviction is not None)
            self._waiting.append(ctx)

    def _late_rows(self) -> list[int]:
        return [
            row for row, variant in enumerate(self._variants) if variant.method.needs_statistics and self._evicts(row)
        ]

    def _evicts(self, row: int) -> bool:
        tokens = self.tokens[row]
        return tokens is not None and tokens < self.span

    def _entry(self, row: int, ctx: LayerContext) -> Entry:
        method = self._variants[row].method
        if self._evicts(row):
            tokens = self.tokens[row]
            assert tokens is not None
            if row not in self._totals:
                self._totals[row] = self._layer_totals(row, ctx.num_kv_heads, None)
            keep_UT = method.mask(ctx, tokens, self._totals[row][ctx.layer])
        else:
            keep_UT = torch.ones(ctx.num_kv_heads, self.span, dtype=torch.bool, device=ctx.k.device)
        return Entry(
            self._first_row + row,
            keep_UT,
            self._reserve,
            store=method.store,
            policy=method.decode,
            score_UT=None if method.decode is None else method.scores(ctx),
            tokens=self._held(row),
        )

    def _held(self, row: int) -> int | None:
        """The budget a decode policy holds: as asked for, also where the prompt was shorter."""
        variant = self._variants[row]
        if isinstance(variant.budget, int):
            return variant.budget
        return self.tokens[row]

    def _layer_totals(self, row: int, heads: int, statistics: list[Tensor] | None) -> list[int]:
        tokens = self.tokens[row]
        assert tokens is not None
        return self._variants[row].method.layer_totals(
            tokens, span=self.span, layers=self._num_layers, heads=heads, statistics=statistics
        )


class ContinuePass:
    """Appends the call's tokens to the rows and attends to what they hold."""

    def __init__(self, cache: KVCache, rows: Sequence[int], seen: int) -> None:
        self._cache, self.rows, self.seen = cache, tuple(rows), seen

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        return self._cache.attend(layer, self.rows, q_BHTD, k_BUTD, v_BUTD, scaling)
