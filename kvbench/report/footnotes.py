"""Footnotes of a table: under which protocol, on which device and with which versions its numbers were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvbench.common.text import one_line
from kvbench.report.runs import Setting, setting, table_mark
from kvbench.store import Manifest

_LONGEST = 60  # characters of a value
_MOST = 6  # different values of a kind


def footnotes(manifests: Sequence[Manifest]) -> list[str]:
    """Return lines about the runs of one table: model, protocol, scoring, versions."""
    first = setting(manifests[0])
    shared = [setting(manifest) for manifest in manifests]
    weights = table_mark(manifests[0]["identity"]["model"])
    model = f"Model: {first['model'][0]} (weights {weights}), {first['dtype']} on {first['device']}."
    protocol = [f"{key}={text}" for key in sorted(first["protocol"]) if (text := _same(key, shared)) is not None]
    scoring = _distinct(_words(each["scoring"].get("metrics", {})) for each in shared)
    versions = _distinct(_words(manifest.get("versions", {})) for manifest in manifests)
    seeds = _distinct(str(manifest["identity"]["seed"]) for manifest in manifests)
    lines = [model, f"Protocol: {', '.join(protocol) or '–'}.", f"Metrics and their versions: {scoring or '–'}."]
    lines += [f"Seed: {seeds}."] + ([f"Versions: {versions}."] if versions else [])
    return [one_line(line) for line in lines]


def _same(key: str, settings: Sequence[Setting]) -> str | None:
    """Return a plain, short value of the protocol that all runs share; None for any other."""
    values = {repr(each["protocol"].get(key)): each["protocol"].get(key) for each in settings}
    value = next(iter(values.values()))
    if len(values) > 1 or not isinstance(value, str | int | float | bool) or value == "":
        return None
    text = one_line(str(value))
    return text if len(text) <= _LONGEST else None


def _words(values: object) -> str:
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(f"{key} {values[key]}" for key in sorted(values) if isinstance(values[key], str | int | float))


def _distinct(texts: Iterable[str]) -> str:
    """Return the different texts, the most frequent form first, a few of them at most."""
    known = sorted({text for text in texts if text})
    rest = f" and {len(known) - _MOST} more" if len(known) > _MOST else ""
    return "; ".join(known[:_MOST]) + rest
