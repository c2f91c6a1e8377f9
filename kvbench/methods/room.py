"""Errors for budgets that leave nothing to choose next to the tokens that a method always keeps or reads.

`dials` are the fields of the part that dials of the YAML feed: {field: (dial, its value)}. `budget` is how the user
gave it, as in `budget=128`. Every error is one line that names it and the dials to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kvbench.methods.base import Select
from kvbench.methods.decoding import Decoding
from kvbench.methods.looking import Look

Dials = Mapping[str, tuple[str, Any]]


def check_reading_room(name: str, look: Look, tokens: int, budget: str, dials: Dials) -> None:
    """Raise ValueError if a step of the method `name` reads more than `tokens` in any case."""
    if tokens < look.least:
        settings = ", ".join(f"method.{dial}={value}" for dial, value in dials.values())
        raise ValueError(
            f"{budget}: {name} reads at least {look.least} tokens per step ({settings}); the budget must be larger, or "
            "these smaller"
        )


def check_kept_room(name: str, select: Select, tokens: int, budget: str, dials: Dials) -> None:
    """Raise ValueError if the method `name` always keeps as many tokens as the budget allows, or more."""
    protected = select.protected(tokens).total
    if tokens <= protected == 0:
        raise ValueError(f"{budget}: {name} would keep no token; the budget must be larger")
    if tokens <= protected:
        named = _protecting(select, tokens, dials)
        settings = ", ".join(f"method.{dial}={value}" for dial, value in named) or "by its selection"
        raise ValueError(
            f"{budget}: {name} always keeps {protected} tokens ({settings}); the budget must be larger, or these "
            "smaller"
        )


def check_decode_room(name: str, policy: Decoding, tokens: int, budget: str, dials: Dials) -> None:
    """Raise ValueError if the budget while generating leaves no token that the policy may drop."""
    generating = policy.tokens(tokens)
    protected = policy.policy.protects(generating)
    if generating <= protected:
        dial, _ = dials.get("budget", ("decode.budget", None))
        raise ValueError(
            f"{budget} with method.{dial}={policy.budget}: {name} always keeps {protected} tokens while generating, of "
            f"{generating}; the budget must be larger"
        )


def _protecting(select: Any, tokens: int, dials: Dials) -> Iterator[tuple[str, Any]]:
    """Yield the dials, with values, without which a selection (a dataclass) would always keep fewer tokens."""
    for field, named in dials.items():
        try:
            smaller = replace(select, **{field: 0}).protected(tokens).total
        except (TypeError, ValueError):
            continue  # no number, or one that cannot be 0
        if smaller < select.protected(tokens).total:
            yield named
