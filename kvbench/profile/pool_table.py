"""Rows of the pool's table: throughput, and ratios to the full cache in the same pool and to one with all memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvbench.profile.crossover import MEMORY, RATES, rate_of, size
from kvbench.profile.record import CellRecord
from kvbench.profile.table import PLAIN, named, short
from kvbench.report.formats import Cells, number

_GIB = 2**30
LEGEND = """\
pool: slots for tokens in each layer, and their bytes in all layers of a full cache. rows: as many as fit into the pool
with what they keep of a prompt and with their whole answers; * marks the limit profile.max_rows. "memory" is the
unconstrained full cache, with as many rows as the memory allows. The constrained one has the same pool as the method.
decode: tokens per second of all rows together. request: new tokens per second of whole requests, which is rows ×
new tokens / (rows × (prefill + compression) + decoding). Prompts are random ids, and rows beyond the first of a
prompt are copies, but each row counts a prefill of its own. peak: the most memory {memory}.
oom: out of memory, or not tried because of an estimate. no room: not even one row fits.
"""


def rows(records: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """Return rows of plain, JSON-able numbers, None where nothing was measured.

    They are sorted by context, kernel and pool, the unconstrained full cache last, the full cache before the methods.
    """
    names = named(records)
    plain = [_row(record, names[record["id"]]) for record in records]
    full = {
        (row["context"], row["kernel"], row["pool"], rate): rate_of(row, rate)
        for row in plain
        for rate in RATES
        if row["full_cache"]
    }
    for row in plain:
        place = row["context"], row["kernel"]
        for rate in RATES:
            value = rate_of(row, rate)
            of_pool, of_memory = full.get((*place, row["pool"], rate)), full.get((*place, MEMORY, rate))
            is_memory = row["pool"] == MEMORY
            row[f"{_SHORT[rate]}_of_constrained"] = None if is_memory else _ratio(value, of_pool)
            row[f"{_SHORT[rate]}_of_unconstrained"] = _ratio(value, of_memory)
    return sorted(plain, key=_place)


_SHORT = {"tokens_per_s": "decode", "request_tokens_per_s": "request"}


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    is_memory = row["pool"] == MEMORY
    return row["context"], row["kernel"], is_memory, 0 if is_memory else row["pool"], not row["full_cache"]


def _row(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    of_row, pool = record["row_tokens"], record["pool"]
    tokens = record["batch"] * of_row if pool == MEMORY else pool
    return {
        "name": name,
        "budget": "full" if record["budget"] is None else str(record["budget"]),
        "context": record["context"],
        "kernel": record["kernel"],
        "full_cache": record["full_cache"],
        "pool": pool,
        "pool_tokens": tokens,
        "pool_bytes": tokens * record["token_bytes"],
        "batch": record["batch"],
        "row_tokens": of_row,
        "capped": record["capped"],
        "request_tokens_per_s": record.get("request_tokens_per_s"),
        **{key: record.get(key) for key in PLAIN},
        "device": record["device"]["name"],
    }


def _ratio(value: float | None, full: float | None) -> float | None:
    return value / full if value is not None and full else None


def cells(row: Mapping[str, Any]) -> Cells:
    """Return a row as text, by column."""
    measured = row["status"] == "ok"
    count = f"{row['batch']}*" if row["capped"] else str(row["batch"])
    added = "" if row["peak_bytes"] is None else f" (+{(row['peak_bytes'] - row['base_bytes']) / _GIB:.2f})"
    status = {"oom": "oom", "no_room": "no room"}.get(row["status"], "")
    return {
        "context": str(row["context"]),
        "kernel": row["kernel"],
        "pool": "memory" if row["pool"] == MEMORY else size(row["pool"]),
        "pool GiB": number(row["pool_bytes"] / _GIB, "{:.3g}"),
        "method": row["name"],
        "budget": row["budget"],
        "rows": count,
        "TPOT ms": short(row["tpot_s"] and 1000 * row["tpot_s"]),
        "decode tok/s": short(row["tokens_per_s"]) if measured else status,
        "decode ×constrained": number(row["decode_of_constrained"], "{:.2f}"),
        "decode ×unconstrained": number(row["decode_of_unconstrained"], "{:.2f}"),
        "request tok/s": short(row["request_tokens_per_s"]),
        "request ×constrained": number(row["request_of_constrained"], "{:.2f}"),
        "request ×unconstrained": number(row["request_of_unconstrained"], "{:.2f}"),
        "prefill s": short(row["prefill_s"]),
        "peak GiB": number(row["peak_bytes"] and row["peak_bytes"] / _GIB, "{:.2f}") + added,
    }
