"""Errors for dials that were set, but would change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kvbench.methods.composition import reached, references
from kvbench.methods.decoding import Decoding
from kvbench.methods.dials import PARTS
from kvbench.methods.eviction import Eviction
from kvbench.methods.method import Method


def check_use(config: DictConfig, dials: Mapping[str, Any]) -> None:
    """Raise ValueError for a dial that no part and no other dial interpolates: to set it would change nothing."""
    used = set(references(OmegaConf.to_container(config, resolve=False)))
    for dial in dials:
        if dial not in used:
            raise ValueError(f"method.{dial}: no part of {config.name} reads it; write ${{..{dial}}} where it belongs")


def _idle_parts(eviction: Eviction | None, decoding: Decoding) -> set[str]:
    """Return the parts that do nothing in the phase of a decode policy.

    With "decode", the prompt stays whole. Its budget is still shared out over layers and heads, and a share may follow
    from the scores, or from the tokens that are always kept.
    """
    if decoding.phase == "prefill":
        return {"decode"}
    if decoding.phase == "both" or eviction is None:
        return set()
    layers, heads = eviction.layers, eviction.heads
    if (heads is not None and heads.compares_heads) or (layers is not None and layers.needs_statistics):
        return {"merge"}
    is_even = layers is not None and layers.is_even and heads is not None and heads.is_even
    return {"score", "merge", "select"} if is_even else {"score", "merge"}


def check_phase(config: DictConfig, dials: Mapping[str, Any], defaults: Mapping[str, Any], method: Method) -> None:
    """Raise ValueError for a part or a dial that has no effect in the phase of the decode policy."""
    if method.decode is None:
        return
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    plain = {str(key): value for key, value in content.items()}
    parts = {part: plain[part] for part in PARTS if plain.get(part) is not None}
    idle = _idle_parts(method.eviction, method.decode)
    phase = method.dial_of.get(("decode", "phase"), "phase")
    if "merge" in idle & parts.keys():
        raise ValueError(f"method.{phase}={method.decode.phase}: {method.name} would merge nothing; choose both")
    read = reached(plain, {part: node for part, node in parts.items() if part not in idle}) | {phase}
    for dial in reached(plain, {part: node for part, node in parts.items() if part in idle}) - read:
        if dials[dial] != defaults[dial]:
            raise ValueError(f"method.{dial}={dials[dial]}: has no effect with method.{phase}={method.decode.phase}")


def check_idle(config: Any, dials: Mapping[str, Any], defaults: Mapping[str, Any], method: Method) -> None:
    """Raise ValueError for a dial that was set, but has no effect because of the value of another dial."""
    given = OmegaConf.to_container(config, resolve=False)
    assert isinstance(given, dict)
    idle: dict[tuple[str, str], str] = {}
    for name, part in method.named_parts.items():
        for field, switch, word in getattr(part, "idle", ()):
            if getattr(part, switch) == word:
                idle[name, field] = f"method.{method.dial_of.get((name, switch), switch)}={word}"
    fed = {dial: {at for at, of_field in method.dial_of.items() if of_field == dial} for dial in dials}
    for dial, value in dials.items():
        is_hint = str(given[dial]).startswith("${")  # of the model, which does not know the other dials
        if value != defaults[dial] and not is_hint and fed[dial] and fed[dial] <= idle.keys():
            raise ValueError(f"method.{dial}={value}: has no effect with {idle[min(fed[dial])]}")
