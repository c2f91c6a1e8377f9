"""The attention of the prompt in the shared prefill.

In the shared prefill every layer attends to the whole prompt, and each variant chooses the tokens it keeps.
Compression happens inside the layer, while the prefill proceeds. At any time the device holds the full keys and values
of one layer only, and the kept tokens. Variants whose layer budgets need the statistics of all layers wait for the end,
and so do those with forward passes of their own (`kvbench.engine.passes`).

Shape suffixes: B batch (1 in a prefill), H query heads, U KV heads, T tokens of the call, D head dimension.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.local import attend_prompt
from kvbench.engine.caches import LayerCaches, Place
from kvbench.engine.choices import Choices
from kvbench.engine.clock import Total, VariantTimes, now, stamp
from kvbench.engine.entries import entries
from kvbench.engine.guard import LayerGuard
from kvbench.engine.hidden import LayerInputs
from kvbench.engine.passes import ProbeRunner
from kvbench.engine.prompt_attention import attend_with_lse
from kvbench.engine.variant import Variant
from kvbench.methods.base import Score
from kvbench.methods.context import EarlierScores, LayerContext
from kvbench.methods.fitting import CacheShape
from kvbench.methods.memo import Memo, Span
from kvbench.methods.probing import Probe
from kvbench.methods.prompt_facts import PromptFacts


class PrefillPass:
    """The causal attention over a prompt, which fills rows of the cache with the tokens that each variant keeps.

    A variant compresses once. Its rows, one for each question on the context, begin as copies.

    Args:
        variants: different methods and budgets. Parts that depend on the prompt choose their fields here.
        caches: destination of the kept keys and values.
        places: per variant, the rows to fill; none for a variant that feeds its prompt.
        facts: what the methods' parts may know of the prompt.
        span: tokens that are compressed.
        shape: sizes of the layers that are compressed.
        hidden: the inputs of the layers, where a part reads them.
        run_probe: runs the passes of a probe, where a variant has one.
        save_kept: keep the masks of kept tokens for `choices.kept_mask`.

    Attributes:
        span: tokens that are compressed.
        choices: what each variant keeps of the prompt.
        chosen: per variant, what its parts chose by the prompt, for the record.
        full_bytes: bytes of the span in a full cache, over the layers that are compressed.

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
        facts: PromptFacts | None = None,
        shape: CacheShape,
        hidden: LayerInputs | None = None,
        run_probe: ProbeRunner | None = None,
        save_kept: bool = False,
    ) -> None:
        self._facts, self._hidden, self._run_probe = facts or PromptFacts(), hidden, run_probe
        self._caches, self._places = caches, places
        self._guard = LayerGuard(caches.plan)
        self._shape = shape
        self.span = span
        self.full_bytes = 0
        self.chosen = [variant.method.chosen(self._facts) for variant in variants]
        self._variants, seconds = self._for_prompt(variants)
        self._times = VariantTimes(seconds)
        self._total = Total(sum(seconds))
        self.choices = Choices(self._variants, span, shape, save_kept)
        self._earlier = EarlierScores()
        self._waiting: list[LayerContext] = []
        self._local_keys: dict[int, tuple[Tensor, Tensor]] = {}

    def _for_prompt(self, variants: Sequence[Variant]) -> tuple[list[Variant], list[float]]:
        """Return the variants with the fields that they choose by the prompt, and the seconds that each took."""
        own, seconds = [], []
        for variant in variants:
            begin = time.perf_counter()
            own.append(variant.for_prompt(self._facts))
            seconds.append(time.perf_counter() - begin)
        return own, seconds

    @property
    def compress_s(self) -> Sequence[float]:
        """Per variant, the seconds that its compression would have taken without the others, and with a single row."""
        return self._times.seconds

    @property
    def total_s(self) -> float:
        """The seconds of the call that were spent on compression. Reading them may wait for the device."""
        return self._total.seconds

    def begin(self, ids_BT: Tensor) -> None:
        """Start the forward call over these tokens."""
        self._guard.begin()
        if self._hidden is not None:
            self._hidden.begin()

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        """Attend in one of the model's layers, and compress it: [B, H, T, D]."""
        self._guard.enter(layer)
        if layer in self._caches.local:
            local = self._caches.local[layer]
            local.add([place.row for places in self._places for place in places], k_BUTD, v_BUTD)
            if self._run_probe is not None:
                size = local.mask.size
                self._local_keys[layer] = k_BUTD[0, :, -size:].clone(), v_BUTD[0, :, -size:].clone()
            return attend_prompt(q_BHTD, k_BUTD, v_BUTD, scaling, local.mask)
        # the kernels that score can use the log-sum-exp
        sums = self._caches.kv.sums
        wanted = self._caches.kv.prompt is not None or sums is not None
        out_BHTD, lse_BHT = attend_with_lse(q_BHTD, k_BUTD, v_BUTD, scaling, wanted, sums)
        clock = partial(stamp, k_BUTD.device)
        begin = clock()
        ctx = LayerContext(
            q_BHTD[0],
            k_BUTD[0],
            v_BUTD[0],
            scaling=scaling,
            layer=self._caches.plan.index(layer),
            num_layers=self._shape.layers,
            kernels=self._caches.kv.prompt,
            sums=sums,
            lse_HT=None if lse_BHT is None else lse_BHT[0],
            clock=clock,
            facts=self._facts,
            hidden_TE=None if self._hidden is None else self._hidden.take(layer),
            earlier=self._earlier,
        )
        self._compress(ctx)
        self.full_bytes += k_BUTD.nbytes + v_BUTD.nbytes
        self._total.add(Span(begin, clock()))
        return out_BHTD

    def finish(self) -> None:
        """End the forward call: variants that need something of all layers choose now."""
        self._guard.finish()
        self.close()
        if not self._waiting:
            self._earlier.clear()
            return
        device = self._waiting[0].k.device
        begin, late = now(device), self.choices.late
        self._run_probes(late)
        for index in late:
            with self._times([index], self._waiting[0]):
                self.choices.settle(index, self._waiting)
        while self._waiting:
            self._store(late, self._waiting.pop(0))
        self._earlier.clear()
        self._total.add(Span(begin, now(device)))

    def close(self) -> None:
        """Remove what the pass has added to the model. Must be called if a forward call fails."""
        if self._hidden is not None:
            self._hidden.close()

    def _compress(self, ctx: LayerContext) -> None:
        late = self.choices.late
        early = [index for index, places in enumerate(self._places) if places and index not in late]
        self._store(early, ctx, sum(self._slots(index, ctx.layer) for index in late))
        if late:
            scores: list[Score] = []
            for index in late:
                method = self._variants[index].method
                unprobed = [score for score in method.all_scores if "probed" not in score.needs]
                with self._times([index], ctx):
                    if method.needs_statistics and method.probe is None:
                        self.choices.add_statistic(index, ctx)
                    for score in unprobed:
                        ctx.score(score)
                    if method.store is not None:
                        method.store.summarise(ctx)
                scores += unprobed
            with self._times(late, ctx):  # without the others, each would need the same copies
                ctx.keep_scores(scores)
            self._waiting.append(ctx)

    def _run_probes(self, late: Sequence[int]) -> None:
        """Run every probe of the waiting variants once. Its seconds count for each variant that has it."""
        users: dict[Probe, list[int]] = defaultdict(list)
        for index in late:
            probe = self._variants[index].method.probe
            if probe is not None:
                users[probe].append(index)
        for probe, variants in users.items():
            assert self._run_probe is not None
            with self._times(variants, self._waiting[0]):
                self._run_probe(probe, self._waiting, self._local_keys)
            for index in variants:
                method = self._variants[index].method
                for ctx in self._waiting if method.needs_statistics else ():
                    with self._times([index], ctx):
                        self.choices.add_statistic(index, ctx)
        self._local_keys.clear()

    def _slots(self, index: int, layer: int) -> int:
        """Return about how many slots next to those of other variants the rows of one will take of a layer."""
        places, method = self._places[index], self._variants[index].method
        if method.store is not None or method.look is not None:  # they have buffers of their own
            return 0
        reserved = self._shape.heads * sum(place.reserve for place in places)
        return self.choices.expected(index, layer) * len(places) + reserved

    def _store(self, variants: Sequence[int], ctx: LayerContext, later: int = 0) -> None:
        """Choose the tokens of a layer that the variants keep, and store them in all of their rows.

        Args:
            later: about how many slots other variants will take of the layer.
        """
        groups: dict[Hashable, dict[int, list[Entry]]] = defaultdict(dict)
        for index in variants:
            with self._times([index], ctx):
                of_rows = self._entries(index, ctx)
            groups[self.choices.group(index, ctx.layer)][index] = of_rows
        later += sum(self._slots(index, ctx.layer) for index in variants)
        for group in groups.values():
            later -= sum(self._slots(index, ctx.layer) for index in group)
            merged = Memo(ctx.watch)  # freed before the next group: at most one merged copy of a layer exists
            for index, of_rows in group.items():
                method, keep_UT, kv = self._variants[index].method, of_rows[0].keep_UT, (ctx.k, ctx.v)
                with self._times([index], ctx):
                    if method.merge is not None and self.choices.drops(index):
                        kv = merged("merged", partial(method.merged, ctx, keep_UT))
                    store = self.choices.store(index, ctx.layer)
                    if store is not None:
                        side = store.prepare(ctx, keep_UT, *kv)
                        group[index] = [replace(entry, store=store, side=side) for entry in of_rows]
            together = [entry for of_rows in group.values() for entry in of_rows]
            with self._times(list(group), ctx, self.choices.shares(group)):
                self._caches.kv.add(ctx.layer, together, *kv, later)

    def _entries(self, index: int, ctx: LayerContext) -> list[Entry]:
        """Return what a variant keeps of a layer, once for each of its rows."""
        variant, tokens = self._variants[index], self.choices.tokens(index)
        if self.choices.drops(index):
            tokens, total = self.choices.of_layer(index, ctx.layer)
            evicting = variant.method.evicting
            keep_UT = evicting.mask(ctx, tokens, total)
            known = total if evicting.exact and tokens is not None else None
        else:
            keep_UT = torch.ones(ctx.num_kv_heads, self.span, dtype=torch.bool, device=ctx.k.device)
            known = keep_UT.numel()
        self.choices.save(index, ctx.layer, keep_UT)
        layer = self._caches.plan.full[ctx.layer]
        return entries(variant, self._places[index], ctx, keep_UT, tokens, known, layer)
