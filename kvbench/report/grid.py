"""A small table of a benchmark: a line per method, a column per budget; scores, and differences to the full cache."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.report.formats import Cell, Cells, markdown
from kvbench.report.runs import budget_order, budget_words
from kvbench.report.table import Row, cells, table
from kvbench.store import RunNumbers


def grid(runs: Sequence[RunNumbers]) -> str:
    """Return the table of comparable runs as Markdown, with the numbers of `kvbench report`.

    Runs without a budget have their score in the first column, and no others. Raises ValueError for runs that cannot
    be compared.
    """
    rows = table(runs)
    budgets = sorted({row["budget"] for row in rows}, key=budget_order)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    own = {(row["method"], row["budget"]): _cell(row) for row in rows}
    lines: list[Cells] = []
    for method in methods:
        of_budgets = {_header(budget): own.get((method, budget), "") for budget in budgets}
        lines.append({"method": method, **of_budgets})
    return markdown(lines)


def _header(budget: str) -> str:
    return budget_words(budget) or "no budget"


def _cell(row: Row) -> Cell:
    """Return score and difference, as the report has them."""
    score, difference = list(cells(row).values())[2:4]
    text = f"{score} ({difference})" if row["difference"] else str(score)
    return Cell(text, is_best=row["best"])
