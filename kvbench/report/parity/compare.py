"""The comparison of a published row with our runs: what differs in the settings, and in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvbench.common.paths import conf_dir
from kvbench.report.parity.ours import Score, Variant, fact_of
from kvbench.report.parity.presets import implied, model_word
from kvbench.report.parity.references import Entry
from kvbench.store.validate import show

Verdict = Literal["within", "outside", "other protocol", "incomplete", "not run", "cannot run"]
VERDICTS: Mapping[Verdict, str] = {
    "within": "the same protocol, and the mean is within the tolerance",
    "outside": "the same protocol, and the mean is not within the tolerance",
    "incomplete": "the same protocol, but samples or datasets are missing; the means are those of the common datasets",
    "other protocol": "settings differ, so that the numbers are not comparable",
    "not run": "no run of ours has this method and budget",
    "cannot run": "kvbench cannot run this row",
}


@dataclass(frozen=True)
class Outcome:
    """A published row and what our runs say about it.

    Attributes:
        differences: setting → theirs and ours, in words. missing: what has not been computed, in words.
        theirs, ours: means in points, over the common datasets if some are missing.
        columns: dataset → theirs and ours in points, of those that both have.
        outside: the datasets whose scores differ by more than the tolerance of a column.
        reason: why the row cannot be run; None if it can.
        by_name: our model is a folder, which was known by its name alone.
    """

    entry: Entry
    verdict: Verdict
    differences: Mapping[str, tuple[str, str]]
    missing: Sequence[str]
    theirs: float
    ours: float | None
    columns: Mapping[str, tuple[float, float]]
    outside: Sequence[str]
    reason: str | None
    by_name: bool = False

    @property
    def delta(self) -> float | None:
        """Ours minus theirs in points; None without a score of ours."""
        return None if self.ours is None else self.ours - self.theirs


def compare(entry: Entry, variants: Sequence[Variant]) -> Outcome:
    """Compare a published row with the variant of its method and budget that differs in the fewest settings."""
    candidates = [
        (_differences(entry, variant), _missing(entry, variant), variant)
        for variant in variants
        if (variant.group, variant.method, variant.budget) == (entry.group, entry.method, entry.budget)
    ]
    if not candidates:
        reason = _obstacle(entry)
        return Outcome(entry, "cannot run" if reason else "not run", {}, (), entry.mean, None, {}, (), reason)
    differences, missing, variant = min(candidates, key=lambda candidate: tuple(map(len, candidate[:2])))
    theirs, ours, columns = _points(entry, variant.scores)
    outside = [
        name
        for name, (their, our) in columns.items()
        if "column" in entry.tolerance and abs(our - their) > entry.tolerance["column"]
    ]
    verdict: Verdict
    if differences:
        verdict = "other protocol"
    elif missing or ours is None:
        verdict = "incomplete"
    else:
        verdict = "within" if abs(ours - theirs) <= entry.tolerance["mean"] else "outside"
    by_name = variant.is_local and "model" not in differences
    return Outcome(entry, verdict, differences, missing, theirs, ours, columns, outside, None, by_name)


def _differences(entry: Entry, variant: Variant) -> dict[str, tuple[str, str]]:
    """Return the settings in which a variant differs: path → what the source has, what ours has."""
    result = {}
    for path, accepted in entry.settings.items():
        facts = variant.facts(path)
        known = _model_names(entry, variant) if path == "model" else accepted
        if any(not _same(fact, known) for fact in facts):
            result[path] = (_words(accepted), _words(facts))
    wrong: dict[str, tuple[list[object], list[object]]] = {}  # the same, as values: other datasets have other ones
    for run in variant.runs:
        for path, accepted in implied(entry, run.manifest).items():
            fact = fact_of(run.manifest, path)
            if not _same(fact, accepted):
                theirs, ours = wrong.setdefault(path, ([], []))
                theirs += [value for value in accepted if value not in theirs]
                ours += [fact] if fact not in ours else []
    return result | {path: (_words(theirs), _words(ours)) for path, (theirs, ours) in wrong.items()}


def _model_names(entry: Entry, variant: Variant) -> tuple[object, ...]:
    """Return what the model of a row may be called; that of a folder by the last part of its hub id, or its preset."""
    hub = entry.settings["model"]
    if not variant.is_local:
        return hub
    return (*hub, *(str(name).rpartition("/")[2] for name in hub), model_word(entry.command))


def _same(fact: object, accepted: Sequence[object]) -> bool:
    """Return True for an accepted value; 1 and 1.0 are the same, 1 and true are not."""
    return any(fact == value and isinstance(fact, bool) == isinstance(value, bool) for value in accepted)


def _words(values: Sequence[object]) -> str:
    return " or ".join(value if isinstance(value, str) else show(value) for value in values)


def _missing(entry: Entry, variant: Variant) -> list[str]:
    """Return what a variant lacks for the whole row: datasets, and samples of those that it has."""
    scores = variant.scores
    absent = [name for name in entry.columns if name not in scores]
    gaps = [f"datasets: {', '.join(absent)}"] if absent else []
    for name in entry.columns or scores:
        score = scores.get(name)
        if score is not None and score.answered < score.total:
            gaps.append(f"{name}: {score.answered} of {score.total} samples have an answer")
    return gaps


def _points(entry: Entry, scores: Mapping[str, Score]) -> tuple[float, float | None, dict[str, tuple[float, float]]]:
    """Return their mean, ours and the columns. Where we lack datasets, both means are of the common ones."""
    names = list(entry.columns or scores)
    ours = {name: score.points for name in names if (score := scores.get(name)) and score.points is not None}
    columns = {name: (entry.scores[name], ours[name]) for name in names if name in ours and name in entry.scores}
    if not ours or (len(ours) < len(names) and not columns):
        return entry.mean, None, {}  # their mean is of datasets that ours lacks
    if len(ours) == len(names):
        return entry.mean, sum(ours.values()) / len(ours), columns
    theirs = sum(their for their, _ in columns.values()) / len(columns)
    return theirs, sum(our for _, our in columns.values()) / len(columns), columns


def _obstacle(entry: Entry) -> str | None:
    """Return why a row cannot be run; None if it can."""
    absent = [name for name in entry.method.split("+") if not _has_method(name)]
    if absent:
        return f"kvbench has no method {absent[0]}"
    if entry.budget is None:
        return "the source states no budget"
    return entry.why_not


def _has_method(name: str) -> bool:
    folder: Path = conf_dir() / "method"
    return (folder / f"{name}.yaml").is_file()
