"""What a user sees: a table of the cells asked for on the console, of all cells of the folder on disk, and a figure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.common.files import write_atomic
from kvbench.profile.figure import draw
from kvbench.profile.table import LEGEND, cells, rows
from kvbench.report.formats import csv_text, latex, markdown

if TYPE_CHECKING:
    from kvbench.profile.run import Measured

_GIB = 2**30


def present(measured: Sequence[Measured], form: str = "table") -> None:
    """Print what was asked for, in one of `kvbench.report.formats.FORMATS`; write tables and figure of every folder."""
    shown = [(one, rows(one.asked)) for one in measured if one.asked]
    if form == "json":
        print(json.dumps([_content(one.setting, made) for one, made in shown], indent=2))
    elif form == "csv":
        print(csv_text([{"model": one.setting["model"]["name"], **row} for one, made in shown for row in made]), end="")
    elif form == "latex":
        for one, made in shown:
            print(
                f"% {heading(one.setting)}, {details(one.setting, one.asked)}\n{latex([cells(row) for row in made])}\n"
            )
    else:
        for one, made in shown:
            print(f"## {heading(one.setting)}\n\n{details(one.setting, one.asked)}\n")
            print(markdown([cells(row) for row in made], narrow=True) + "\n")
        for legend in dict.fromkeys(LEGEND.format(memory=one.asked[0]["memory"]) for one, _ in shown):
            print(legend)
    for one, _ in shown:
        write(one.folder, one.setting, one.all)
        print(f"Tables and figure: {one.folder}", file=sys.stdout if form == "table" else sys.stderr)


def write(folder: Path, setting: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """table.md, table.csv, table.json and latency_memory.png of all cells of a folder."""
    made = rows(records)
    lead, below = heading(setting), details(setting, records)
    legend = LEGEND.format(memory=records[0]["memory"])
    text = "\n\n".join([f"## {lead}", below, markdown([cells(row) for row in made]), legend])
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.csv", csv_text(made))
    write_atomic(folder / "table.json", json.dumps(_content(setting, made), indent=2) + "\n")
    on_cpu = setting["device"]["type"] == "cpu"
    draw(made, lead, below, folder / "latency_memory.png", beside_weights=on_cpu)


def heading(setting: Mapping[str, Any]) -> str:
    """Model and device in words."""
    device = setting["device"]
    threads = f", {device['threads']} thread(s)" if device["type"] == "cpu" else ""
    return f"{setting['model']['name']}, {setting['model']['dtype']} on {device['name']}{threads}"


def details(setting: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """What else one must know to read the numbers."""
    shape, profile = setting["shape"], setting["profile"]
    copies = _range([record["bandwidth"] / 1e9 for record in records], "{:.0f}")
    random = "random weights, " if setting["model"]["weights"].startswith("random:") else ""
    load = ""
    if setting["device"]["type"] == "cpu":  # what others did meanwhile is in these times, too
        load = f"; load average {_range([record['load'] for record in records], '{:.1f}')}"
    return (
        f"{random}{shape['layers']} layers, {shape['heads']}/{shape['kv_heads']} heads of {shape['head_dim']}, "
        f"{shape['weight_bytes'] / _GIB:.2f} GiB of weights; {profile['new_tokens']} new tokens; "
        f"copies {copies} GB/s; torch {setting['versions']['torch']}{load}"
    )


def _range(values: Sequence[float], form: str) -> str:
    """The least and the greatest; one number where they look alike."""
    return " to ".join(dict.fromkeys([form.format(min(values)), form.format(max(values))]))


def _content(setting: Mapping[str, Any], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"setting": dict(setting), "rows": [dict(row) for row in made]}
