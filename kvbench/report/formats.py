"""Formats of tables: cells in words, and whole tables as Markdown, HTML and CSV; LaTeX is in `kvbench.report.latex`.

Texts come from stored files, which may come from anywhere. Each format escapes what it would obey: control characters,
Markdown and HTML, LaTeX commands, and formulas of spreadsheets.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence

from kvbench.common.text import one_line
from kvbench.report.difference import Difference

FORMATS = ("table", "csv", "json", "latex", "html")
_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #1f1f1f; background: #fff; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
thead th { border-top: 2px solid; border-bottom: 1px solid; }
tbody tr:last-child td { border-bottom: 2px solid; }
th.left, td.left { text-align: left; }
td.best { font-weight: 700; }
td.grey { color: #767676; }
p.notes { max-width: 60rem; color: #595959; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } td.grey { color: #8c8c8c; } p.notes { color: #a6a6a6; }
}
"""


class Cell(str):
    """The text of a cell with its emphasis: bold where it is the best, grey where it may be equal to the full cache."""

    is_best: bool
    is_grey: bool

    def __new__(cls, text: str, is_best: bool = False, is_grey: bool = False) -> Cell:
        """Return the text with its emphasis."""
        cell = super().__new__(cls, text)
        cell.is_best, cell.is_grey = is_best, is_grey
        return cell


Cells = Mapping[str, str]  # one row: column → text, or a Cell
_NARROW = 10  # characters of a line in a broken header
LEFT = ("method", "budget", "dataset", "bucket", "hardware")
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
    lines += [[_bold(row[column]) for column in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns))]
    left = [column in LEFT for column in columns]
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


def _bold(text: str) -> str:
    return f"**{escaped(text)}**" if isinstance(text, Cell) and text.is_best else escaped(text)


def _lines(head: str) -> list[str]:
    """Return a header broken after "_", "-" and spaces into lines of about a number's width."""
    lines = [""]
    for piece in re.findall(r"[^_ -]+[_ -]?", head) or [head]:
        if lines[-1] and len(lines[-1]) + len(piece) > _NARROW:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def html_table(rows: Sequence[Cells]) -> str:
    """Return rows as an HTML table."""
    columns = list(rows[0])
    heads = "".join(f"<th{_classes(name, '')}>{_html(name)}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td{_classes(name, row[name])}>{_html(row[name])}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def html_page(title: str, parts: Sequence[str]) -> str:
    """Return a page of its own, readable without network, of parts that are HTML already."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{_html(title)}</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_heading(text: str) -> str:
    """Return a heading of a page."""
    return f"<h2>{_html(text)}</h2>"


def html_notes(text: str) -> str:
    """Return a legend or a footnote of a page."""
    return f'<p class="notes">{_html(text)}</p>'


def _classes(column: str, text: str) -> str:
    words = ["left"] if column in LEFT else []
    if isinstance(text, Cell):
        words += [word for word, holds in (("best", text.is_best), ("grey", text.is_grey)) if holds]
    return f' class="{" ".join(words)}"' if words else ""


def _html(text: str) -> str:
    return html.escape(one_line(text))


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


def is_within(difference: Difference | None) -> bool:
    """Return True if a difference may be chance: its interval holds 0 or is unknown."""
    return difference is not None and not difference["significant"]


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
