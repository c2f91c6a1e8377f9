"""Names, order and comparability of runs, for tables and figures."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict, TypeVar, cast

from kvbench.common.text import one_line
from kvbench.store import Manifest, StoredRun
from kvbench.store.environment import device_kind, is_mixed

_DIAL = 60  # characters of a dial and its value in a name
MARK = "†"  # after the name of what was computed with different versions or on different hardware


class Described(Protocol):
    """A run whose manifest is known: a `RunNumbers`, a `StoredRun`."""

    @property
    def manifest(self) -> Manifest:
        """Identity, labels, device and headline."""
        ...


class Setting(TypedDict):
    """The setting that two compared runs share."""

    benchmark: str
    model: list[object]  # label, identity
    dtype: str
    device: str  # its kind: "cuda:0" and "cuda:1" are one
    protocol: dict[str, object]
    scoring: dict[str, object]


def setting(manifest: Manifest) -> Setting:
    """Return the setting of a run."""
    identity, label = manifest["identity"], manifest["label"]
    return {
        "benchmark": label["benchmark"],
        "model": [label["model"], identity["model"]],
        "dtype": identity["dtype"],
        "device": device_kind(manifest["device"]),
        "protocol": identity["protocol"],
        "scoring": manifest["scoring"],
    }


def is_full_cache(manifest: Manifest) -> bool:
    """Return True for the run that differences refer to: nothing is evicted, and nothing is stored differently.

    Such a method has no budget and no parts, only its name and dials.
    """
    method = cast(Mapping[str, object], manifest["identity"]["method"])
    return manifest["label"]["budget"] == "full" and not any(isinstance(part, Mapping) for part in method.values())


def table_mark(shared: object) -> str:
    """Return eight digits that tell apart settings which read alike."""
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]


AnyRun = TypeVar("AnyRun", bound=Described)


def groups(runs: Sequence[AnyRun]) -> list[list[AnyRun]]:
    """Sort runs into comparable groups; groups and runs have a fixed order."""
    by_setting: dict[str, list[AnyRun]] = {}
    for run in runs:
        by_setting.setdefault(json.dumps(setting(run.manifest), sort_keys=True), []).append(run)
    return [sorted(by_setting[key], key=order) for key in sorted(by_setting)]


def check_comparable(runs: Sequence[Described]) -> None:
    """Raise ValueError, saying what differs, unless all runs have one setting."""
    if not runs:
        raise ValueError("no runs to report")
    first = cast(Mapping[str, object], setting(runs[0].manifest))
    for run in runs[1:]:
        other = cast(Mapping[str, object], setting(run.manifest))
        for key, value in first.items():
            if other[key] != value:
                what = _difference(key, value, other[key])
                raise ValueError(
                    f"{title(runs[0])} and {title(run)} cannot share a table, they differ in {what}; "
                    "compare runs of one protocol, device and model, or report them apart"
                )


def _difference(key: str, value: object, other: object) -> str:
    if not isinstance(value, Mapping) or not isinstance(other, Mapping):
        return f"{key}: {value!r} / {other!r}"
    keys = [inner for inner in {**value, **other} if value.get(inner) != other.get(inner)]
    return "; ".join(f"{key}.{inner}: {value.get(inner)!r} / {other.get(inner)!r}" for inner in keys)


def order(run: Described) -> tuple[bool, str, tuple[int, float], str]:
    """Return the sort key: runs without a budget first, then by method and by budget; see `budget_order`."""
    label = run.manifest["label"]
    budget = label["budget"]
    return budget != "full", label["method"], budget_order(budget), run.manifest["hash"]


def name(run: Described, runs: Sequence[Described] = ()) -> str:
    """Return the name that a run has among `runs`, see `names`; alone, that is its method."""
    return names([run, *(other for other in runs if other.manifest != run.manifest)])[0]


def names(runs: Sequence[Described]) -> list[str]:
    """Return the name of each run of a table, also of thousands: its method, and what tells it from others of it.

    That is each setting in which runs of the method differ anywhere in the table, whatever their budgets. So a name
    stands for one method with one set of dials, and a curve may join the runs of one name. Where all settings are
    alike, the hash tells apart runs of one budget.
    """
    texts = [run.manifest["label"]["method"] for run in runs]
    for settings in (_settings, _parts):
        texts = _told_apart(texts, [settings(run) for run in runs])
    labels = [(text, run.manifest["label"]["budget"]) for text, run in zip(texts, runs, strict=True)]
    number = Counter(labels)
    hashes = [f" {run.manifest['hash'][:8]}" for run in runs]
    return [label[0] + (mark if number[label] > 1 else "") for label, mark in zip(labels, hashes, strict=True)]


def _told_apart(texts: Sequence[str], settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return each text with those of its settings that differ among the runs of this text."""
    alike: dict[str, list[Mapping[str, object]]] = {}
    for text, own in zip(texts, settings, strict=True):
        alike.setdefault(text, []).append(own)
    differ: dict[str, set[str]] = {}
    for text, same in alike.items():
        keys = {key for own in same for key in own}
        differ[text] = {key for key in keys if len({_plain(own, key) for own in same}) > 1}
    return [
        " ".join([text, *(_word(key, own[key]) for key in own if key in differ[text])])
        for text, own in zip(texts, settings, strict=True)
    ]


def _plain(settings: Mapping[str, object], key: str) -> str:
    return json.dumps(settings[key], sort_keys=True) if key in settings else ""


def _word(key: str, value: object) -> str:
    """Return a setting in words. A mark takes the place of a long one's end, so that no two values read alike."""
    word = one_line(f"{key}={value}")
    return word if len(word) <= _DIAL else f"{word[: _DIAL - 9]}~{table_mark(value)}"


def dials(run: Described) -> dict[str, object]:
    """Return the dials of a run's method: its settings but for its name and its parts."""
    method: Mapping[str, object] = {**run.manifest["identity"]["method"]}
    return {key: value for key, value in method.items() if key != "name" and not isinstance(value, Mapping)}


def _settings(run: Described) -> dict[str, object]:
    """Return the method's dials, and what else the identity holds outside of `setting`."""
    identity = run.manifest["identity"]
    return dials(run) | {"seed": identity["seed"], "backend": identity["backend"]}


def _parts(run: Described) -> dict[str, object]:
    """Return the settings of a method's parts by their path, such as "score.window"."""
    method: Mapping[str, object] = {**run.manifest["identity"]["method"]}
    parts = {key: value for key, value in method.items() if isinstance(value, Mapping)}
    return {f"{part}.{key}": value for part, inside in parts.items() for key, value in inside.items()}


def title(run: Described, runs: Sequence[Described] = ()) -> str:
    """Return method and budget in words: "snapkv, 20% budget", "snapkv window=8, 128 tokens", "fullkv †"."""
    return titled(name(run, runs), run)


def titled(name: str, run: Described) -> str:
    """Return the name of a run with its budget in words, and its mark."""
    words = budget_words(run.manifest["label"]["budget"])
    return marked(name + (f", {words}" if words else ""), is_mixed([run.manifest]))


def marked(words: str, has_mark: bool) -> str:
    """Return the name of a row, with a sign if it was computed with different versions or on different hardware."""
    return f"{words} {MARK}" if has_mark else words


def budget_words(budget: str) -> str:
    """Return a budget label in words; "" for methods without one. "1" is a token, "1.0" the whole context."""
    kind, value = budget_order(budget)
    return ("", f"{100 * value:.3g}% budget", f"{100 * value:.3g}% bytes", f"{budget} tokens")[kind]


def budget_order(budget: str) -> tuple[int, float]:
    """Return kind and value of a budget label: kind 0 for none, 1 for a share of tokens, 2 of bytes, 3 for tokens."""
    if budget == "full":
        return 0, 0.0
    kind = 3 if budget.isdigit() else 2 if budget.endswith("B") else 1
    return kind, float(budget.removesuffix("B"))


def kept_share(run: StoredRun) -> float | None:
    """Return the mean over samples of kept tokens per KV head as a share of what was compressed; None without any."""
    shares = [sample["kept_mean"] / sample["span"] for sample in run.answered]
    return sum(shares) / len(shares) if shares else None


def headline_first(runs: Sequence[Described], names: Iterable[str]) -> list[str]:
    """Return each name of a score once, the headline of the runs first."""
    headline = runs[0].manifest["headline"]
    return sorted(dict.fromkeys(names), key=lambda name: name != headline)


def check_metric(runs: Sequence[Described], names: Sequence[str], metric: str | None) -> str:
    """Return the metric to show, the headline by default. Raises ValueError for one that is not among `names`."""
    metric = metric or runs[0].manifest["headline"]
    if names and metric not in names:
        raise ValueError(f"--metric {metric}: these runs hold {', '.join(names)}")
    return metric
