"""Sweeps: the runs of one command, as its plan lists them, and the entry that shows all of them together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.common.text import one_line
from kvbench.report.loggers.content import pictures
from kvbench.report.loggers.entries import Entry
from kvbench.report.loggers.sinks import About, Content, Table, Value
from kvbench.store import StoredRun, load_run
from kvbench.store.plans import Plan, read_plan

_FIRST = ("benchmark", "model", "method", "budget", "score")
_LAST = (
    "kept", "kept_share", "held_bytes", "held_share", "prefill_s", "ttft_s", "tpot_s", "recorded", "samples", "oom",
    "failed", "status", "id",
)  # fmt: skip
_DRAWN = 400  # runs that a figure of a sweep shows at most


@dataclass(frozen=True)
class Sweep:
    """The runs of a command.

    Attributes:
        mark: eight digits, the name of its plan.
        group: the name of the group that its entries have.
        command: the command.
        folders: run folders, there or not.
    """

    mark: str
    group: str
    command: str
    folders: tuple[Path, ...]

    @property
    def id(self) -> str:
        """The id of the entry of the sweep."""
        return f"sweep-{self.mark}"


def sweeps_of(outputs: Path) -> dict[Path, Sweep]:
    """Return run folder -> the sweep that it belongs to.

    A run of several commands belongs to the one with the most runs, then to the oldest: later commands of the same
    size do not move it. Plans that cannot be read are left out.
    """
    plans: list[Plan] = []
    for file in sorted((outputs / "plans").glob("*.json")):
        try:
            plan = read_plan(file)
        except (ValueError, OSError):
            continue
        if plan is not None:
            plans.append(plan)
    belongs: dict[Path, Sweep] = {}
    for plan in sorted(plans, key=lambda plan: (-len(plan.runs), plan.created, plan.path.name)):
        sweep = Sweep(plan.path.stem, _group(plan), plan.command, tuple(plan.runs))
        for folder in sweep.folders:
            belongs.setdefault(folder, sweep)
    return belongs


def _group(plan: Plan) -> str:
    """Return a name for people: that of the experiment, or of the benchmarks, with the mark of the plan."""
    try:
        words = shlex.split(plan.command)
    except ValueError:
        words = []
    experiment = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), "")
    benchmarks = sorted({folder.parent.parent.name for folder in plan.runs})
    named = experiment or "+".join(benchmarks)
    named = named if len(named) <= 40 else f"{len(benchmarks)}-benchmarks"
    return f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', named) or 'runs'}-{plan.path.stem}"


def about(sweep: Sweep, tags: Sequence[str], group: str | None) -> About:
    """Return how the entry of a sweep is announced."""
    config = {"command": sweep.command, "runs": len(sweep.folders)}
    return About(sweep.id, f"{sweep.group} (all)", group or sweep.group, "sweep", ["sweep", *tags], config)


def content(entries: Sequence[tuple[Entry, Mapping[str, Value]]], media: Path) -> Content:
    """Return the table of a sweep's entries with their summaries, how many ended well, and its figures.

    Raises:
        OSError: `media` cannot be written.
    """
    summaries = [summary for _, summary in entries]
    done = sum(summary.get("status") in ("done", "partial") for summary in summaries)
    totals = {key: sum(_number(summary.get(key)) for summary in summaries) for key in ("recorded", "oom", "failed")}
    folders = [folder for entry, _ in entries for folder in entry.folders]
    return Content(
        summary={"entries": len(entries), "entries_done": done, **totals},
        tables={"results": results(entries)},
        images=pictures(lambda: _images(folders, media)) if len(folders) <= _DRAWN else {},
        failed=done < len(entries),
    )


def results(entries: Sequence[tuple[Entry, Mapping[str, Value]]]) -> Table:
    """Return a row per entry: what it is, its scores by dataset, what it kept, its times and its counts."""
    scores = sorted({key for _, summary in entries for key in summary if re.match(r"score/|scores/|category/", key)})
    columns = [*_FIRST, *scores, *_LAST]
    rows: list[list[Value]] = []
    for entry, summary in entries:
        label = entry.manifest["label"]
        names = {key: label[key] for key in ("model", "method", "budget")}
        cells: dict[str, Value] = {**summary, **names, "benchmark": entry.benchmark, "id": entry.id}
        rows.append([cells.get(column) for column in columns])
    return Table(columns, rows)


def _number(value: Value) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _images(folders: Iterable[Path], media: Path) -> dict[str, Path]:
    """Draw what compares the runs of a sweep, as `kvbench report` draws it, for each table that they share."""
    from kvbench.report.figures.draw import draw
    from kvbench.report.figures.shown import Shown
    from kvbench.report.runs import groups
    from kvbench.report.suite import suite_table
    from kvbench.report.suite_groups import suite_groups

    runs = _slim_runs(folders)
    single = groups([run for run in runs if run.manifest["part"] is None and run.answered])
    suites = suite_groups([run for run in runs if run.manifest["part"] is not None and run.answered])
    shown = [(group, None) for group in single] + [(group, suite_table(group)) for group in suites]
    images: dict[str, Path] = {}
    for number, (group, table) in enumerate(shown):
        label = group[0].manifest["label"]
        heading = table["suite"] if table is not None else label["benchmark"]
        folder = media / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        own = {run.path.name for run in group}  # each has its heatmap in its own entry
        for path in draw(Shown(group, table, heading, label["model"], folder)):
            if path.stem not in own:
                images[_free(f"{heading}/{path.stem}", images)] = path
    return images


def _slim_runs(folders: Iterable[Path]) -> list[StoredRun]:
    runs = []
    for folder in folders:
        try:
            runs.append(load_run(folder, bulky=False))
        except ValueError:  # the warning came when its own entry was written
            continue
    return runs


def _free(key: str, taken: Mapping[str, object]) -> str:
    """Return a key that is not taken yet: settings that cannot share a figure may have one name."""
    key, number = one_line(key), 2
    free = key
    while free in taken:
        free, number = f"{key}-{number}", number + 1
    return free
