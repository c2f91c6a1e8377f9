"""Result tables: one row per method and budget, with the paired difference to the full cache.

Rows share a table only if benchmark, model, dtype, device and protocol are equal; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kvbench.report.runs import Run, answered, check_comparable, check_metric, kept_share, name, order, score_names

BASELINE = "fullkv"  # the method that differences refer to
_MIB = 2**20
_RESAMPLES = 10_000


def table(runs: Sequence[Run], metric: str | None = None) -> list[dict[str, Any]]:
    """Rows as plain numbers, JSON-able, None where nothing was measured; the full cache comes first.

    Means are over the samples that got an answer; `oom` counts the others. `difference` is the mean
    difference in `metric` to the full cache over the samples both answered, with its 95% interval.
    Raises ValueError for runs that cannot be compared and for an unknown metric.
    """
    check_comparable(runs)
    metric = check_metric(runs, metric)
    runs = sorted(runs, key=order)
    names = [metric, *(other for other in score_names(runs) if other != metric)]
    baseline = next((run for run in runs if run.manifest["label"]["method"] == BASELINE), None)
    return [_row(run, names, baseline if baseline is not run else None, name(run, runs)) for run in runs]


def _row(run: Run, names: Sequence[str], baseline: Run | None, method: str) -> dict[str, Any]:
    samples = answered(run)

    def mean(read: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        values = [value for value in map(read, samples) if value is not None]
        return float(np.mean(values)) if values else None

    def score(which: str) -> float | None:
        return mean(lambda sample: sample["scores"].get(which))

    def timing(which: str) -> float | None:
        return mean(lambda sample: sample["timings"].get(which))

    return {
        "method": method,
        "budget": run.manifest["label"]["budget"],
        "status": run.status.get("status"),
        "n": len(samples),
        "oom": len(run.samples) - len(samples),
        "num_samples": run.manifest["num_samples"],
        "scores": {which: score(which) for which in names},
        "difference": paired_difference(run, baseline, names[0]) if baseline and names else None,
        "kept_tokens": mean(lambda sample: sample["kept_mean"]),
        "kept_share": kept_share(run),
        "kv_mib": mean(lambda sample: sample["kv_bytes"] / _MIB),
        "kv_share": mean(lambda sample: sample["kv_bytes"] / sample["kv_bytes_full"]),
        "prefill_s": timing("prefill_s"),
        "compress_s": timing("compress_s"),
        "ttft_s": timing("ttft_s"),
        "tpot_s": timing("tpot_s"),
    }


def paired_difference(run: Run, baseline: Run, metric: str, seed: int = 0) -> dict[str, Any] | None:
    """Mean of (run - baseline) over common samples, with a 95% percentile bootstrap interval.

    `significant` says that the interval excludes 0. One common sample gives no interval; none gives None.
    """
    ours = {sample["id"]: sample["scores"][metric] for sample in answered(run)}
    theirs = {sample["id"]: sample["scores"][metric] for sample in answered(baseline)}
    deltas = np.array([ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())])
    if not len(deltas):
        return None
    result = {"mean": float(deltas.mean()), "low": None, "high": None, "n": len(deltas), "significant": False}
    if len(deltas) > 1:
        rng = np.random.default_rng(seed)
        # in pieces, so that thousands of samples do not make a matrix of gigabytes
        sizes = [(_RESAMPLES // 10, len(deltas))] * 10
        draws = np.concatenate([deltas[rng.integers(len(deltas), size=size)].mean(axis=1) for size in sizes])
        low, high = (float(value) for value in np.percentile(draws, [2.5, 97.5]))
        result |= {"low": low, "high": high, "significant": not low <= 0 <= high}
    return result


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `table` as a Markdown table."""
    from tabulate import tabulate

    cells = [_cells(row) for row in rows]
    align = ["left" if name in ("method", "budget") else "right" for name in cells[0]]
    return tabulate(cells, headers="keys", tablefmt="github", colalign=align, disable_numparse=True)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    metric, *others = row["scores"] or ["score"]
    done = row["n"] + row["oom"]
    oom = f" (oom {row['oom']}/{done})" if row["oom"] else ""
    return {
        "method": row["method"],
        "budget": row["budget"],
        metric: _number(row["scores"].get(metric), "{:.2f}") + oom,
        "Δ full [95%]": _difference(row["difference"]),
        **{name: _number(row["scores"][name], "{:.2f}") for name in others},
        "n": f"{done}" if done == row["num_samples"] else f"{done}/{row['num_samples']}",
        "kept/head": _number(row["kept_tokens"], "{:.0f}") + _percent(row["kept_share"]),
        "KV MiB": _number(row["kv_mib"], "{:.2f}") + _percent(row["kv_share"]),
        "prefill s": _number(row["prefill_s"], "{:.2f}"),
        "compress s": _number(row["compress_s"], "{:.3f}"),
        "TTFT s": _number(row["ttft_s"], "{:.2f}"),
        "TPOT ms": _number(row["tpot_s"] and 1000 * row["tpot_s"], "{:.1f}"),
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f}%)"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    text = f"{difference['mean']:+.2f}"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    return text if difference["significant"] else text + " n.s."
