"""Waiting for Slurm tasks: progress from the run folders, and an end for every run that is true on disk.

Slurm may say COMPLETED of a task whose Python failed, and forgets what is over. So a task is over when it left the
queue, and its runs are complete when their folders say so.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from kvbench import store
from kvbench.cli.signals import Preempted
from kvbench.common.command import Unfinished
from kvbench.run.jobs import Job
from kvbench.run.runner import Outcome, finished
from kvbench.sweep.slurm import queue
from kvbench.sweep.slurm.units import Unit

log = logging.getLogger(__name__)

_TAIL = 8  # lines of a failed task's log
_EVERY = 60.0  # seconds between progress lines in a log; a terminal has one line that changes
_LOOKS = 3  # how often a folder is looked at before it counts as incomplete: network file systems show files late


class Watch:
    """Tasks (id → unit) and the runs (folder → job) that they are to complete."""

    def __init__(self, tasks: Mapping[str, Unit], jobs: Mapping[Path, Job], poll_s: float) -> None:
        self.tasks, self.jobs, self.poll_s = dict(tasks), dict(jobs), poll_s
        self.failed: dict[str, str] = {}  # task → how it ended
        self._read: dict[Path, tuple[int, int]] = {}  # file of records → bytes read, lines in them
        self._said = ("", 0.0)

    def outcomes(self) -> dict[Path, Outcome]:
        """Wait until all tasks have left the queue; how each run ended, with the error of those that did not end well.

        A signal or Ctrl-C ends the waiting, never the tasks.
        """
        try:
            self._wait()
        except (KeyboardInterrupt, Preempted):
            ids = " ".join(sorted({task.partition("_")[0] for task in self.tasks}))
            log.warning("\nno longer waiting; the tasks go on. The same command waits again; scancel %s ends them", ids)
            raise
        reported = self._reports()
        outcomes_by_run = self._finished(self.jobs)
        for _ in range(_LOOKS):
            if not self._late(set(self.jobs) - outcomes_by_run.keys() - reported.keys()):
                break
            time.sleep(self._settle / _LOOKS)
            outcomes_by_run |= self._finished(self.jobs.keys() - outcomes_by_run.keys())
        lost = [folder for folder in self.jobs if folder not in outcomes_by_run]
        general = Unfinished(
            f"{len(lost)} of {len(self.jobs)} runs are not complete, see above; issue the same command again to resume"
        )
        for folder in lost:
            error = reported.get(folder) or self._recorded_error(folder) or general
            outcomes_by_run[folder] = Outcome(self.jobs[folder], folder, error=error)
        return outcomes_by_run

    def _finished(self, folders: Iterable[Path]) -> dict[Path, Outcome]:
        looked = {folder: finished(self.jobs[folder], say=False) for folder in folders}
        return {folder: outcome for folder, outcome in looked.items() if outcome is not None}

    def _late(self, folders: Iterable[Path]) -> bool:
        """Return True if one of these runs looks incomplete here though all its tasks report that they finished."""
        of = {str(f): [unit for unit in self.tasks.values() if str(f) in unit.runs] for f in folders}
        return any(all(unit.report.exists() for unit in units) for units in of.values())

    @property
    def _settle(self) -> float:
        """Seconds until a file that a task wrote is surely visible here."""
        return min(60.0, _LOOKS * self.poll_s)

    def _wait(self) -> None:
        waiting, gone = dict(self.tasks), dict[str, float]()
        endings: dict[str, str] = {}
        while waiting:
            queued = queue.queue()
            for task in list(waiting):
                if queued is None or waiting[task].is_in(queued, task):
                    gone.pop(task, None)
                    continue
                if task not in gone:
                    gone[task], endings[task] = time.monotonic(), queue.ending(task)
                late = time.monotonic() - gone[task] >= self._settle
                if waiting[task].report.exists() or late:
                    self._over(task, waiting.pop(task), endings[task])
            if waiting:
                self._progress(queued)
                time.sleep(self.poll_s)
        self._progress({})

    def _over(self, task: str, unit: Unit, ending: str) -> None:
        """Log the end of a task that left the queue without finishing."""
        if unit.report.exists() or all(self._complete(Path(run), unit.shard) for run in unit.runs):
            return
        self.failed[task] = ending
        file = Path(unit.payload).parent / f"{task}_0_log.out"
        text = file.read_text(errors="replace") if file.is_file() else ""
        tail = "\n".join(f"    | {line}" for line in text.splitlines()[-_TAIL:]) or "    (it printed nothing)"
        log.error(
            "Slurm task %s (%s) ended early: %s. Its log, %s, ends:\n%s",
            task,
            unit.name,
            ending or "Slurm does not know how",
            file,
            tail,
        )

    def _complete(self, folder: Path, shard: str | None) -> bool:
        """Return True if the samples that a task computes of this run are on file."""
        job = self.jobs.get(folder)
        try:
            progress = store.progress(folder)
        except ValueError:
            return False
        part = progress.status.get("shards", {}).get(str(shard).replace("/", "of"), {})
        return progress.is_complete(job.cfg["limit"] if job else None) or part.get("status") == "partial"

    def _reports(self) -> dict[Path, Exception]:
        """Return the errors that tasks reported, by run; a ValueError stays one, since the user can mend its cause."""
        outcomes_by_run: dict[Path, Exception] = {}
        for unit in self.tasks.values():
            if unit.report.exists():
                for run, (kind, text) in json.loads(unit.report.read_text(encoding="utf-8"))["errors"].items():
                    outcomes_by_run[Path(run)] = (
                        ValueError(text) if kind == "ValueError" else Unfinished(f"{kind}: {text}")
                    )
        return outcomes_by_run

    def _recorded_error(self, folder: Path) -> Exception | None:
        """Return the error in a run's own status, or None."""
        try:
            status = store.progress(folder).status
        except ValueError:
            return None
        text = status.get("error") if status.get("status") == "failed" else None
        return Unfinished(f"{folder.name}: {text}") if text else None

    def _progress(self, queued: Mapping[str, queue.Queued] | None) -> None:
        """Show one line: how many records are on disk, and the states of the tasks."""
        rows = sum(self._lines(file) for folder in self.jobs for file in folder.glob("samples*.jsonl"))
        if queued is None:
            now = "Slurm does not answer"
        else:
            ours = [queued[task] for task, unit in self.tasks.items() if unit.is_in(queued, task)]
            states = Counter(_words(q) for q in ours)
            now = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no task in the queue"
        line = f"{rows} rows recorded in {len(self.jobs)} runs; {now}"
        last, when = self._said
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="" if queued != {} else "\n", file=sys.stderr, flush=True)
        elif line != last and (time.monotonic() - when > _EVERY or queued == {}):
            log.info("%s", line)
            self._said = (line, time.monotonic())

    def _lines(self, file: Path) -> int:
        """Return how many lines a growing file has; only what is new is read."""
        start, lines = self._read.get(file, (0, 0))
        try:
            with open(file, "rb") as opened:
                opened.seek(start)
                new = opened.read()
        except OSError:
            return lines
        self._read[file] = (start + len(new), lines + new.count(b"\n"))
        return self._read[file][1]


def _words(task: queue.Queued) -> str:
    waits = task.state == "PENDING" and task.reason != "None"
    return task.state.lower() + f" ({task.reason})" * waits
