"""Footnotes of a table: under which protocol, on which hardware and with which versions its numbers were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import cast

from kvbench.common.text import one_line
from kvbench.report.runs import MARK, Setting, setting, table_mark
from kvbench.report.suite_groups import key_of_row
from kvbench.store import Manifest
from kvbench.store.environment import changes, environments, hardware_of, is_mixed
from kvbench.store.schema import Continuation

_LONGEST = 60  # characters of a value
_MOST = 6  # different values of a kind


def footnotes(manifests: Sequence[Manifest]) -> list[str]:
    """Return lines about the runs of one table: model, protocol, scoring, versions, hardware, rows that mix these."""
    first = setting(manifests[0])
    shared = [setting(manifest) for manifest in manifests]
    weights = table_mark(manifests[0]["identity"]["model"])
    model = f"Model: {first['model'][0]} (weights {weights}), {first['dtype']} on {first['device']}."
    protocol = [f"{key}={text}" for key in sorted(first["protocol"]) if (text := _same(key, shared)) is not None]
    scoring = _distinct(_words(each["scoring"].get("metrics", {})) for each in shared)
    computed = [each for manifest in manifests for each in environments(manifest)]
    versions = _distinct(_words(each.get("versions", {})) for each in computed)
    seeds = _distinct(str(manifest["identity"]["seed"]) for manifest in manifests)
    lines = [model, f"Protocol: {', '.join(protocol) or '–'}.", f"Metrics and their versions: {scoring or '–'}."]
    lines += [f"Seed: {seeds}."] + ([f"Versions: {versions}."] if versions else [])
    return [one_line(line) for line in [*lines, *_hardware(manifests), *_mixed(manifests)]]


def _hardware(manifests: Sequence[Manifest]) -> list[str]:
    """Return a line with the hardware of the runs; [] where none is recorded, as earlier versions did not."""
    known = hardware_of(manifests)
    if not known:
        return []
    unknown = sum("hardware" not in each for manifest in manifests for each in environments(manifest))
    words = _distinct(known) + (f"; not recorded for {unknown} runs or parts of runs" if unknown else "")
    several = "; times of different hardware do not compare" if len(known) > 1 or unknown else ""
    return [f"Hardware: {words}{several}."]


def _mixed(manifests: Sequence[Manifest]) -> list[str]:
    """Return a line about the rows that were computed with different versions or on different hardware, if any."""
    rows: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        rows.setdefault(key_of_row(manifest), []).append(manifest)
    words = [_mixture(row) for row in rows.values() if is_mixed(row)]
    if not words:
        return []
    more = f"; and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return [
        f"{MARK} Computed with different versions or on different hardware: {'; '.join(words[:_MOST])}{more}. "
        "Where the hardware differs, times are left out."
    ]


def _mixture(row: Sequence[Manifest]) -> str:
    """Return how a row is mixed: "snapkv 0.2 (after 3 of 12 samples: code 1a → 2b)"."""
    label, first = row[0]["label"], row[0]
    words = []
    for manifest in row:
        if manifest is not first and (changed := changes(first, manifest)):
            words.append(f"{manifest['label']['benchmark']}: {', '.join(changed)}")
        for before, after in pairwise(environments(manifest)):
            count = cast(Continuation, after)["recorded"]
            if changed := changes(before, after):
                words.append(f"after {count} of {manifest['num_samples']} samples: {', '.join(changed)}")
    shown = words[:_MOST] + ([f"and {len(words) - _MOST} more"] if len(words) > _MOST else [])
    return f"{label['method']} {label['budget']} ({'; '.join(shown)})"


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
