"""The parity report in words: a table per source, the differences of settings, and the commands of what is not run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from itertools import groupby

from kvbench.report.formats import Cells, escaped, markdown, number
from kvbench.report.parity.compare import VERDICTS, Outcome
from kvbench.report.parity.references import Entry

_OURS = ("KV head",)
ROUNDING = 0.02  # points by which a mean that is printed with two digits may be off


def parity_text(outcomes: Sequence[Outcome], columns: bool = False) -> str:
    """Return the whole report as Markdown. `columns` adds a line per dataset of a row."""
    parts = []
    for _, group in groupby(outcomes, key=lambda outcome: outcome.entry.table):
        members = list(group)
        parts.append(_section(members, columns))
    counts = [f"{sum(outcome.verdict == word for outcome in outcomes)} {word}" for word in VERDICTS]
    legend = [f"{word}: {text}" for word, text in VERDICTS.items()]
    return "\n\n".join([*parts, f"{len(outcomes)} published rows: {', '.join(counts)}.", "; ".join(legend) + "."])


def _section(outcomes: Sequence[Outcome], columns: bool) -> str:
    entry = outcomes[0].entry
    source = {key: escaped(str(value)) for key, value in entry.source.items()}
    within = ", ".join(f"{what} ±{points:g}" for what, points in entry.tolerance.items())
    lines = [
        f"## {entry.table}",
        f"{source['paper']}; {source['place']}. {escaped(entry.group)}, in points; tolerance: {within}.",
        f"Read from a {source['read']}; {source['checked']}.",
        markdown([row for outcome in outcomes for row in _rows(outcome, columns)]),
    ]
    notes = dict.fromkeys(note for outcome in outcomes for note in _notes(outcome))
    lines += ["\n".join(f"- {note}" for note in notes)] if notes else []
    commands = list(sweeps(outcomes))
    lines += ["Not run yet:\n\n" + "\n".join(f"    {command}" for command in commands)] if commands else []
    return "\n\n".join(lines)


def _rows(outcome: Outcome, columns: bool) -> Iterable[Cells]:
    entry = outcome.entry
    yield {
        "model": entry.model,
        "method": entry.label,
        "budget": entry.budget or "not stated",
        "theirs": f"{outcome.theirs:.2f}",
        "ours": number(outcome.ours, "{:.2f}"),
        "Δ": number(outcome.delta, "{:+.2f}"),
        "verdict": outcome.verdict,
    }
    for name, (theirs, ours) in outcome.columns.items() if columns else ():
        far = "outside" if name in outcome.outside else "within" if "column" in entry.tolerance else ""
        cells = {"model": "", "method": name, "budget": "", "theirs": f"{theirs:.2f}", "ours": f"{ours:.2f}"}
        comparable = outcome.verdict not in ("other protocol", "incomplete")
        yield {**cells, "Δ": f"{ours - theirs:+.2f}", "verdict": far if comparable else ""}


def _notes(outcome: Outcome) -> Iterable[str]:
    """Yield what a reader must know about a row. Notes that several rows share are shown once."""
    entry = outcome.entry
    for path, (theirs, ours) in outcome.differences.items():
        yield escaped(f"{entry.label}, {path}: {theirs} / ours {ours}")
    if outcome.by_name:
        yield escaped(f"{entry.model}: ours is a folder, taken for this model by its name; its weights are not checked")
    for gap in outcome.missing:
        yield escaped(f"{entry.label} {entry.budget}, missing: {gap}")
    if outcome.ours is None and outcome.reason is None and entry.settings.get("kept per", _OURS) != _OURS:
        yield escaped(f"{entry.label}: keeps tokens per query head, kvbench per KV head; a run will not be comparable")
    if outcome.reason is not None:
        yield escaped(f"{entry.model}, {entry.label}: {outcome.reason}")
    if outcome.outside and outcome.verdict in ("within", "outside"):
        yield escaped(f"{entry.label} {entry.budget}, outside of ±{entry.tolerance['column']:g}: "
                      f"{', '.join(outcome.outside)}")  # fmt: skip
    if entry.scores and entry.printed is not None and abs(entry.printed - entry.mean) > ROUNDING:
        yield escaped(
            f"{entry.model}, {entry.label} {entry.budget}: {entry.printed:.2f} is printed, the mean of the columns is "
            f"{entry.mean:.2f}"
        )


def sweeps(outcomes: Iterable[Outcome]) -> Iterable[str]:
    """Yield the commands that run what is not run yet or incomplete: one per model and method, over its budgets."""
    waiting: dict[tuple[str, str, str], list[Entry]] = {}
    for outcome in outcomes:
        entry = outcome.entry
        if outcome.verdict in ("not run", "incomplete", "other protocol") and entry.command and entry.budget:
            if "kept per" in outcome.differences and len(outcome.differences) == 1:
                continue  # running it again would change nothing
            key = (entry.command, entry.method, shlex.join(_dials(entry)))
            waiting.setdefault(key, []).append(entry)
    for (command, method, dials), entries in waiting.items():
        budgets = [entry.budget for entry in entries if entry.budget not in (None, "full")]
        words = ["kvbench", *(["-m"] if len(set(budgets)) > 1 else []), command, f"method={method}"]
        words += [f"budget={','.join(dict.fromkeys(map(str, budgets)))}"] if budgets else []
        yield " ".join(filter(None, [*words, dials]))


def parity_lines(outcomes: Iterable[Outcome]) -> list[dict[str, str | float | None]]:
    """Return a flat line per published row, for a spreadsheet or a program."""
    return [
        {
            "table": outcome.entry.table,
            "benchmark": outcome.entry.group,
            "model": outcome.entry.model,
            "method": outcome.entry.label,
            "budget": outcome.entry.budget,
            "theirs": outcome.theirs,
            "ours": outcome.ours,
            "delta": outcome.delta,
            "tolerance": outcome.entry.tolerance["mean"],
            "verdict": outcome.verdict,
            "differences": "; ".join(f"{path}: {a} / ours {b}" for path, (a, b) in outcome.differences.items()),
            "missing": "; ".join(outcome.missing),
            "model_by": None if outcome.ours is None else "name" if outcome.by_name else "id",
            "reason": outcome.reason,
            "command": " ".join(sweeps([outcome])),
            "source": outcome.entry.source["place"],
        }
        for outcome in outcomes
    ]


def _dials(entry: Entry) -> list[str]:
    return [f"{path}={value}" for path, value in entry.dials.items()]
