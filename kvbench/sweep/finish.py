"""After the runs: their table on the console, their pictures in outputs/reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from kvbench.runner import Outcome

log = logging.getLogger(__name__)


def present(outcomes: Sequence[Outcome]) -> None:
    """Print the table of the runs that ended well and draw their heatmaps; say which failed and why."""
    from kvbench.report.present import present as report
    from kvbench.store import load_run

    folders = sorted({o.folder for o in outcomes if o.error is None})
    if folders:
        outputs = Path(outcomes[0].job.cfg["paths"]["outputs"])
        report([load_run(folder) for folder in folders], outputs / "reports")
    for outcome in outcomes:
        if outcome.error is not None:
            log.error("failed: %s: %s", outcome.folder.name, outcome.error)
