"""What tables and figures need of a stored run: its names, its order, and which runs may be compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

BASELINE = "fullkv"  # the method that differences refer to


class Run(Protocol):
    """A run as `kvbench.store.load_runs` returns it."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Identity, labels, device and headline."""
        ...

    @property
    def status(self) -> Mapping[str, Any]:
        """What status.json says; {} when there is none."""
        ...

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """One record per sample id."""
        ...


def part(run: Run) -> Mapping[str, Any] | None:
    """The run's place in a suite (see `kvbench.benchmarks.base.Part`); None for a benchmark that stands alone."""
    return run.manifest.get("part")


def setting(run: Run) -> dict[str, Any]:
    """What two compared runs must share. The device counts by kind: "cuda:0" and "cuda:1" are one."""
    identity, label = run.manifest["identity"], run.manifest["label"]
    return {
        "benchmark": label["benchmark"],
        "model": [label["model"], identity["model"]],
        "dtype": identity["dtype"],
        "device": re.sub(r":\d+$", "", str(run.manifest["device"])),
        "protocol": identity["protocol"],
        "scoring": run.manifest.get("scoring"),
    }


def fingerprint(setting: Mapping[str, Any]) -> str:
    """Eight digits that tell apart settings which read alike."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]


AnyRun = TypeVar("AnyRun", bound=Run)


def groups(runs: Sequence[AnyRun]) -> list[list[AnyRun]]:
    """Runs sorted into comparable groups; groups and runs in a fixed order."""
    by_setting: dict[str, list[AnyRun]] = {}
    for run in runs:
        by_setting.setdefault(json.dumps(setting(run), sort_keys=True), []).append(run)
    return [sorted(by_setting[key], key=order) for key in sorted(by_setting)]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raise ValueError, saying what differs, unless all runs have one setting."""
    if not runs:
        raise ValueError("no runs to report")
    first = setting(runs[0])
    for run in runs[1:]:
        other = setting(run)
        for name, value in first.items():
            if other[name] == value:
                continue
            if isinstance(value, Mapping) and isinstance(other[name], Mapping):
                keys = [key for key in {**value, **other[name]} if value.get(key) != other[name].get(key)]
                what = "; ".join(f"{name}.{key}: {value.get(key)!r} / {other[name].get(key)!r}" for key in keys)
            else:
                what = f"{name}: {value!r} / {other[name]!r}"
            raise ValueError(f"{title(runs[0])} and {title(run)} cannot share a table, they differ in {what}")


def order(run: Run) -> tuple[bool, str, float, str]:
    """Sort key: runs without a budget first, then by method and by budget, fractions before token counts."""
    label = run.manifest["label"]
    budget = label["budget"]
    return (
        budget != "full",
        label["method"],
        -1.0 if budget == "full" else float(budget),
        run.manifest["hash"],
    )


def name(run: Run, runs: Sequence[Run] = ()) -> str:
    """The method, and what tells it from other `runs` of the same label: settings that differ, else its hash."""
    label = run.manifest["label"]
    same = [other for other in runs if all(other.manifest["label"][key] == label[key] for key in ("method", "budget"))]
    mine, others = _settings(run), [_settings(other) for other in same]
    differ = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    words = [f"{key}={mine[key]}" for key in differ]
    alike = sum(all(other.get(key) == mine[key] for key in differ) for other in others)
    return " ".join([label["method"], *words, *([run.manifest["hash"][:8]] if alike > 1 else [])])


def _settings(run: Run) -> dict[str, Any]:
    """The method's dials, and what else the identity holds outside of `setting`."""
    identity = run.manifest["identity"]
    dials = {key: value for key, value in identity["method"].items() if not isinstance(value, Mapping)}
    return dials | {key: identity[key] for key in ("seed", "backend") if key in identity}


def title(run: Run, runs: Sequence[Run] = ()) -> str:
    """Method and budget in words: "snapkv, 20% budget", "snapkv window=8, 128 tokens", "fullkv"."""
    words = budget_words(run.manifest["label"]["budget"])
    return name(run, runs) + (f", {words}" if words else "")


def budget_words(budget: str) -> str:
    """A budget label in words; "" for methods without one. "1" is a token, "1.0" the whole context."""
    if budget == "full":
        return ""
    if budget.isdigit():
        return f"{budget} tokens"
    return f"{100 * float(budget):.3g}% budget"


def answered(run: Run) -> list[Mapping[str, Any]]:
    """The records with a prediction; the others ran out of memory."""
    return [sample for sample in run.samples if sample["status"] == "ok"]


def kept_share(run: Run) -> float | None:
    """Measured kept tokens per KV head as a share of what was compressed, mean over samples; None without any."""
    shares = [sample["kept_mean"] / sample["span"] for sample in answered(run)]
    return sum(shares) / len(shares) if shares else None


def score_names(runs: Sequence[Run]) -> list[str]:
    """Names of the stored scores, the headline first."""
    names = dict.fromkeys(name for run in runs for sample in answered(run) for name in sample["scores"])
    headline = runs[0].manifest["headline"]
    return sorted(names, key=lambda name: name != headline)


def check_metric(runs: Sequence[Run], metric: str | None) -> str:
    """The metric to show: the headline by default. Raises ValueError for one that the runs do not hold."""
    names = score_names(runs)
    metric = metric or runs[0].manifest["headline"]
    if names and metric not in names:
        raise ValueError(f"--metric {metric}: these runs hold {', '.join(names)}")
    return metric
