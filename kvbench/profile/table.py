"""Rows of the tables: a record's numbers, and ratios to the full cache at the same context, batch and kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvbench.profile.record import CellRecord
from kvbench.report.formats import Cells, number, percent

_MIB, _GIB = 2**20, 2**30
PLAIN = (
    "status", "prefill_s", "compress_s", "ttft_s", "tpot_s", "tpot_low_s", "tpot_high_s", "tpot_mean_s",
    "first_step_s", "steps_by_graph", "tokens_per_s", "kept_mean", "kv_bytes", "kv_slack_bytes", "kv_full_bytes",
    "weight_bytes", "step_bytes", "roofline_s", "base_bytes", "peak_bytes", "peak_prefill_bytes", "peak_decode_bytes",
    "reserved_bytes", "bandwidth", "commit", "error",
)  # fmt: skip
LEGEND = """\
Prompts are random ids, one prompt per row of the batch. prefill, compress and TTFT: seconds for one prompt (the engine
prefills one after the other), medians. TPOT: milliseconds of a step of the whole batch, median over the steps, with
the 10th and 90th percentile in brackets. tok/s: batch / TPOT. ×full: the full cache's TPOT divided by this TPOT, at
the same context, batch and kernel. ×roof: TPOT divided by the time of copying as many bytes as the step reads
(weights, kept keys and values) at the measured copy bandwidth. KV: bytes of the kept keys and values of all rows
(share of the full cache). peak: the most memory {memory}, prefill
included; + is its rise above the memory used before (the weights).
oom: out of memory, or not tried because of an estimate.
"""


def rows(records: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """Return rows of plain, JSON-able numbers, None where nothing was measured.

    They are sorted by context, batch and kernel, the full cache first. A method's name in a row contains the dials in
    which records of this method differ.
    """
    names = named(records)
    order = {record["id"]: place for place, record in enumerate(records)}
    ordered = sorted(records, key=lambda r: (*_point(r), not r["full_cache"], order[r["id"]]))
    full = {_point(record): record for record in reversed(ordered) if record["full_cache"]}
    return [_row(record, names[record["id"]], full.get(_point(record))) for record in ordered]


def _point(record: CellRecord) -> tuple[int, int, str]:
    return record["context"], record["batch"], record["kernel"]


def _row(record: Mapping[str, Any], name: str, full: Mapping[str, Any] | None) -> dict[str, Any]:
    def ratio(key: str, inverse: bool = False) -> float | None:
        value, of_full = record.get(key), (full or {}).get(key)
        if not value or not of_full:
            return None
        return float(of_full / value if inverse else value / of_full)

    head = {key: record[key] for key in ("context", "batch", "kernel", "full_cache")}
    budget = "full" if record["budget"] is None else str(record["budget"])
    return {
        "name": name,
        "budget": budget,
        **head,
        **{key: record.get(key) for key in PLAIN},
        "speedup": ratio("tpot_s", inverse=True),
        "peak_share": ratio("peak_bytes"),
        "kv_share": record["kv_bytes"] / record["kv_full_bytes"] if record.get("kv_full_bytes") else None,
        "times_roofline": record["tpot_s"] / record["roofline_s"] if record.get("roofline_s") else None,
        "device": record["device"]["name"],
    }


def named(records: Sequence[CellRecord]) -> dict[str, str]:
    """Return id → the method's name, with the dials in which methods of this name differ."""
    names = {}
    for record in records:
        alike = [other["dials"] for other in records if other["method"] == record["method"]]
        differing = [k for k in record["dials"] if any(dials.get(k) != record["dials"][k] for dials in alike)]
        names[record["id"]] = " ".join([record["method"], *(f"{k}={record['dials'][k]}" for k in differing)])
    return names


def cells(row: Mapping[str, Any]) -> Cells:
    """Return a row as text, by column."""
    oom = row["status"] == "oom"
    low, high = row["tpot_low_s"], row["tpot_high_s"]
    spread = "" if low is None else f" [{short(1000 * low)}, {short(1000 * high)}]"
    added = "" if row["peak_bytes"] is None else f" (+{(row['peak_bytes'] - row['base_bytes']) / _GIB:.2f})"
    return {
        "context": str(row["context"]),
        "batch": str(row["batch"]),
        "kernel": row["kernel"],
        "method": row["name"],
        "budget": row["budget"],
        "prefill s": "oom" if oom else short(row["prefill_s"]),
        "compress s": number(row["compress_s"], "{:.3f}"),
        "TTFT s": short(row["ttft_s"]),
        "TPOT ms": short(row["tpot_s"] and 1000 * row["tpot_s"]) + spread,
        "tok/s": short(row["tokens_per_s"]),
        "×full": number(row["speedup"], "{:.2f}"),
        "×roof": number(row["times_roofline"], "{:.2f}"),
        "KV MiB": short(row["kv_bytes"] and row["kv_bytes"] / _MIB) + percent(row["kv_share"]),
        "peak GiB": number(row["peak_bytes"] and row["peak_bytes"] / _GIB, "{:.2f}") + added,
    }


def short(value: float | None) -> str:
    """Return three digits without an exponent; a dash if nothing was measured."""
    return number(value, "{:.3g}" if value is None or value < 100 else "{:.0f}")
