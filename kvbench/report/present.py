"""Show runs: a table per group of comparable runs on the console, the same and heatmaps in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from kvbench.report.heatmap import has_grid, heatmap, heatmap_grid
from kvbench.report.runs import groups, setting
from kvbench.report.table import BASELINE, markdown, table
from kvbench.store import StoredRun

_LEGEND = """\
Means over the samples that got an answer; oom counts those that ran out of memory. Δ full: mean difference to
the full cache over common samples, with its 95% bootstrap interval; n.s.: the interval holds 0 or is unknown.
kept/head: measured tokens per KV head after compression (share of what was compressed). KV: their bytes (share of
full). Times are those of the batch that a row ran in: rows that share a prefill share its times.
"""


def present(
    runs: Sequence[StoredRun], out: Path | None, metric: str | None = None, beside: Sequence[StoredRun] = ()
) -> None:
    """Print a table per group of comparable runs, and write tables and heatmaps to a folder of `out` per group.

    What is written covers also the comparable runs `beside`, so that it grows with the store; of these the full
    cache is printed, too, as the baseline.
    """
    folders = []
    for group in groups(runs):
        shown = {run.manifest["hash"] for run in group}
        related = [r for r in beside if setting(r) == setting(group[0]) and r.manifest["hash"] not in shown]
        baseline = [r for r in related if r.manifest["label"]["method"] == BASELINE]
        print(f"## {_name(group)}\n\n{markdown(table([*group, *baseline], metric))}\n")
        if out:
            folders.append(_write([*group, *related], metric, out))
    print(_LEGEND)
    for folder in folders:
        print(f"Tables and heatmaps: {folder}")


def _write(runs: Sequence[StoredRun], metric: str | None, out: Path) -> Path:
    """Tables of the runs, a heatmap each where there is a grid, and all in one overview."""
    label = runs[0].manifest["label"]
    folder = out / f"{label['benchmark']}-{label['model']}-{_fingerprint(runs[0])}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(runs, metric)
    text = f"## {_name(runs)}\n\n{markdown(rows)}\n\n{_LEGEND}"
    (folder / "table.md").write_text(text, encoding="utf-8")
    content = {"name": _name(runs), "setting": setting(runs[0]), "rows": rows}
    (folder / "table.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    drawable = [run for run in runs if has_grid(run)]
    for run in drawable:
        heatmap(run, folder / f"{run.path.name}.png", metric)
    if drawable:
        heatmap_grid(drawable, folder / "overview.png", metric)
    return folder


def _name(group: Sequence[StoredRun]) -> str:
    """Benchmark, model, dtype and device in words; the fingerprint tells protocols apart that read alike."""
    shared = setting(group[0])
    words = [shared["benchmark"], shared["model"][0], shared["dtype"], shared["device"]]
    if "question" in shared["protocol"]:
        words.append(f"question-{shared['protocol']['question']}")
    return f"{', '.join(words)} (protocol {_fingerprint(group[0])})"


def _fingerprint(run: StoredRun) -> str:
    return hashlib.sha256(json.dumps(setting(run), sort_keys=True).encode()).hexdigest()[:8]
