"""Show runs: a table per group of comparable runs on the console, the same and heatmaps in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from kvbench.report.heatmap import has_grid, heatmap, heatmap_grid
from kvbench.report.runs import groups, setting
from kvbench.report.table import markdown, table
from kvbench.store import StoredRun

_LEGEND = """\
Means over the samples that got an answer; oom counts those that ran out of memory. Δ full: mean difference to
the full cache over common samples, with its 95% bootstrap interval; n.s.: the interval holds 0 or is unknown.
kept/head: measured tokens per KV head after prefill (share of the prompt). KV: their bytes (share of full).
"""


def present(runs: Sequence[StoredRun], out: Path | None, metric: str | None = None) -> None:
    """Print a table per group of comparable runs, and write it to `out` with the heatmaps of the group."""
    texts, tables, overviews = [], [], []
    for group in groups(runs):
        rows = table(group, metric)
        name = _name(group)
        texts.append(f"## {name}\n\n{markdown(rows)}\n")
        print(texts[-1])
        tables.append({"name": name, "setting": setting(group[0]), "rows": rows})
        if out:
            overviews += _heatmaps(group, metric, out / "heatmaps")
    print(_LEGEND)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text("\n".join([*texts, _LEGEND]), encoding="utf-8")
        (out / "table.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
        print(f"Table: {out / 'table.md'}")
        for overview in overviews:
            print(f"Heatmaps: {overview}")


def _heatmaps(group: Sequence[StoredRun], metric: str | None, folder: Path) -> list[Path]:
    """One picture per run and an overview, which is returned; nothing for benchmarks without length and depth."""
    drawable = [run for run in group if has_grid(run)]
    label = group[0].manifest["label"]
    folder = folder / f"{label['benchmark']}-{label['model']}-{_fingerprint(group[0])}"
    for run in drawable:
        heatmap(run, folder / f"{run.path.name}.png", metric)
    return [heatmap_grid(drawable, folder / "overview.png", metric)] if drawable else []


def _name(group: Sequence[StoredRun]) -> str:
    """Benchmark, model, dtype and device in words; the fingerprint tells protocols apart that read alike."""
    shared = setting(group[0])
    words = [shared["benchmark"], shared["model"][0], shared["dtype"], shared["device"]]
    if "question" in shared["protocol"]:
        words.append(f"question-{shared['protocol']['question']}")
    return f"{', '.join(words)} (protocol {_fingerprint(group[0])})"


def _fingerprint(run: StoredRun) -> str:
    return hashlib.sha256(json.dumps(setting(run), sort_keys=True).encode()).hexdigest()[:8]
