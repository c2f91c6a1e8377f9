"""The start of a prefill, the same for the engine's loop and for `kvbench.compressed`.

Both must give a method the same facts about prompt and model; otherwise it would keep other tokens in one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbench.engine.attention import last_logits
from kvbench.engine.caches import LayerCaches, Place, cache_shape
from kvbench.engine.feed import FeedPass
from kvbench.engine.hidden import LayerInputs
from kvbench.engine.model_view import decoder_layers, view_of
from kvbench.engine.passes import ProbeRunner
from kvbench.engine.prefill import PrefillPass
from kvbench.engine.variant import Variant
from kvbench.methods.model_view import ModelView
from kvbench.methods.prompt_facts import PromptFacts, Spans


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, variants: Sequence[Variant]) -> None:
    """Make what methods need of a model, before its prefill; a forward call of the model is part of it.

    Raises:
        ValueError: a method does not fit the model; one line.
    """
    if any(_needs_view(variant) for variant in variants):
        view = view_of(model, tokenizer)
        if any(_turns(variant) for variant in variants):
            view.check_rotations()


def _turns(variant: Variant) -> bool:
    """Return True if a method rotates keys while it generates."""
    return variant.method.decoding is not None and variant.method.decoding.policy.turns


def _needs_view(variant: Variant) -> bool:
    """Return True if a method reads the model, apart from the layers of its prompt."""
    method = variant.method
    return "model" in method.needs or method.probe is not None or _turns(variant)


def start_feed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    variants: Sequence[Variant],
    caches: LayerCaches,
    *,
    places: Sequence[Sequence[Place]],
    token_ids: Tensor,
    spans: Spans | None = None,
    task: str | None = None,
    seed: int = 0,
) -> FeedPass:
    """Return the attention of a prompt that variants with an equal feed take in chunk by chunk.

    Args:
        variants: the variant of each row of the call.
        caches: destination of the keys and values.
        places: per variant, the rows of the cache to fill; each begins as a copy of the first.
        token_ids, spans, task, seed: as `start_prefill` takes them.

    Raises:
        ValueError: a budget that is impossible on this prompt, or a method that lacks a fact about it.
    """
    view = view_of(model, tokenizer) if any(_needs_view(variant) for variant in variants) else None
    facts = _facts(view, token_ids, spans, task, seed)
    return FeedPass(
        variants, caches, places=places, span=len(token_ids), shape=cache_shape(model), model=view, facts=facts
    )


def feed_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    places: Mapping[Variant, Sequence[Place]],
    caches: LayerCaches,
    *,
    token_ids: Tensor,
    spans: Spans | None,
    task: str | None,
    seed: int,
) -> tuple[FeedPass, dict[int, Tensor]]:
    """Take a prompt in chunk by chunk, once for every variant of an equal feed; the arguments are as for `start_feed`.

    Returns:
        The attention of the call, and the logits [V] of the prompt's last token for each row of the cache.
    """
    rows = list(places.values())
    attention = start_feed(
        model, tokenizer, list(places), caches, places=rows, token_ids=token_ids, spans=spans, task=task, seed=seed
    )
    position_BT = torch.arange(len(token_ids), device=token_ids.device).expand(len(rows), -1)
    logits_BV = last_logits(model, token_ids.expand(len(rows), -1), position_BT, attention)
    logits = {place.row: logits_V for of_variant, logits_V in zip(rows, logits_BV, strict=True) for place in of_variant}
    return attention, logits


def start_prefill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    variants: Sequence[Variant],
    caches: LayerCaches,
    *,
    places: Sequence[Sequence[Place]],
    token_ids: Tensor,
    spans: Spans | None = None,
    task: str | None = None,
    seed: int = 0,
    save_kept: bool = False,
) -> PrefillPass:
    """Return the attention of a prompt's forward call.

    Args:
        variants: different methods and budgets.
        caches: destination of the kept keys and values.
        places: per variant, the rows of the cache to fill.
        token_ids: [T] ids of the compressed span.
        spans: named regions of the prompt; None if all of it is context.
        task: the task of the prompt as its benchmark names it; None if nobody says.
        seed: seed of the run, for methods that draw random numbers.
        save_kept: keep the masks of kept tokens.

    Raises:
        ValueError: a budget that is impossible on this prompt, or a method that lacks a fact about it.
    """
    span = len(token_ids)
    needs = frozenset[str]().union(*(variant.method.needs for variant in variants))
    view = view_of(model, tokenizer) if any(_needs_view(variant) for variant in variants) else None
    facts = _facts(view, token_ids, spans, task, seed)
    hidden = LayerInputs(decoder_layers(model, caches.plan)) if "hidden" in needs else None
    run_probe = None
    if any(variant.method.probe is not None for variant in variants):
        run_probe = ProbeRunner(model, caches.plan, view_of(model, tokenizer), token_ids, facts.spans)
    return PrefillPass(
        variants,
        caches,
        places=places,
        span=span,
        facts=facts,
        shape=cache_shape(model),
        hidden=hidden,
        run_probe=run_probe,
        save_kept=save_kept,
    )


def _facts(view: ModelView | None, token_ids: Tensor, spans: Spans | None, task: str | None, seed: int) -> PromptFacts:
    """Return what the methods' parts may know of a prompt. Without `spans`, all of it is context."""
    span = len(token_ids)
    whole = {"template": (0, 0), "context": (0, span), "question": (span, span)}
    return PromptFacts(token_ids, whole if spans is None else spans, view, _sample_seed(seed, token_ids), task)


def _sample_seed(seed: int, token_ids: Tensor) -> int:
    """Return a seed that depends on the run's seed and the prompt alone: it is the same in any job group."""
    text = f"{seed} {token_ids.tolist()}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
