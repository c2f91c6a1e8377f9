"""A line of the suite's table, and the functions that make it from cases. Needs the standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
LARGE = 128e6  # bytes of keys and values of a layer
HOLDS, FAILS, UNKNOWN, DRY, INFO = "holds", "does not", "not measured", "dry run", ""


@dataclass(frozen=True)
class Line:
    what: str
    target: str
    measured: str
    verdict: str


@dataclass(frozen=True)
class Value:
    """A figure of one case.

    Attributes:
        counts: the target is about cases of this size.
        more: a remark.
    """

    number: float
    counts: bool = True
    more: str = ""


Cases = Mapping[str, Value]


def table(lines: Sequence[Line]) -> str:
    """Return the lines as text, in columns."""
    rows = [("what", "target", "measured", ""), *((x.what, x.target, x.measured, x.verdict) for x in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    )


def line(what: str, target: str, measured: str, good: bool) -> Line:
    return Line(what, target, measured, HOLDS if good else FAILS)


def unknown(what: str, target: str, measured: str = "") -> Line:
    return Line(what, target, measured, UNKNOWN)


def at_least(what: str, bound: float, cases: Cases) -> Line:
    """Return the line of a lower bound on the smallest of the cases that count."""
    return _bounded(what, f">= {bound:g}", cases, min, lambda value: value >= bound, "{:.2f}")


def at_most(what: str, bound: float, cases: Cases, form: str = "{:.2f}") -> Line:
    """Return the line of an upper bound on the largest of the cases that count."""
    return _bounded(what, f"<= {bound:g}", cases, max, lambda value: value <= bound, form)


def _bounded(
    what: str,
    target: str,
    cases: Cases,
    worst: Callable[..., str],
    fits: Callable[[float], bool],
    form: str,
) -> Line:
    counting = {title: value for title, value in cases.items() if value.counts}
    if not counting:
        return unknown(what, target)
    title = worst(counting, key=lambda single: counting[single].number)
    value = counting[title]
    printed = f"{form.format(value.number)} ({title}{value.more})"
    if len(cases) > len(counting):
        other = worst(cases, key=lambda single: cases[single].number)
        printed += f"; all sizes {form.format(cases[other].number)} ({other})"
    return line(what, target, printed, fits(value.number))
