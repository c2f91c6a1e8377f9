"""Names, order and comparability of runs, for tables and figures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict, TypeVar, cast

from kvbench.common.text import one_line
from kvbench.store import AnsweredRecord, Manifest
from kvbench.store.numbers import ReadRun as Run

_DIAL = 60  # characters of a dial and its value in a name


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
        "device": re.sub(r":\d+$", "", manifest["device"]),
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
    """Return the method, and what tells it from other `runs` of the same label: settings that differ, else its hash."""
    key = _label(run)
    return _name(run, [other for other in runs if _label(other) == key])


def names(runs: Sequence[Described]) -> list[str]:
    """Return the `name` of each run among `runs`, also of thousands."""
    same: dict[tuple[str, ...], list[Described]] = {}
    for run in runs:
        same.setdefault(_label(run), []).append(run)
    return [_name(run, same[_label(run)]) for run in runs]


def _label(run: Described) -> tuple[str, ...]:
    label = run.manifest["label"]
    return label["method"], label["budget"]


def _name(run: Described, same: Sequence[Described]) -> str:
    if len(same) < 2:
        return run.manifest["label"]["method"]
    own, others = _settings(run), [_settings(other) for other in same]
    differ = [key for key in own if any(other.get(key) != own[key] for other in others)]
    words = [one_line(f"{key}={own[key]}")[:_DIAL] for key in differ]
    alike = sum(all(other.get(key) == own[key] for key in differ) for other in others)
    return " ".join([_label(run)[0], *words, *([run.manifest["hash"][:8]] if alike > 1 else [])])


def _settings(run: Described) -> dict[str, object]:
    """Return the method's dials, and what else the identity holds outside of `setting`."""
    identity = run.manifest["identity"]
    dials = {key: value for key, value in identity["method"].items() if not isinstance(value, Mapping)}
    return dials | {"seed": identity["seed"], "backend": identity["backend"]}


def title(run: Described, runs: Sequence[Described] = ()) -> str:
    """Return method and budget in words: "snapkv, 20% budget", "snapkv window=8, 128 tokens", "fullkv"."""
    words = budget_words(run.manifest["label"]["budget"])
    return name(run, runs) + (f", {words}" if words else "")


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


def answered(run: Run) -> list[AnsweredRecord]:
    """Return the records with a prediction; the others ran out of memory or failed."""
    return [cast(AnsweredRecord, record) for record in run.samples if record["status"] == "ok"]


def kept_share(run: Run) -> float | None:
    """Return the mean over samples of kept tokens per KV head as a share of what was compressed; None without any."""
    shares = [sample["kept_mean"] / sample["span"] for sample in answered(run)]
    return sum(shares) / len(shares) if shares else None


def score_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the stored scores, the headline first."""
    return headline_first(runs, (name for run in runs for sample in answered(run) for name in sample["scores"]))


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
