"""The attention of the prompt in the shared prefill.

In the shared prefill every layer attends to the whole prompt, and each variant chooses the tokens it keeps.
Compression happens inside the layer, while the prefill proceeds. At any time the device holds the full keys and values
of one layer only, and the kept tokens. Variants whose layer budgets need the statistics of all layers wait for the end,
and so do those with forward passes of their own (`kvbench.engine.passes`), and those whose budget in bytes can only be
divided when all layers are known (`fits_late`).

Shape suffixes: B batch (1 in a prefill), H query heads, U KV heads, T tokens of the call, D head dimension.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.cache.local import attend_prompt
from kvbench.engine.caches import LayerCaches, Place
from kvbench.engine.choices import Choice, measured, time_shares
from kvbench.engine.clock import Total, now, stamp
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
from kvbench.methods.part_call import part_call
from kvbench.methods.probing import Probe
from kvbench.methods.prompt_facts import PromptFacts


class PrefillPass:
    """The causal attention over a prompt, which fills rows of the cache with the tokens that each variant keeps.

    A variant compresses once. Its rows, one for each question on the context, begin as copies.

    Args:
        variants: different methods and budgets.
        caches: destination of the kept keys and values.
        places: per variant, the rows to fill; none for a variant that feeds its prompt.
        facts: what the methods' parts may know of the prompt.
        span: tokens that are compressed.
        shape: sizes of the layers that are compressed.
        hidden: the inputs of the layers, where a part reads them.
        run_probe: runs the passes of a probe, where a variant has one.
        save_kept: keep the masks of kept tokens.

    Attributes:
        span: tokens that are compressed.
        choices: what each variant keeps of the prompt, in the order of the variants.
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
        self._caches = caches
        self._guard = LayerGuard(caches.plan)
        self._layers, self._save_kept = shape.layers, save_kept
        self.span = span
        self.full_bytes = 0
        self.choices = [
            Choice(variant, rows, self._facts, span, shape) for variant, rows in zip(variants, places, strict=True)
        ]
        self._late = [choice for choice in self.choices if choice.is_late]
        self._early = [choice for choice in self.choices if choice.places and not choice.is_late]
        self._total = Total(sum(choice.time.seconds for choice in self.choices))
        self._earlier = EarlierScores()
        self._waiting: list[LayerContext] = []
        self._local_keys: dict[int, tuple[Tensor, Tensor]] = {}

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
            local.add([place.row for choice in self.choices for place in choice.places], k_BUTD, v_BUTD)
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
            num_layers=self._layers,
            kernels=self._caches.kv.prompt,
            sums=sums,
            lse_HT=None if lse_BHT is None else lse_BHT[0],
            clock=clock,
            facts=self._facts,
            hidden_TE=None if self._hidden is None else self._hidden.take(layer),
            earlier=self._earlier,
        )
        with self._unchanged(ctx, self.choices):
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
        begin = now(device)
        self._run_probes()
        for choice in self._late:
            with measured([choice], self._waiting[0]):
                choice.settle(self._waiting)
        while self._waiting:
            ctx = self._waiting.pop(0)
            with self._unchanged(ctx, self._late):
                self._store(self._late, ctx)
        self._earlier.clear()
        self._total.add(Span(begin, now(device)))

    def close(self) -> None:
        """Remove what the pass has added to the model. Must be called if a forward call fails."""
        if self._hidden is not None:
            self._hidden.close()

    def _compress(self, ctx: LayerContext) -> None:
        self._store(self._early, ctx, sum(choice.slots(ctx.layer) for choice in self._late))
        if self._late:
            scores: list[Score] = []
            for choice in self._late:
                method = choice.method
                unprobed = [score for score in method.all_scores if "probed" not in score.needs]
                with measured([choice], ctx):
                    if method.needs_statistics and method.probe is None:
                        choice.add_statistic(ctx)
                    for score in unprobed:
                        ctx.score(score)
                    if method.store is not None:
                        with part_call(f"the store {type(method.store).__name__}", ctx.layer):
                            method.store.summarise(ctx)
                scores += unprobed
            with measured(self._late, ctx):  # without the others, each would need the same copies
                ctx.keep_scores(scores)
            self._waiting.append(ctx)

    @staticmethod
    def _unchanged(ctx: LayerContext, choices: Sequence[Choice]) -> AbstractContextManager[None]:
        """Return a check that no part of the variants changes a tensor of the layer in place.

        It is one check for all parts, outside of the measured seconds: one after each part takes several times as long.
        """
        names = sorted({choice.method.name for choice in choices if choice.method.named_parts})
        return ctx.unchanged(f"a part of {' or '.join(names)}") if names else nullcontext()

    def _run_probes(self) -> None:
        """Run every probe of the waiting variants once. Its seconds count for each variant that has it."""
        users: dict[Probe, list[Choice]] = defaultdict(list)
        for choice in self._late:
            if choice.method.probe is not None:
                users[choice.method.probe].append(choice)
        for probe, choices in users.items():
            assert self._run_probe is not None
            with measured(choices, self._waiting[0]):
                self._run_probe(probe, self._waiting, self._local_keys)
            for choice in choices:
                for ctx in self._waiting if choice.method.needs_statistics else ():
                    with self._unchanged(ctx, [choice]), measured([choice], ctx):
                        choice.add_statistic(ctx)
        self._local_keys.clear()

    def _store(self, choices: Sequence[Choice], ctx: LayerContext, later: int = 0) -> None:
        """Choose the tokens of a layer that the variants keep, and store them in all of their rows.

        Args:
            later: about how many slots other variants will take of the layer.
        """
        groups: dict[Hashable, dict[Choice, list[Entry]]] = defaultdict(dict)
        for choice in choices:
            with measured([choice], ctx):
                of_rows = self._entries(choice, ctx)
            groups[choice.group(ctx.layer)][choice] = of_rows
        later += sum(choice.slots(ctx.layer) for choice in choices)
        for group in groups.values():
            later -= sum(choice.slots(ctx.layer) for choice in group)
            merged = Memo(ctx.watch)  # freed before the next group: at most one merged copy of a layer exists
            for choice, of_rows in group.items():
                keep_UT, kv = of_rows[0].keep_UT, (ctx.k, ctx.v)
                with measured([choice], ctx):
                    if choice.method.merge is not None and choice.drops:
                        kv = merged("merged", partial(choice.method.merged, ctx, keep_UT))
                    store = choice.store(ctx.layer)
                    if store is not None:
                        with part_call(f"the store {type(store).__name__}", ctx.layer):
                            side = store.prepare(ctx, keep_UT, *kv)
                        group[choice] = [replace(entry, store=store, side=side) for entry in of_rows]
            together = [entry for of_rows in group.values() for entry in of_rows]
            with measured(list(group), ctx, time_shares(group)):
                self._caches.kv.add(ctx.layer, together, *kv, later)

    def _entries(self, choice: Choice, ctx: LayerContext) -> list[Entry]:
        """Return what a variant keeps of a layer, once for each of its rows."""
        tokens = choice.tokens
        if choice.drops:
            tokens, total = choice.of_layer(ctx.layer)
            evicting = choice.method.evicting
            keep_UT = evicting.mask(ctx, tokens, total)
            known = total if evicting.exact and tokens is not None else None
        else:
            keep_UT = torch.ones(ctx.num_kv_heads, self.span, dtype=torch.bool, device=ctx.k.device)
            known = keep_UT.numel()
        if self._save_kept:
            choice.kept[ctx.layer] = keep_UT.cpu()
        layer = self._caches.plan.full[ctx.layer]
        return entries(choice.variant, choice.places, ctx, keep_UT, tokens, known, layer)
