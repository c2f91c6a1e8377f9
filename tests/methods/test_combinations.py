"""Every pair of methods, found by glob: refused in one line, or every part that it has from one of them matters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import kvbench
from kvbench import config
from kvbench.methods.method import Method
from kvbench.prompts import Prompt
from tests.helpers.methods import budget_for, load
from tests.helpers.tiny_engine import generate, prompt, tiny_model

BUDGET = 70
SMALL = {"residual": 32, "recent": 4, "shared": 2, "decode_budget": 8}
PROMPT = ("score", "layers", "heads", "select")


def pairs() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Return {name of a combination: its two methods} for allowed pairs, and {pair: refusal} for the others."""
    allowed, refused = {}, {}
    for names in itertools.permutations(sorted(config.options("method")), 2):
        try:
            method = load("+".join(names))
        except ValueError as error:
            line = refused["+".join(names)] = str(error)
            assert "\n" not in line and line.startswith(("method=", "method.")), line
        else:
            allowed[method.name] = names
    return allowed, refused


PAIRS, REFUSED = pairs()


def advised(pair: str) -> list[str]:
    """Return the methods that the refusal of a pair says to write; none for a pair that is allowed."""
    _, write, advice = REFUSED.get(pair, "").rpartition("write method=")
    return re.findall(r"[\w+]*\w", advice.replace(" or method=", " ")) if write else []


def test_what_a_refusal_advises_is_a_method_or_says_what_to_write_instead() -> None:
    """No circle: the other order of two methods may be refused for its parts, but then one method alone is advised."""
    assert advised("snapkv+kvzip") == ["kvzip"] and len(advised("ada_snapkv+h2o")) == 2
    assert sorted(advised("quest+snapkv")) == ["quest", "snapkv"], "a user need not know what a look and a score are"
    for pair in REFUSED:
        for other in advised(pair):
            if other in REFUSED:
                assert advised(other) and not set(advised(other)) & REFUSED.keys(), (
                    f"{REFUSED[pair]} → {REFUSED[other]}"
                )


def without(whole: Method, part: str, rest: Method) -> Method | None:
    """Return a combination with the other method's part, or none, in the place of its own; None if both are equal."""
    other, parts = rest.named_parts.get(part), whole.named_parts
    if other == parts[part]:
        return None
    assert whole.eviction is not None or part not in PROMPT
    if part not in PROMPT:
        field: dict[str, Any] = {part: getattr(rest, part)}
        return None if part == "probe" else replace(whole, name=f"{whole.name} without {part}", **field)
    if rest.eviction is None:  # then the other method keeps everything
        return replace(whole, name=f"{whole.name} without eviction", eviction=None, merge=None, probe=None, decode=None)
    try:
        eviction = replace(whole.eviction, **{part: other})  # type: ignore[type-var, arg-type]
        if part == "layers" and other.needs_statistics and eviction.score.is_positional:  # type: ignore[union-attr]
            return None  # such a method is refused: it would be even again
        changed = replace(whole, name=f"{whole.name} without {part}", eviction=eviction)
        changed.check_scored(BUDGET)
    except ValueError:  # the selection decides by itself how much it keeps, or the score needs a wider window
        changed = replace(whole, name=f"{whole.name} without the prompt's parts", eviction=rest.eviction)
    return changed


def small(name: str) -> Method:
    """Return a method whose store and decode policy begin to work on a short prompt and answer."""
    return load(name, **{dial: value for dial, value in SMALL.items() if dial in config.method(name).dials})


def counterparts(name: str) -> Iterator[tuple[str, Method]]:
    """Yield each part that a combination has from one of its methods, and the combination without it."""
    whole = small(name)
    for factor, other in itertools.permutations(name.split("+")):
        alone, rest = small(factor), small(other)
        for part in sorted(config.method(factor).own):
            if part in alone.named_parts and alone.named_parts[part] == whole.named_parts.get(part):
                changed = without(whole, part, rest)
                if changed is not None:
                    yield part, changed


@pytest.mark.slow
@pytest.mark.parametrize("first", sorted({name.split("+")[0] for name in PAIRS}))
def test_every_part_of_a_combination_changes_what_is_kept_or_stored(first: str) -> None:
    names = [name for name in PAIRS if name.split("+")[0] == first]
    changed = [(name, part, method) for name in names for part, method in counterparts(name)]
    methods = [*map(small, names), *(method for _, _, method in changed)]
    variants = [kvbench.Variant(method, budget_for(method, BUDGET)) for method in methods]
    texts = [prompt(150), [7] * 100 + prompt(50), prompt(170)]  # on one alone, two methods may agree by chance
    prompts = [Prompt(tuple(ids), len(ids) - 40, frozenset(), "", template_len=10) for ids in texts]
    both = generate(tiny_model(), prompts, variants, max_new_tokens=16, max_rows=32)
    seen = [[(row.kept, row.kept_max, row.kv_bytes, row.token_ids) for row in rows] for rows in zip(*both, strict=True)]
    whole = dict(zip(names, seen, strict=False))
    same = [
        f"{name}: {part}"
        for (name, part, _), row in zip(changed, seen[len(names) :], strict=True)
        if row == whole[name]
    ]
    assert not same
