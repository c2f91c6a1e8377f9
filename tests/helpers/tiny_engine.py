"""The tiny model, prompts of random ids, and every method there is, for tests of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch

import kvbench
from kvbench.config import options
from kvbench.engine.variant import Generation
from tests.helpers.methods import budget_for, load

METHODS = sorted(options("method"))
BUDGETS = (70, 0.4)
NEW = 12

Tiny = tuple[Any, Any]
"""A model and its tokenizer."""


@cache
def tiny_model() -> Tiny:
    """Return the tiny model and its tokenizer; one for all tests of a process."""
    loaded = kvbench.load_model("tiny")
    return loaded.model, loaded.tokenizer


def prompt(length: int, seed: int = 0) -> list[int]:
    """Return random ids that the tiny model knows."""
    ids: list[int] = torch.randint(3, 260, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def variants(names: Iterable[str] = METHODS, budgets: Iterable[int | float] = BUDGETS) -> list[kvbench.Variant]:
    """Return every method under every budget; a method that takes none comes once."""
    loaded = [(load(name), budget) for name in names for budget in budgets]
    return list(dict.fromkeys(kvbench.Variant(method, budget_for(method, budget)) for method, budget in loaded))


def generate(tiny: Tiny, prompts: Any, variants: Sequence[Any], **settings: Any) -> list[list[Generation]]:
    """Generate `NEW` tokens without stops."""
    return kvbench.generate(*tiny, prompts, variants, **({"max_new_tokens": NEW, "stop_ids": []} | settings))


def own_answer(model: Any, ids: Sequence[int], new: int = NEW) -> list[int]:
    """Return what `model.generate` of transformers answers greedily."""
    tokens = torch.tensor([list(ids)])
    mask = torch.ones_like(tokens)
    out = model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None)
    answer: list[int] = out[0, len(ids) :].tolist()
    return answer
