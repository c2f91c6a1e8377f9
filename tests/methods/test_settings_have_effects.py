"""Every dial and the budget of every method, found by glob, in every phase: another value changes the result.

A value that would change nothing is refused in one line. The result is what is kept, its bytes, the tokens that a step
reads, and the answers to a few prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import kvbench
from kvbench import config
from kvbench.methods.context import LayerContext
from kvbench.methods.dials import PARTS, split_dials
from kvbench.methods.load import build
from kvbench.methods.method import Method
from kvbench.methods.scores.window_mean import WindowMean
from kvbench.methods.slots import Slots
from kvbench.prompts import Prompt
from tests.helpers.methods import TINY_HEADS, TINY_LAYERS, budget_for, head_table, load, test_dials
from tests.helpers.tiny_engine import generate, prompt, tiny_model

HEAD_DIM = 32  # of conf/model/tiny.yaml
SHORTEST = 150  # tokens of the shortest prompt
BUDGETS: tuple[int | float, ...] = (70, 1 / 3, 0.57)
SMALL = {"residual": 32, "recent": 4, "chunk": 40, "page": 8, "history": 16}  # what suits a short prompt
OTHER_TABLE = head_table(TINY_LAYERS, TINY_HEADS, seed=1)
NAMES = [*sorted(config.options("method")), "fullkv+scope", "ada_snapkv+think+kivi", "pyramidkv+h2o_decode"]


def base_dials(name: str) -> dict[str, Any]:
    """Return the dials that suit a short prompt and answer."""
    dials = config.method(name).dials
    small = SMALL | ({"decode_budget": 8} if dials.get("decode_budget") is not None else {})
    return {**{dial: value for dial, value in small.items() if dial in dials}, **test_dials(name)}


def phases(name: str) -> list[dict[str, Any]]:
    """Return the phases that a method may have, as dials."""
    if "phase" not in config.method(name).dials:
        return [{}]
    return [{"phase": phase} for phase in ("both", "decode", "prefill")]


def other_values(name: str, dial: str, value: Any) -> Iterator[Any]:
    """Yield other values of a dial: the words of its comment, or numbers around its own."""
    comment = config.method(name).notes[dial][1]
    words = [word.split()[0] for word in comment.split(": ")[-1].split(" | ")] if " | " in comment else []
    choices = [word.split(":")[0].strip("(") for word in comment.split(" | ")] if " | " in comment else words
    if str(config.method(name).dials[dial]).startswith("file:"):
        yield OTHER_TABLE
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield from (word.split()[-1] for word in [*words, *choices] if word.split()[-1] != value)
    elif isinstance(value, int):
        yield from (other for other in (value // 2, value * 2, value + 1, value + 30) if other != value)
    elif isinstance(value, float):
        yield from (value / 2, value * 1.5, 0.0, 1.0, 100.0)
    else:
        yield from (20, 0.5)


def loaded(name: str, dials: dict[str, Any]) -> Method | None:
    """Return a method, or None if it is refused, which must be in one line that names a setting."""
    try:
        return load(name, **dials)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(("method.", "method=")), str(error)
        return None


def changed(name: str, base: dict[str, Any], dial: str, value: Any) -> tuple[Method | None, Method | None]:
    """Return a method with another value of a dial, and the method to compare with.

    A dial of `base` that has no effect with that value, and is refused for it, has its default in both.
    """
    try:
        return load(name, **base | {dial: value}), load(name, **base)
    except ValueError as error:
        idle = str(error).removeprefix("method.").split("=")[0]
    if idle in base and idle != dial:
        rest = base | {idle: config.method(name).dials[idle]}
        return loaded(name, rest | {dial: value}), loaded(name, rest)
    return loaded(name, base | {dial: value}), None


def possible(method: Method | None, budget: int | float | None) -> list[kvbench.Variant]:
    """Return the variant as a list, empty for a method or a budget that is refused."""
    try:
        if method is not None:
            method.check_head_dim(HEAD_DIM)
            method.tokens(budget, SHORTEST)
            return [kvbench.Variant(method, budget)]
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(("budget=", "method.")), str(error)
    return []


def results(variants: list[kvbench.Variant]) -> list[object]:
    """Return what comes of each variant."""
    prompts = [prompt(SHORTEST), [7] * 100 + prompt(50), prompt(171)]  # on one alone, two settings may agree by chance
    asked = [Prompt(tuple(ids), len(ids) - 40, frozenset(), "") for ids in prompts]  # parts may ask for the question
    rows = zip(*generate(tiny_model(), asked, variants, max_new_tokens=20, max_rows=32), strict=True)
    return [[(out.kept, out.kept_max, out.kv_bytes, out.read, out.token_ids) for out in of_row] for of_row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_another_value_changes_the_result_or_is_refused(name: str) -> None:
    asked: dict[tuple[str, str], list[kvbench.Variant]] = {}
    compared: dict[tuple[str, str], list[kvbench.Variant]] = {}
    for phase in phases(name):
        base = base_dials(name) | phase
        method = loaded(name, base)
        if method is None:
            continue
        of_phase = phase.get("phase", "")
        given = [budget_for(method, budget) for budget in BUDGETS]
        asked[of_phase, ""] = [kvbench.Variant(method, budget) for budget in given]
        if method.promises is not None:
            asked[of_phase, "budget"] = [kvbench.Variant(method, 40)]
        for dial in config.method(name).dials:
            if dial != "phase":
                pairs = [changed(name, base, dial, value) for value in other_values(name, dial, method.dials[dial])]
                asked[of_phase, dial] = [v for other, _ in pairs for budget in given for v in possible(other, budget)]
                compared[of_phase, dial] = [v for _, rest in pairs for budget in given for v in possible(rest, budget)]
    assert asked, f"{name} has no phase"
    variants = list(dict.fromkeys(variant for of_dial in [*asked.values(), *compared.values()] for variant in of_dial))
    seen = dict(zip(variants, map(repr, results(variants)), strict=True))
    for of_phase in {phase for phase, _ in asked}:
        for (phase, dial), of_dial in asked.items():
            if phase == of_phase and dial and of_dial:
                others = asked[of_phase, ""] + compared.get((phase, dial), [])
                before = {seen[variant] for variant in others}
                assert {seen[variant] for variant in of_dial} - before, f"method.{dial} is ignored ({of_phase})"
    if len({phase for phase, _ in asked}) > 1:
        assert len({seen[of_dial[0]] for (_, dial), of_dial in asked.items() if not dial}) > 1, (
            "method.phase is ignored"
        )


def test_every_dial_has_a_comment_or_is_a_number() -> None:
    """The comment lists the words that a dial takes, and this test reads them."""
    for name in config.options("method"):
        method = config.method(name)
        for dial, value in method.dials.items():
            if isinstance(value, str) and not value.startswith(("${", "file:")):
                assert " | " in method.notes[dial][1], f"{name}: {dial}"
        assert not set(method.dials) & set(PARTS)


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        (
            "scope",
            {"phase": "decode"},
            "method.phase=decode: scope would keep the whole prompt whatever its budget; write",
        ),
        ("ada_snapkv+scope", {"phase": "decode"}, "method.phase=decode: ada_snapkv+scope would keep the whole prompt"),
        ("fullkv+scope", {"phase": "prefill"}, "method.phase=prefill: fullkv+scope keeps the whole prompt in any case"),
        ("scope", {"phase": "prefill", "recent": 3}, "method.recent=3: has no effect with method.phase=prefill"),
        (
            "tova",
            {"phase": "decode", "decode_budget": 20},
            "method.decode_budget=20: with method.phase=decode the budget",
        ),
        ("tova", {"interval": 1}, "method.interval=1: has no effect without a buffer"),
        (
            "snapkv",
            {"pooling": "none", "kernel_size": 9},
            "method.kernel_size=9: has no effect with method.pooling=none",
        ),
        (
            "windowkv",
            {"task": "aggregation", "localization": "average-8"},
            "method.localization=average-8: has no effect",
        ),
        (
            "windowkv",
            {"task": "localization", "aggregation": "average-8"},
            "method.aggregation=average-8: has no effect with method.task=localization",
        ),
        ("snapkv+tova", {"phase": "decode", "window": 9}, "method.window=9: has no effect with method.phase=decode"),
        ("elastic_cache+tova", {"phase": "decode"}, "method.phase=decode: elastic_cache+tova would merge nothing"),
    ],
)
def test_a_setting_without_effect_is_one_line(name: str, dials: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        kvbench.load_method(name, **dials)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dials"),
    [
        ("snapkv", {"pooling": "avg", "kernel_size": 1}),
        ("ada_snapkv", {"floor": 1.0, "normalize": True}),
        ("critical", {"first": 1, "epsilon": 0.1}),
        ("qaq", {"least": 4, "most": 4, "error": 2.0}),
    ],
)
def test_numbers_at_the_end_of_their_range_are_no_mistake(name: str, dials: dict[str, Any]) -> None:
    """A sweep over a number may reach the value at which another dial stops to matter."""
    assert dials.items() <= kvbench.load_method(name, **dials).dials.items()


def test_a_value_without_effect_may_come_from_the_model() -> None:
    """A hint for the kernel serves all methods of a model, with and without pooling."""
    node = OmegaConf.create({"model": {"hints": {"kernel_size": 21}}, "method": config.method("snapkv").node})
    node.method.pooling = "none"
    method = build(node.method, split_dials(config.defaults("method", "snapkv")))
    assert method.dials["kernel_size"] == 21


def test_scores_that_share_the_budget_out_count_in_every_phase() -> None:
    method = kvbench.load_method("ada_snapkv+tova", phase="decode", window=9)
    assert method.dials["window"] == 9


def test_a_method_says_if_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `Method.draws`, a seed that would change nothing is refused."""
    drawn: list[object] = []
    generator, uniform = LayerContext.generator, Slots.uniform
    monkeypatch.setattr(LayerContext, "generator", lambda ctx, part: drawn.append(part) or generator(ctx, part))
    monkeypatch.setattr(Slots, "uniform", lambda slots, at: drawn.append(slots) or uniform(slots, at))
    asked, drawing = Prompt(tuple(prompt(SHORTEST)), SHORTEST - 40, frozenset(), ""), set()
    for name in NAMES:
        for phase in phases(name):
            method = loaded(name, base_dials(name) | phase)
            if method is None:
                continue
            drawn.clear()
            generate(tiny_model(), [asked], [kvbench.Variant(method, budget_for(method, 70))], max_new_tokens=12)
            assert bool(drawn) == method.draws, f"{name} {phase}"
            drawing |= {name} if drawn else set()
    assert len(drawing) > 1


def test_a_part_within_a_part_may_draw() -> None:
    @dataclass(frozen=True)
    class Drawing(WindowMean):
        draws = True

    @dataclass(frozen=True)
    class Around(WindowMean):
        inner: WindowMean | None = None

    snapkv = kvbench.load_method("snapkv")
    for score, draws in ((Drawing(8), True), (Around(8, inner=Drawing(8)), True), (Around(8), False)):
        assert replace(snapkv, eviction=replace(snapkv.evicting, score=score)).draws == draws
    with pytest.raises(ValueError, match="^method: WindowMean draws random numbers; write draws = True"):
        LayerContext(*torch.zeros(3, 1, 8, 4)).generator(WindowMean(8))
