"""From numbers to text: cells of tables, and tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("table", "csv", "json", "latex")
_LATEX = {"Δ": r"$\Delta$", "–": "--", "×": r"$\times$", "·": r"$\cdot$"}  # what plain LaTeX fonts lack

Cells = Mapping[str, str]  # one row: column → text
_NARROW = 10  # characters of a line in a broken header
_LEFT = ("method", "budget", "dataset", "bucket")


def markdown(rows: Sequence[Cells], headers: Sequence[str] | None = None, narrow: bool = False) -> str:
    """Rows as a Markdown table. `headers` stand in for the columns' names, which are unique.

    narrow: long headers are broken into lines; that is for the eye, Markdown knows headers of one line only.
    """
    columns = list(rows[0])
    heads = [_lines(head) if narrow else [head] for head in headers or columns]
    depth = max(map(len, heads))
    lines = [[head[i] if i < len(head) else "" for head in heads] for i in range(depth)]
    lines += [[row[column] for column in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    left = [column in _LEFT for column in columns]
    rule = ["-" * (width + 2) if at else "-" * (width + 1) + ":" for width, at in zip(widths, left, strict=True)]
    texts = [
        " | ".join(
            cell.ljust(width) if at else cell.rjust(width) for cell, width, at in zip(line, widths, left, strict=True)
        )
        for line in lines
    ]
    texts = [f"| {text} |" for text in texts]
    return "\n".join([*texts[:depth], f"|{'|'.join(rule)}|", *texts[depth:]])


def _lines(head: str) -> list[str]:
    """A header broken after "_", "-" and spaces into lines of about a number's width."""
    lines = [""]
    for piece in re.findall(r"[^_ -]+[_ -]?", head) or [head]:
        if lines[-1] and len(lines[-1]) + len(piece) > _NARROW:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def latex(rows: Sequence[Cells]) -> str:
    """Rows as a LaTeX table for the package booktabs."""
    from tabulate import tabulate

    align = ["left" if name in _LEFT else "right" for name in rows[0]]
    text = tabulate(rows, headers="keys", tablefmt="latex_booktabs", colalign=align, disable_numparse=True)
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def number(value: float | None, form: str) -> str:
    """A number, or a dash where nothing was measured."""
    return "–" if value is None else form.format(value)


def percent(share: float | None) -> str:
    """A share in brackets after a number; nothing where it is unknown."""
    return "" if share is None else f" ({100 * share:.0f}%)"


def interval(difference: Mapping[str, Any] | None) -> str:
    """A difference as of `kvbench.report.difference`: mean, interval, and n.s. unless the interval excludes 0."""
    if difference is None:
        return "–"
    text = f"{difference['mean']:+.2f}"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    return text if difference["significant"] else text + " n.s."
