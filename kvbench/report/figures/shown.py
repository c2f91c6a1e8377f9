"""The runs of a table as its figures get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvbench.report.figures.points import Points, points_of
from kvbench.report.suite import SuiteTable
from kvbench.store import StoredRun


@dataclass(frozen=True)
class Shown:
    """The runs of a table, and how they are shown.

    Attributes:
        suite: the table, for runs of a suite.
        heading, details: the title of the figures, and the line below it.
        folder: where the files go.
        metric: the score to show; None for the headline.
        palette: one of `kvbench.report.figures.palette.PALETTES`.
    """

    runs: Sequence[StoredRun]
    suite: SuiteTable | None
    heading: str
    details: str
    folder: Path
    metric: str | None = None
    palette: str = "safe"

    @cached_property
    def points(self) -> Points:
        """The points of curves, trade-offs and bars."""
        return points_of(self.runs, self.suite, self.metric)
