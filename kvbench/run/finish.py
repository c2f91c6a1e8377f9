"""The end of a command: the table of its runs on the console, files and figures in outputs/reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kvbench.run.runner import Outcome

log = logging.getLogger(__name__)


def result(outcomes: Sequence[Outcome]) -> float | Exception | None:
    """Return the mean score of a configuration (over the parts of a suite), or its first error."""
    errors = [o.error for o in outcomes if o.error is not None]
    scores = [o.score for o in outcomes if o.score is not None]
    return errors[0] if errors else sum(scores) / len(scores) if scores else None


def present_outcomes(outcomes: Sequence[Outcome]) -> None:
    """Print the table of the runs that ended well; write it and heatmaps of all stored runs that compare to them."""
    from kvbench.report.present import present

    runs = {o.folder: o.stored for o in outcomes if o.stored is not None}
    if runs:
        outputs = Path(outcomes[0].job.cfg["paths"]["outputs"])
        present([runs[folder] for folder in sorted(runs)], outputs / "reports", store=outputs / "runs")
    failed = [o for o in outcomes if o.error is not None]
    for outcome in failed[1:]:  # the first ends the command and is printed there
        if outcome.error is not failed[0].error:
            log.error("also failed: %s: %s", outcome.folder.name, outcome.error)
