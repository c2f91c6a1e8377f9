"""Formats of tables: cells in words, and whole tables as Markdown, LaTeX and CSV.

Texts come from stored files, which may come from anywhere. Each format escapes what it would obey: control characters,
Markdown and HTML, LaTeX commands, and formulas of spreadsheets.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from kvbench.common.text import one_line
from kvbench.report.difference import Difference

FORMATS = ("table", "csv", "json", "latex")
# what plain LaTeX fonts lack
_LATEX = {"Δ": r"$\Delta$", "–": "--", "×": r"$\times$", "·": r"$\cdot$", "…": r"\dots{}"}

Cells = Mapping[str, str]  # one row: column → text
_NARROW = 10  # characters of a line in a broken header
_LEFT = ("method", "budget", "dataset", "bucket")
_MARKUP = re.compile(r"[|<>`\\]|(?<!\w)[*_]|!?\[(?=[^\]]*\]\()")  # what Markdown or HTML would obey
_FORMULA = re.compile(r"[=+\-@\t\r]")  # with which a formula begins in a spreadsheet


def markdown(rows: Sequence[Cells], headers: Sequence[str] | None = None, narrow: bool = False) -> str:
    """Return rows as a Markdown table. `headers` stand in for the columns' names, which are unique.

    narrow: long headers are broken into lines; that is for the eye, Markdown knows headers of one line only.
    """
    columns = list(rows[0])
    heads = [_lines(escaped(head)) if narrow else [escaped(head)] for head in headers or columns]
    depth = max(map(len, heads))
    lines = [[head[i] if i < len(head) else "" for head in heads] for i in range(depth)]
    lines += [[escaped(row[column]) for column in columns] for row in rows]
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


def escaped(text: str) -> str:
    """Return a text as one line of Markdown that shows it as it is; HTML would show it, too."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", one_line(text))


def _lines(head: str) -> list[str]:
    """Return a header broken after "_", "-" and spaces into lines of about a number's width."""
    lines = [""]
    for piece in re.findall(r"[^_ -]+[_ -]?", head) or [head]:
        if lines[-1] and len(lines[-1]) + len(piece) > _NARROW:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def latex(rows: Sequence[Cells]) -> str:
    """Return rows as a LaTeX table for the package booktabs."""
    from tabulate import tabulate

    align = ["left" if name in _LEFT else "right" for name in rows[0]]
    clean = [{one_line(name): one_line(text) for name, text in row.items()} for row in rows]
    text = tabulate(clean, headers="keys", tablefmt="latex_booktabs", colalign=align, disable_numparse=True)
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return text


def latex_comment(text: str) -> str:
    """Return a text as one LaTeX comment."""
    return f"% {one_line(text)}"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as CSV with a header; None is an empty cell. A text never begins as a formula does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    clean = one_line(value)
    return f"'{clean}" if _FORMULA.match(clean) else clean


def number(value: float | None, form: str) -> str:
    """Return a number, or a dash where nothing was measured."""
    return "–" if value is None else form.format(value)


def percent(share: float | None) -> str:
    """Return a share in brackets, to follow a number; nothing where it is unknown."""
    return "" if share is None else f" ({100 * share:.0f}%)"


def interval(difference: Difference | None) -> str:
    """Return a difference in words: mean, interval or why there is none, and n.s. unless it is significant."""
    if difference is None:
        return "–"
    text = f"{difference['mean']:+.2f}"
    if difference["low"] is not None and difference["high"] is not None:
        text += f" [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    elif difference["reason"]:
        text += f" [{difference['reason']}]"
    return text if difference["significant"] else text + " n.s."
