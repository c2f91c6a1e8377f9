"""Errors for budgets that leave nothing to choose next to the tokens that a method always keeps or reads.

`dials` are the fields of the part that dials of the YAML feed: {field: (dial, its value)}. `budget` is how the user
gave it, as in `budget=128`. Every error is one line that names it and the dials to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kvbench.methods.base import Select
from kvbench.methods.decoding import Decoding
from kvbench.methods.looking import Look

Dials = Mapping[str, tuple[str, Any]]


def check_reading_room(name: str, look: Look, tokens: int, budget: str, dials: Dials) -> None:
    """Raise ValueError if a step of the method `name` reads more than `tokens` in any case."""
    if tokens < look.least:
        named = raising(look, dials, lambda changed: changed.least)
        settings = ", ".join(f"method.{dial}={value}" for dial, value in named) or "by its look"
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
        named = raising(select, dials, lambda changed: changed.protected(tokens).total)
        settings = ", ".join(f"method.{dial}={value}" for dial, value in named) or select.reason
        raise ValueError(
            f"{budget}: {name} always keeps {protected} tokens ({settings}); the budget must be larger, or these "
            "smaller"
        )


def check_decode_room(name: str, decoding: Decoding, tokens: int, budget: str, dials: Dials) -> None:
    """Raise ValueError if the budget while generating leaves no token that the policy may drop."""
    generating = decoding.tokens(tokens)
    protected = decoding.policy.protects(generating)
    if generating <= protected:
        dial, _ = dials.get("budget", ("decode.budget", None))
        raise ValueError(
            f"{budget} with method.{dial}={decoding.budget}: {name} always keeps {protected} tokens while generating, "
            f"of {generating}; the budget must be larger"
        )


def raising(part: Any, dials: Dials, tokens: Callable[[Any], int]) -> Iterator[tuple[str, Any]]:
    """Yield the dials, with values, without which a part (a dataclass) would always keep or read fewer tokens."""
    for field, named in dials.items():
        for smaller in _smaller(getattr(part, field, 0)):
            with suppress(TypeError, ValueError):  # a number that cannot be so small
                if tokens(replace(part, **{field: smaller})) < tokens(part):
                    yield named
                    break


def _smaller(value: Any) -> Sequence[Any]:
    """Return smaller values of a number, or of a word that ends in one ("average-16"); none of anything else."""
    if isinstance(value, int):
        return 0, 1, value // 2, value // 4  # some numbers must be multiples of others
    if isinstance(value, float):
        return 0, 1
    return [re.sub(r"\d+$", "1", value)] if isinstance(value, str) else ()
