"""Output: the cells of this command on the console; tables of all cells and a figure in their folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.files import write_atomic
from kvbench.profile.figure import draw
from kvbench.profile.record import CellRecord
from kvbench.profile.table import LEGEND, cells, rows
from kvbench.report.formats import csv_text, markdown
from kvbench.report.latex import NEEDS, latex, latex_comment

if TYPE_CHECKING:
    from kvbench.profile.run import Measured

_GIB = 2**30


def present_cells(measured: Sequence[Measured], form: str = "table") -> None:
    """Write tables and figure of every folder; print this command's cells in one of `report.formats.FORMATS`."""
    shown = [(group, rows(group.asked)) for group in measured if group.asked]
    for group, _ in shown:  # first: nothing is lost if the reader of the output goes away
        write(group.folder, group.setting, group.all)
    if form == "json":
        print(json.dumps([_content(group.setting, table) for group, table in shown], indent=2))
    elif form == "csv":
        lines = [{"model": group.setting["model"]["name"], **row} for group, table in shown for row in table]
        print(csv_text(lines), end="")
    elif form == "latex":
        for group, table in shown:
            lead = f"% {heading(group.setting)}, {details(group.setting, group.asked)}"
            print(f"{lead}\n{latex_comment(NEEDS)}\n{latex([cells(row) for row in table])}\n")
    else:
        for group, table in shown:
            print(f"## {heading(group.setting)}\n\n{details(group.setting, group.asked)}\n")
            print(markdown([cells(row) for row in table], narrow=True) + "\n")
        for legend in dict.fromkeys(LEGEND.format(memory=group.asked[0]["memory"]) for group, _ in shown):
            print(legend)
    for group, _ in shown:
        print(f"Tables and figure: {group.folder}", file=sys.stdout if form == "table" else sys.stderr)


def write(folder: Path, setting: Mapping[str, Any], records: Sequence[CellRecord]) -> None:
    """Write table.md, table.csv, table.json and latency_memory.png of all cells of a folder."""
    table = rows(records)
    lead, below = heading(setting), details(setting, records)
    legend = LEGEND.format(memory=records[0]["memory"])
    text = "\n\n".join([f"## {lead}", below, markdown([cells(row) for row in table]), legend])
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.csv", csv_text(table))
    write_atomic(folder / "table.json", json.dumps(_content(setting, table), indent=2) + "\n")
    on_cpu = setting["device"]["type"] == "cpu"
    draw(table, lead, below, folder / "latency_memory.png", without_base=on_cpu)


def heading(setting: Mapping[str, Any]) -> str:
    """Return model and device in words."""
    device = setting["device"]
    threads = f", {device['threads']} thread(s)" if device["type"] == "cpu" else ""
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


def _content(setting: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"setting": dict(setting), "rows": [dict(row) for row in table]}
