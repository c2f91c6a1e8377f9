"""Result tables: one row per method and budget, with the paired difference to the full cache.

Rows share a table only if benchmark, model, dtype, device and protocol are equal; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, cast

import numpy as np

from kvbench.report.difference import Difference, paired_difference
from kvbench.report.formats import interval, number, percent
from kvbench.report.runs import (
    Run,
    answered,
    check_comparable,
    check_metric,
    count,
    is_full_cache,
    kept_share,
    name,
    order,
    score_names,
)
from kvbench.store import AnsweredRecord

_MIB = 2**20


class Row(TypedDict):
    """One run as plain numbers, None where nothing was measured.

    Attributes:
        n, oom, failed: samples with an answer, out of memory, and with an output that was not finite.
        scores: mean by name, the metric that is shown first.
        difference: to the full cache, in the metric that is shown.
        kept_tokens, kept_share: per KV head after compression; share of what was compressed.
        kv_mib, kv_share: stored keys and values in MiB; share of the full cache's.
    """

    method: str
    budget: str
    status: str | None
    n: int
    oom: int
    failed: int
    num_samples: int
    scores: dict[str, float | None]
    difference: Difference | None
    kept_tokens: float | None
    kept_share: float | None
    kv_mib: float | None
    kv_share: float | None
    prefill_s: float | None
    compress_s: float | None
    ttft_s: float | None
    tpot_s: float | None


def table(runs: Sequence[Run], metric: str | None = None) -> list[Row]:
    """Return one row per run, the full cache first. Means are over the samples that got an answer.

    Raises ValueError for runs that cannot be compared and for an unknown metric.
    """
    check_comparable(runs)
    metric = check_metric(runs, metric)
    runs = sorted(runs, key=order)
    names = [metric, *(other for other in score_names(runs) if other != metric)]
    baseline = next((run for run in runs if is_full_cache(run.manifest)), None)
    return [_row(run, names, baseline if baseline is not run else None, name(run, runs)) for run in runs]


def _row(run: Run, names: Sequence[str], baseline: Run | None, method: str) -> Row:
    samples = answered(run)

    def mean(read: Callable[[AnsweredRecord], float | None]) -> float | None:
        values = [value for value in map(read, samples) if value is not None]
        return float(np.mean(values)) if values else None

    def score(which: str) -> float | None:
        return mean(lambda sample: sample["scores"].get(which))

    def timing(which: str) -> float | None:
        return mean(lambda sample: cast(Mapping[str, float | None], sample["timings"]).get(which))

    return {
        "method": method,
        "budget": run.manifest["label"]["budget"],
        "status": run.status.get("status"),
        "n": len(samples),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
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


def cells(row: Row) -> dict[str, str]:
    """Return a row of `table` in words, by column."""
    metric, *others = row["scores"] or ["score"]
    done = row["n"] + row["oom"] + row["failed"]
    lost = "".join(f" ({word} {n}/{done})" for word, n in (("oom", row["oom"]), ("failed", row["failed"])) if n)
    tpot_ms = None if row["tpot_s"] is None else 1000 * row["tpot_s"]
    return {
        "method": row["method"],
        "budget": row["budget"],
        metric: number(row["scores"].get(metric), "{:.2f}") + lost,
        "Δ full [95%]": interval(row["difference"]),
        **{name: number(row["scores"][name], "{:.2f}") for name in others},
        "n": f"{done}" if done == row["num_samples"] else f"{done}/{row['num_samples']}",
        "kept/head": number(row["kept_tokens"], "{:.0f}") + percent(row["kept_share"]),
        "KV MiB": number(row["kv_mib"], "{:.2f}") + percent(row["kv_share"]),
        "prefill s": number(row["prefill_s"], "{:.2f}"),
        "compress s": number(row["compress_s"], "{:.3f}"),
        "TTFT s": number(row["ttft_s"], "{:.2f}"),
        "TPOT ms": number(tpot_ms, "{:.1f}"),
    }
