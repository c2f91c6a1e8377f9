"""A table of comparable runs in all forms: Markdown, LaTeX, HTML, lines of CSV, and what the console shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from kvbench.report.footnotes import footnotes
from kvbench.report.formats import Cells, escaped, html_heading, html_notes, html_table, markdown
from kvbench.report.latex import NEEDS, latex_comment, latex_tables
from kvbench.report.scores import Line, score_lines
from kvbench.report.suite import SuiteTable
from kvbench.report.table import Row
from kvbench.store import RunNumbers


@dataclass(frozen=True)
class Group:
    """Comparable runs and all forms in which their table is shown."""

    name: str
    folder: str
    runs: Sequence[RunNumbers]
    content: Mapping[str, object]
    tables: Sequence[Sequence[Cells]]
    console: Callable[[], str]
    legend: str
    suite: SuiteTable | None = None

    @property
    def notes(self) -> list[str]:
        """The protocol in words, a note each."""
        return footnotes([run.manifest for run in self.runs])

    def scores(self) -> list[Line]:
        """Return the lines of scores.csv."""
        rows = self.suite if self.suite is not None else cast(Sequence[Row], self.content["rows"])
        return score_lines(self.runs, self.folder.rpartition("-")[2], rows)

    def markdown(self) -> str:
        """Return the whole of table.md."""
        notes = "\n".join(f"- {escaped(note)}" for note in self.notes)
        return "\n\n".join([f"## {escaped(self.name)}", *map(markdown, self.tables), self.legend, notes]) + "\n"

    def latex(self) -> str:
        """Return the whole of table.tex: tables for booktabs, the legend and the protocol as comments."""
        comments = [latex_comment(text) for text in (self.name, NEEDS, self.legend, *self.notes)]
        return "\n".join(comments) + "\n\n" + latex_tables(self.tables) + "\n"

    def html(self) -> list[str]:
        """Return the parts of a page."""
        notes = [html_notes(text) for text in (self.legend, *self.notes)]
        return [html_heading(self.name), *map(html_table, self.tables), *notes]
