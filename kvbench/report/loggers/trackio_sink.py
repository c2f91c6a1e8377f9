"""Trackio as a sink. Written against trackio 0.43; nothing outside this file imports it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvbench.common.loggers import TrackioSettings
from kvbench.report.loggers.ledger import Ledger
from kvbench.report.loggers.sinks import About, Content, HistoryRow, Overview

EXTRA = "pip install 'kvbench[trackio]'"


class TrackioSink:
    """Runs in a database of Trackio in `<outputs>/trackio`, on this machine alone.

    Trackio appends to a run and cannot replace what it has. So an entry that has to be written again is deleted first.
    """

    name = "trackio"

    def __init__(self, settings: TrackioSettings, outputs: Path) -> None:
        """Import Trackio. Raises ImportError if it is not installed."""
        self.folder = outputs.absolute() / "trackio"
        self.project = settings.project or "kvbench"
        self.group = settings.group
        self.tags: Sequence[str] = ()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):  # of other experiments: ours stay here
            os.environ.pop(name, None)
        os.environ["TRACKIO_DIR"] = str(self.folder)  # read when trackio is imported
        os.environ["HF_HUB_OFFLINE"] = "1"  # it would ask the hub who we are
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

        self._trackio = trackio

    def place(self, id: str) -> Path:
        """Return the folder of our own notes about an entry."""
        return self.folder / "kvbench" / self.project / id

    def holds(self, ledger: Ledger) -> bool:
        """Return True if the run is in the database."""
        return any(run.name == ledger.folder for run in self._runs())

    def open(self, about: About, before: Ledger) -> OpenTrackioRun:
        """Begin a run; an older one of this name goes."""
        for run in self._runs():
            if run.name in (about.name, before.folder):
                run.delete()
        with contextlib.redirect_stdout(io.StringIO()):
            run = self._trackio.init(
                project=self.project,
                name=about.name,
                group=about.group,
                config={**about.config, "job_type": about.job_type, "tags": list(about.tags)},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._trackio.context_vars.current_run.set(None)  # or the next `init` would end this run
        return OpenTrackioRun(self, about, run)

    def share(self, overview: Overview) -> None:
        """Do nothing: Trackio has no reports."""

    def outcome(self) -> str:
        """Return how to look at the runs."""
        return f"Trackio: to look: TRACKIO_DIR={self.folder} trackio show --project {self.project}"

    def _runs(self) -> list[Any]:
        try:
            return list(self._trackio.Api().runs(self.project))
        except ValueError:  # there is no such project yet
            return []


@dataclass
class OpenTrackioRun:
    """A run of Trackio that is being written."""

    sink: TrackioSink
    about: About
    run: Any
    step: int = 0

    def __post_init__(self) -> None:
        self.id = self.about.id

    def log(self, rows: Sequence[HistoryRow]) -> None:
        """Write the rows of new steps."""
        for row in rows:
            self.run.log(dict(row.values), step=row.step)
            self.step = row.step

    def finish(self, content: Content) -> None:
        """Write tables, images, predictions and the summary, and end the run."""
        trackio = self.sink._trackio
        shown: dict[str, Any] = {key: value for key, value in content.summary.items() if value is not None}
        for name, table in content.tables.items():
            shown[name] = trackio.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        shown |= {name: trackio.Image(str(path)) for name, path in content.images.items()}
        self.run.log(shown, step=self.step + 1)
        with contextlib.redirect_stdout(io.StringIO()):
            if content.files:
                artifact = trackio.Artifact(f"predictions-{self.id}", type="predictions")
                for path in content.files:
                    artifact.add_file(str(path))
                self.run.log_artifact(artifact)
            self.run.finish()

    def abandon(self) -> None:
        """End the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()

    def ledger(self) -> Ledger:
        """Return what is to be remembered of the run."""
        return Ledger(id=self.id, folder=self.about.name)
