"""One prompt under one method, observed: what every head keeps, in how many bytes, and where its queries look.

Shape suffixes: H query heads, U KV heads, T tokens of the compressed span, P pixels of a map (at most `PIXELS`),
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.engine.attention import AttentionPass, kvbench_attention, last_logits
from kvbench.engine.caches import LayerCaches, Place, device_of
from kvbench.engine.feed import FeedPass
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.probe import checked_plan
from kvbench.engine.rope import forget_lengths
from kvbench.engine.start import prepare, start_feed, start_prefill
from kvbench.engine.variant import PromptLike, Variant, spans_of
from kvbench.methods.plan import Plan

PIXELS = 256
"""Longer prompts are shown with several tokens to a pixel."""
_BLOCK = 64  # queries whose attention is computed at once


@dataclass(frozen=True)
class ObservedLayer:
    """One compressed layer after the prefill.

    Attributes:
        layer: index of the layer in the model.
        kept_UT: True for the tokens that a head stores.
        policies: the policy of each KV head; None for a method that chooses none.
        bytes, full_bytes: of the stored tokens, and of all tokens in a full cache.
        attention_HPP: the attention of each query head, the largest value of each pixel; None where not asked for.
    """

    layer: int
    kept_UT: Tensor
    policies: Sequence[str] | None
    bytes: int
    full_bytes: int
    attention_HPP: Tensor | None


def compressed_layers(model: PreTrainedModel) -> list[int]:
    """Return the layers of a model that are compressed."""
    return list(checked_plan(model).full)


@torch.inference_mode()
def observe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptLike,
    span: int,
    variant: Variant,
    *,
    seed: int = 0,
    maps: Collection[int] = (),
) -> list[ObservedLayer]:
    """Return the compressed layers of a model after the prefill of one prompt.

    Args:
        span: tokens of the prompt that are compressed.
        seed: seed of the run, for methods that draw random numbers.
        maps: layers whose attention is returned.

    Raises:
        ValueError: the engine cannot run the model, the budget is impossible on this prompt, or a layer of `maps`
            is none of those that are compressed.
    """
    plan = checked_plan(model)
    for layer in maps:
        if layer not in plan.full:
            raise ValueError(f"layers={layer}: this layer is not compressed; choose from {list(plan.full)}")
    cache = _ObservedCache(len(plan.full))
    caches = LayerCaches(plan, cache)
    prepare(model, tokenizer, [variant])
    forget_lengths(model)
    ids_T = torch.tensor(list(prompt.ids[:span]), device=device_of(model))
    places = [[Place(0, 1)]]
    start: Callable[..., PrefillPass | FeedPass] = start_prefill if variant.method.feed is None else start_feed
    prefill = start(
        model,
        tokenizer,
        [variant],
        caches,
        places=places,
        token_ids=ids_T,
        spans=spans_of(prompt, span),
        task=prompt.task,
        seed=seed,
    )
    watched = _Watched(prefill, frozenset(maps))
    try:
        with kvbench_attention(model):
            last_logits(model, ids_T[None], torch.arange(span, device=ids_T.device)[None], watched)
    finally:
        prefill.close()
        forget_lengths(model)
    kept, sizes = cache.masks.kept(0), cache.layer_bytes(0)
    return [
        ObservedLayer(
            layer,
            kept[index].cpu(),
            _names(variant, cache.plans.get(index)),
            sizes[index],
            prefill.full_bytes // len(plan.full),
            watched.maps.get(layer),
        )
        for index, layer in enumerate(plan.full)
    ]


def _names(variant: Variant, plan: Plan | None) -> list[str] | None:
    """Return the names of the heads' policies."""
    eviction = variant.method.eviction
    if plan is None or eviction is None:
        return None
    return [eviction.select.policies[code] for code in plan.numbers_UX[:, 0].tolist()]


class _ObservedCache(RaggedCache):
    """A ragged cache that also knows which tokens its rows hold, by a masked cache that gets the same calls."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(num_layers)
        self.masks = MaskedCache(num_layers)
        self.plans: dict[int, Plan] = {}

    def add(self, layer: int, entries: Sequence[Entry], k_UTD: Tensor, v_UTD: Tensor, later: int = 0) -> None:
        super().add(layer, entries, k_UTD, v_UTD, later)
        self.masks.add(layer, entries, k_UTD, v_UTD)
        if entries[0].plan is not None:  # there is one variant
            self.plans[layer] = entries[0].plan

    def attend(
        self,
        layer: int,
        rows: Sequence[int],
        q_BHTD: Tensor,
        k_BUTD: Tensor,
        v_BUTD: Tensor,
        scaling: float,
        new: NewTokens | None = None,
    ) -> Tensor:
        self.masks.attend(layer, rows, q_BHTD, k_BUTD, v_BUTD, scaling, new)
        return super().attend(layer, rows, q_BHTD, k_BUTD, v_BUTD, scaling, new)


class _Watched:
    """An attention pass that draws maps of what the model's queries attend to in the full prompt.

    Attributes:
        maps: layer → [H, P, P], float32 on the CPU.
    """

    def __init__(self, own: AttentionPass, wanted: Collection[int]) -> None:
        self._own, self._wanted = own, wanted
        self.maps: dict[int, Tensor] = {}

    def begin(self, ids_BT: Tensor) -> None:
        self._own.begin(ids_BT)

    def attend(self, layer: int, q_BHTD: Tensor, k_BUTD: Tensor, v_BUTD: Tensor, scaling: float) -> Tensor:
        if layer in self._wanted:
            self.maps[layer] = _map(q_BHTD[0], k_BUTD[0], scaling).cpu()
        return self._own.attend(layer, q_BHTD, k_BUTD, v_BUTD, scaling)

    def finish(self) -> None:
        self._own.finish()


def _map(q_HTD: Tensor, k_UTD: Tensor, scaling: float) -> Tensor:
    """Return causal attention [H, P, P]; the largest value of each pixel."""
    k_HTD = k_UTD.repeat_interleave(len(q_HTD) // len(k_UTD), 0).float()
    tokens = k_HTD.shape[1]
    pixel = -(-tokens // PIXELS)
    step = max(1, _BLOCK // pixel) * pixel
    rows = []
    for begin in range(0, tokens, step):
        logits = q_HTD[:, begin : begin + step].float() @ k_HTD.transpose(1, 2) * scaling
        future = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device).triu_(begin + 1)
        attention = logits.masked_fill_(future, -torch.inf).softmax(-1)
        rows.append(F.max_pool2d(attention, pixel, ceil_mode=True))
    return torch.cat(rows, 1)
