"""The rows that a variant fills of a layer, once its tokens are chosen.

Shape suffixes: U KV heads, T tokens of the compressed span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.base import Entry
from kvbench.engine.caches import Place
from kvbench.engine.variant import Variant
from kvbench.methods.context import LayerContext
from kvbench.methods.decoding import Decoding
from kvbench.methods.plan import Plan


def entries(
    variant: Variant,
    places: Sequence[Place],
    ctx: LayerContext,
    keep_UT: Tensor,
    tokens: int | None,
    total: int | None = None,
    model_layer: int | None = None,
) -> list[Entry]:
    """Return what each row of a variant stores of a layer. The rows share all tensors.

    Args:
        places: the rows, and the tokens that follow in each.
        keep_UT: the tokens that the method keeps of the prompt.
        tokens: tokens per KV head that the budget allows; None without a budget.
        total: tokens that all heads keep of the prompt together, if that is known without the mask.
        model_layer: number of the layer in the model.
    """
    method, (first, *others) = variant.method, places
    decoding, plan = method.decoding, method.plan(ctx, keep_UT)
    entry = Entry(
        first.row,
        torch.ones_like(keep_UT) if method.keeps_prompt else keep_UT,
        first.reserve,
        store=method.store,  # or a form of it that a budget in bytes has chosen for the layer
        decoding=None if decoding is None else decoding.for_answer(first.reserve),
        score_UT=method.start_scores(ctx),
        base_U=None if decoding is None else _base(variant, decoding, keep_UT, plan, tokens),
        plan=plan,
        total=keep_UT.numel() if method.keeps_prompt else total,
        look=method.look,
        reads=None if method.look is None else tokens,
        rotate=None if ctx.facts.model is None else partial(ctx.facts.model.rotate, layer=ctx.layer),
        seed=ctx.facts.seed,
        model_layer=model_layer,
    )
    return [entry, *(_copy_for(entry, place, decoding) for place in others)]


def _copy_for(first: Entry, place: Place, decoding: Decoding | None) -> Entry:
    """Return what another row of a variant keeps: the same tokens."""
    own = None if decoding is None else decoding.for_answer(place.reserve)
    return replace(first, row=place.row, reserve=place.reserve, decoding=own)


def _base(variant: Variant, decoding: Decoding, keep_UT: Tensor, plan: Plan | None, tokens: int | None) -> list[int]:
    """Return each KV head's share of the budget while generating, or the limit of its plan.

    If the prompt was compressed, the shares follow from layer and head budgets. A prompt shorter than the budget
    leaves room to grow: every head may then hold the whole budget.
    """
    heads, span = keep_UT.shape
    if plan is not None and decoding.policy.follows_plan:
        limits: list[int] = plan.limit_U.tolist()
        return limits
    kept: list[int] = keep_UT.sum(1).tolist()
    if decoding.policy.adds_to_prompt:
        return [span] * heads if decoding.phase == "decode" else kept
    if tokens is None or variant.method.drops(tokens, span):
        return kept if tokens is None else decoding.base(kept, tokens)
    return [decoding.tokens(variant.budget if isinstance(variant.budget, int) else tokens)] * heads
