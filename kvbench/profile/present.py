"""Output: the cells of this command on the console; tables of all cells and a figure in their folder."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.command import say
from kvbench.common.files import write_atomic
from kvbench.profile import crossover, figure, pool_figure, pool_table, table
from kvbench.profile.record import CellRecord
from kvbench.report.formats import Cells, csv_text, markdown
from kvbench.report.latex import NEEDS, latex, latex_comment

if TYPE_CHECKING:
    from kvbench.profile.run import Measured

_GIB = 2**30


def present_cells(measured: Sequence[Measured], form: str = "table") -> None:
    """Write tables and figure of every folder; print this command's cells in one of `report.formats.FORMATS`."""
    shown = [(group, _table(group.setting, group.asked)) for group in measured if group.asked]
    for group, _ in shown:  # first: nothing is lost if the reader of the output goes away
        write(group.folder, group.setting, group.all)
    if form == "json":
        print(json.dumps([_content(group.setting, table) for group, table in shown], indent=2))
    elif form == "csv":
        lines = [{"model": group.setting["model"]["name"], **row} for group, table in shown for row in table.rows]
        print(csv_text(lines), end="")
    elif form == "latex":
        for group, table in shown:
            lead = "\n".join(f"% {line}" for line in table.notes)
            lead = f"% {heading(group.setting)}, {details(group.setting, group.asked)}" + (f"\n{lead}" if lead else "")
            print(f"{lead}\n{latex_comment(NEEDS)}\n{latex(table.cells)}\n")
    else:
        for group, table in shown:
            print(f"## {heading(group.setting)}\n\n{details(group.setting, group.asked)}\n")
            print(markdown(table.cells, narrow=True) + "\n")
            print("".join(f"{line}\n" for line in [*table.notes, ""] if table.notes), end="")
        for legend in dict.fromkeys(table.legend for _, table in shown):
            print(legend)
    for group, _ in shown:
        print(f"Tables and figure: {group.folder}", file=sys.stdout if form == "table" else sys.stderr)


@dataclass(frozen=True)
class _Table:
    """A table of cells: numbers, texts, the lines below it, and the legend. `comparisons` is None without pools."""

    rows: list[dict[str, Any]]
    cells: list[Cells]
    notes: list[str]
    comparisons: list[crossover.Crossover] | None
    legend: str


def _table(setting: Mapping[str, Any], records: Sequence[CellRecord]) -> _Table:
    memory = records[0]["memory"]
    if not _is_of_pools(setting):
        rows = table.rows(records)
        return _Table(rows, [table.cells(row) for row in rows], [], None, table.LEGEND.format(memory=memory))
    rows = pool_table.rows(records)
    comparisons, texts = crossover.crossovers(rows), [pool_table.cells(row) for row in rows]
    notes = crossover.lines(comparisons, rows)
    if any(row["capped"] for row in rows):
        limit = setting["profile"]["max_rows"]
        notes.append(f"* profile.max_rows={limit} allows no more rows; raise it to fill these pools.")
    return _Table(rows, texts, notes, comparisons, pool_table.LEGEND.format(memory=memory))


def _is_of_pools(setting: Mapping[str, Any]) -> bool:
    return "max_rows" in setting["profile"]


def write(folder: Path, setting: Mapping[str, Any], records: Sequence[CellRecord]) -> None:
    """Write table.md, table.csv, table.json and a figure of all cells: latency_memory.png, or pool.png for pools."""
    shown = _table(setting, records)
    lead, below = heading(setting), details(setting, records)
    notes = ["\n".join(f"- {line}" for line in shown.notes)] if shown.notes else []
    text = "\n\n".join([f"## {lead}", below, markdown(shown.cells), *notes, shown.legend])
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.csv", csv_text(shown.rows))
    write_atomic(folder / "table.json", json.dumps(_content(setting, shown), indent=2) + "\n")
    if importlib.util.find_spec("matplotlib") is None:  # a rented machine may lack it; the tables are what counts
        say("no figure is drawn without matplotlib: pip install matplotlib")
    elif _is_of_pools(setting):
        pool_figure.draw(shown.rows, lead, below, folder / "pool.png")
    else:
        on_cpu = setting["device"]["type"] == "cpu"
        figure.draw(shown.rows, lead, below, folder / "latency_memory.png", without_base=on_cpu)


def heading(setting: Mapping[str, Any]) -> str:
    """Return model and device in words."""
    device = setting["device"]
    threads = f", {device['threads']} thread{'s' if device['threads'] != 1 else ''}" if device["type"] == "cpu" else ""
    return f"{setting['model']['name']}, {setting['model']['dtype']} on {device['name']}{threads}"


def details(setting: Mapping[str, Any], records: Sequence[CellRecord]) -> str:
    """Return what else a reader of the numbers needs to know."""
    shape, profile = setting["shape"], setting["profile"]
    copies = _range([record["bandwidth"] / 1e9 for record in records], "{:.0f}")
    random = "random weights, " if setting["model"]["weights"].startswith("random:") else ""
    load = ""
    if setting["device"]["type"] == "cpu":  # other processes may have slowed it down
        load = f"; load average {_range([record['load'] for record in records], '{:.1f}')}"
    return (
        f"{random}{shape['layers']} layers, {shape['heads']}/{shape['kv_heads']} heads of {shape['head_dim']}, "
        f"{shape['weight_bytes'] / _GIB:.2f} GiB of weights; {profile['new_tokens']} new tokens; "
        f"copies {copies} GB/s; torch {setting['versions']['torch']}{load}"
    )


def _range(values: Sequence[float], form: str) -> str:
    """Return the smallest and the largest value; one number if they look alike."""
    return " to ".join(dict.fromkeys([form.format(min(values)), form.format(max(values))]))


def _content(setting: Mapping[str, Any], shown: _Table) -> dict[str, Any]:
    content = {"setting": dict(setting), "rows": [dict(row) for row in shown.rows]}
    return (
        content if shown.comparisons is None else content | {"crossovers": [asdict(line) for line in shown.comparisons]}
    )
