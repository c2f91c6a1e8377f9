"""The runs of a table as its figures get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvbench.report.figures.points import Points, points_of
from kvbench.report.runs import names
from kvbench.report.suite import SuiteTable
from kvbench.report.suite_groups import row_key
from kvbench.store import RunNumbers, StoredRun, numbers_of


@dataclass(frozen=True)
class Shown:
    """The runs of a table, and how they are shown.

    Attributes:
        suite: the table, for runs of a suite.
        heading, details: the title of the figures, and the line below it.
        folder: where the files go.
        metric: the score to show; None for the headline.
        palette: one of `kvbench.report.figures.palette.PALETTES`.
        limited: leave out the rows of the methods that score lowest, where there are too many for a figure.
    """

    runs: Sequence[StoredRun | RunNumbers]
    suite: SuiteTable | None
    heading: str
    details: str
    folder: Path
    metric: str | None = None
    palette: str = "safe"
    limited: bool = True

    @cached_property
    def numbers(self) -> list[RunNumbers]:
        """The runs as numbers."""
        return list(map(numbers_of, self.runs))

    @cached_property
    def names(self) -> list[str]:
        """The name of each run among all of them; in a suite, that of its row."""
        if self.suite is None:
            return names(self.runs)
        rows = {row["key"]: row["method"] for row in self.suite["rows"]}
        return [rows[row_key(run)] for run in self.runs]

    @cached_property
    def points(self) -> Points:
        """The points of curves, trade-offs and bars."""
        return points_of(self.numbers, self.suite, self.metric)
