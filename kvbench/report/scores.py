"""Scores in long form, for a spreadsheet or a data frame: one line per run and score, then one per average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvbench.report.difference import Difference
from kvbench.report.measured import count, hardware, mean_of, mean_score, mean_share, score_names, time_of
from kvbench.report.runs import dials, names, setting, table_mark
from kvbench.report.suite import SuiteTable
from kvbench.report.suite_groups import row_key
from kvbench.report.table import Row
from kvbench.store import RunNumbers
from kvbench.store.environment import is_mixed

Line = dict[str, str | int | float | bool | None]


_NOT_COMPARED: Line = dict.fromkeys(("delta", "delta_low", "delta_high", "significant", "best"))


def score_lines(
    runs: Sequence[RunNumbers], protocol: str, content: SuiteTable | Sequence[Row] | None = None
) -> list[Line]:
    """Return means in full precision, in [0, 1], None where nothing was answered. `protocol` is the table's mark.

    `content` is the table of these runs: then the lines have differences to the full cache, and a suite's averages
    have lines of their own.
    """
    compared = _comparisons(runs, content)
    named = zip(runs, _names(runs, content), strict=True)
    lines = [line for run, name in named for line in _lines(run, name, protocol, compared)]
    return lines + (_averages(runs, protocol, content) if isinstance(content, dict) else [])


def _names(runs: Sequence[RunNumbers], content: SuiteTable | Sequence[Row] | None) -> list[str]:
    """Return the name of each run as the table shows it; in a suite, that of its row."""
    if not isinstance(content, dict):
        return names(runs)
    rows = {row["key"]: row["method"] for row in content["rows"]}
    return [rows[row_key(run)] for run in runs]


def _head(run: RunNumbers, name: str, budget: str, protocol: str) -> Line:
    shared, place, label = setting(run.manifest), run.manifest["part"], run.manifest["label"]
    return {
        "benchmark": place["suite"] if place else label["benchmark"],
        "model": label["model"],
        "dtype": shared["dtype"],
        "device": shared["device"],
        "protocol": protocol,
        "method": name,
        "budget": budget,
    }


def _lines(run: RunNumbers, name: str, protocol: str, compared: Mapping[tuple[str, str, str], Line]) -> list[Line]:
    place, label = run.manifest["part"], run.manifest["label"]
    head = _head(run, name, label["budget"], protocol)
    head |= {"dataset": place["name"] if place else None, "category": place["category"] if place else None}
    tail: Line = {
        "n": count([run], "ok"),
        "oom": count([run], "oom"),
        "failed": count([run], "failed"),
        "num_samples": run.manifest["num_samples"],
        "kept_tokens": mean_of([run], "kept_mean"),
        "kept_share": mean_share([run], "kept_mean", "span"),
        **_bytes([run]),
        "ttft_s": time_of([run], "ttft_s"),
        "tpot_s": time_of([run], "tpot_s"),
        **_settings(run),
        "run": run.manifest["hash"],
        "hardware": hardware([run]),
        "mixed": is_mixed([run.manifest]),
    }
    lines: list[Line] = []
    for metric in score_names([run]) or [run.manifest["headline"]]:
        extra = compared.get((row_key(run), place["name"] if place else "", metric), _NOT_COMPARED)
        lines.append({**head, "metric": metric, "score": mean_score(run, metric), **extra, **tail})
    return lines


def _bytes(runs: Sequence[RunNumbers]) -> Line:
    """Return what stored keys and values take, and what the cache holds: also what must be known of each token."""
    return {
        "kv_bytes": mean_of(runs, "kv_bytes"),
        "kv_share": mean_share(runs, "kv_bytes", "kv_bytes_full"),
        "held_bytes": mean_of(runs, "held_bytes"),
        "held_share": mean_share(runs, "held_bytes", "kv_bytes_full"),
    }


def _settings(run: RunNumbers) -> Line:
    """Return what tells apart models of one name, and methods of one name."""
    return {
        "weights": table_mark(run.manifest["identity"]["model"]),
        "dials": " ".join(f"{key}={value}" for key, value in dials(run).items()),
    }


def _averages(runs: Sequence[RunNumbers], protocol: str, table: SuiteTable) -> list[Line]:
    """Return a line per row and average of a suite: "metric" names the average, "dataset" and "run" are None."""
    lines: list[Line] = []
    members: dict[str, list[RunNumbers]] = {}
    for run in runs:
        members.setdefault(row_key(run), []).append(run)
    for row in table["rows"]:
        run = members[row["key"]][0]
        shown: list[tuple[str, str, str | None, float | None]] = []
        for name, mean in row["means"].items():
            shown.append((f"means/{name}", name, None, mean["score"]))
        for name, macro in row["macros"].items():
            for of_category, cell in macro["categories"].items():
                shown.append(
                    (f"categories/{name}/{of_category}", f"{name} of one category", of_category, cell["score"])
                )
            shown.append((f"macros/{name}", name, None, macro["score"]))
        for key, metric, category, score in shown:
            lines.append(
                {
                    **_head(run, row["method"], row["budget"], protocol),
                    "dataset": None,
                    "category": category,
                    "metric": metric,
                    "score": None if score is None else round(score / 100, 6),
                    **_compared(row["differences"].get(key), key in row["best"], 100),
                    "n": row["n"],
                    "oom": row["oom"],
                    "failed": row["failed"],
                    "num_samples": row["num_samples"],
                    "kept_tokens": row["kept_tokens"],
                    "kept_share": row["kept_share"],
                    **_bytes(members[row["key"]]),
                    "ttft_s": row["ttft_s"],
                    "tpot_s": row["tpot_s"],
                    **_settings(run),
                    "run": None,
                    "hardware": row["hardware"],
                    "mixed": row["mixed"],
                }
            )
    return lines


def _comparisons(
    runs: Sequence[RunNumbers], content: SuiteTable | Sequence[Row] | None
) -> dict[tuple[str, str, str], Line]:
    """Return how runs compare, by row, dataset and metric."""
    if content is None:
        return {}
    if isinstance(content, dict):
        metrics = {column["name"]: column["metric"] for column in content["columns"]}
        return {
            (row["key"], name, metrics[name]): _compared(row["differences"].get(name), name in row["best"], 100)
            for row in content["rows"]
            for name in row["datasets"]
        }
    return {
        (row["key"], "", next(iter(row["scores"]), "")): _compared(row["difference"], row["best"], 1) for row in content
    }


def _compared(difference: Difference | None, best: bool, unit: int) -> Line:
    """Return how a score compares with others. Differences are in [-1, 1], as scores are in [0, 1]."""
    if difference is None:
        return {**_NOT_COMPARED, "best": best}
    low, high = difference["low"], difference["high"]
    return {
        "delta": round(difference["mean"] / unit, 12),
        "delta_low": None if low is None else round(low / unit, 12),
        "delta_high": None if high is None else round(high / unit, 12),
        "significant": difference["significant"],
        "best": best,
    }
