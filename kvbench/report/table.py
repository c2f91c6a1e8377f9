"""Result tables: one row per method and budget, with the paired difference to the full cache.

Rows share a table only if benchmark, model, dtype, device and protocol are equal; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from kvbench.report.best import best_rows
from kvbench.report.difference import ColumnScores, Difference, differences
from kvbench.report.formats import Cell, interval, is_within, number, percent
from kvbench.report.measured import count, hardware, mean_of, mean_score, mean_share, mebibytes, score_names, time_of
from kvbench.report.paired import matrix
from kvbench.report.runs import check_comparable, check_metric, is_full_cache, marked, names, order
from kvbench.report.suite_groups import row_key
from kvbench.store import RunNumbers, numbers_of
from kvbench.store.environment import is_mixed
from kvbench.store.numbers import ReadRun


class Row(TypedDict):
    """One run as plain numbers, None where nothing was measured.

    Attributes:
        key: equal for the same method and dials, budget, seed and backend.
        n, oom, failed: samples with an answer, out of memory, and with an output that was not finite.
        scores: mean by name, the metric that is shown first.
        difference: to the full cache, in the metric that is shown.
        best: it is significantly better than all other methods under its budget, in the metric that is shown.
        kept_tokens, kept_share: per KV head after compression; share of what was compressed.
        held_mib, held_share: what the cache holds in MiB, keys and values and what a store or a decode policy must know
            of each token; share of the full cache's keys and values.
        prefill_s, compress_s, ttft_s, tpot_s: seconds; None also where they are of different hardware.
        hardware: its name, or several; None where it is not recorded.
        mixed: computed with different versions or on different hardware.
    """

    key: str
    method: str
    budget: str
    status: str | None
    n: int
    oom: int
    failed: int
    num_samples: int
    scores: dict[str, float | None]
    difference: Difference | None
    best: bool
    kept_tokens: float | None
    kept_share: float | None
    held_mib: float | None
    held_share: float | None
    prefill_s: float | None
    compress_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    hardware: str | None
    mixed: bool


def table(read: Sequence[RunNumbers | ReadRun], metric: str | None = None) -> list[Row]:
    """Return one row per run, the full cache first. Means are over the samples that got an answer.

    Raises ValueError for runs that cannot be compared and for an unknown metric.
    """
    check_comparable(read)
    runs = sorted(map(numbers_of, read), key=order)
    metric = check_metric(runs, score_names(runs), metric)
    metrics = [metric, *(other for other in score_names(runs) if other != metric)]
    column = ColumnScores(runs[0].manifest["label"]["benchmark"], range(len(runs)), matrix(runs, metric), 1.0)
    rows = [_row(run, metrics, name) for run, name in zip(runs, names(runs), strict=True)]
    baseline = next((at for at, run in enumerate(runs) if is_full_cache(run.manifest)), None)
    if baseline is not None:
        for row, own in zip(rows, differences([column], {}, len(rows), baseline), strict=True):
            row["difference"] = own.get(column.name)
    by_budget: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        if at != baseline:
            by_budget.setdefault(row["budget"], []).append(at)
    shown = {column.name: [row["scores"].get(metric) for row in rows]}
    methods = [run.manifest["identity"]["method"] for run in runs]
    for at in best_rows([column], {}, shown, list(by_budget.values()), methods)[column.name]:
        rows[at]["best"] = True
    return rows


def _row(run: RunNumbers, metrics: Sequence[str], method: str) -> Row:
    return {
        "key": row_key(run),
        "method": method,
        "budget": run.manifest["label"]["budget"],
        "status": run.status.get("status"),
        "n": count([run], "ok"),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": run.manifest["num_samples"],
        "scores": {metric: mean_score(run, metric) for metric in metrics},
        "difference": None,
        "best": False,
        "kept_tokens": mean_of([run], "kept_mean"),
        "kept_share": mean_share([run], "kept_mean", "span"),
        "held_mib": mebibytes([run]),
        "held_share": mean_share([run], "held_bytes", "kv_bytes_full"),
        "prefill_s": time_of([run], "prefill_s"),
        "compress_s": time_of([run], "compress_s"),
        "ttft_s": time_of([run], "ttft_s"),
        "tpot_s": time_of([run], "tpot_s"),
        "hardware": hardware([run]),
        "mixed": is_mixed([run.manifest]),
    }


def cells(row: Row, with_hardware: bool = False) -> dict[str, str | Cell]:
    """Return a row of `table` in words, by column."""
    metric, *others = row["scores"] or ["score"]
    done = row["n"] + row["oom"] + row["failed"]
    lost = "".join(f" ({word} {n}/{done})" for word, n in (("oom", row["oom"]), ("failed", row["failed"])) if n)
    tpot_ms = None if row["tpot_s"] is None else 1000 * row["tpot_s"]
    return {
        "method": marked(row["method"], row["mixed"]),
        "budget": row["budget"],
        metric: _score(row, metric, lost),
        "Δ full [95%]": Cell(interval(row["difference"]), is_grey=is_within(row["difference"])),
        **{name: number(row["scores"][name], "{:.2f}") for name in others},
        "n": f"{done}" if done == row["num_samples"] else f"{done}/{row['num_samples']}",
        "kept/head": number(row["kept_tokens"], "{:.0f}") + percent(row["kept_share"]),
        "KV MiB": number(row["held_mib"], "{:.2f}") + percent(row["held_share"]),
        "prefill s": number(row["prefill_s"], "{:.2f}"),
        "compress s": number(row["compress_s"], "{:.3f}"),
        "TTFT s": number(row["ttft_s"], "{:.2f}"),
        "TPOT ms": number(tpot_ms, "{:.1f}"),
        **({"hardware": row["hardware"] or "–"} if with_hardware else {}),
    }


def _score(row: Row, metric: str, lost: str) -> Cell:
    text = number(row["scores"].get(metric), "{:.2f}") + lost
    return Cell(text, is_best=row["best"], is_grey=is_within(row["difference"]))
