"""Samples as flat rows with fixed columns, and runs likewise: what the tables of the parquet export hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

from kvbench.common.kinds import is_integer, is_number
from kvbench.report.export.common import clean, json_text
from kvbench.store import StoredRun
from kvbench.store.columns import TIMINGS
from kvbench.store.environment import device_kind

_LARGEST = 2**63
Row = dict[str, object]


def _text(value: object) -> str | None:
    return clean(value) if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if is_integer(value) and abs(value) < _LARGEST else None


def _number(value: object) -> float | None:
    if not is_number(value):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _texts(value: object) -> list[str] | None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return [clean(item) for item in value]


def _integers(value: object) -> list[int] | None:
    return value if isinstance(value, list) and all(_integer(item) is not None for item in value) else None


def _lists(value: object) -> list[list[int]] | None:
    return value if isinstance(value, list) and all(_integers(item) is not None for item in value) else None


READ: dict[str, Callable[[object], object]] = {
    "text": _text, "integer": _integer, "number": _number, "texts": _texts, "integers": _integers, "lists": _lists,
    "json": json_text,
}  # fmt: skip

# Columns of a run that every one of its samples repeats.
SHARED = {
    "run": "text", "benchmark": "text", "suite": "text", "dataset": "text", "category": "text", "model": "text",
    "method": "text", "budget": "text", "seed": "integer", "dtype": "text", "backend": "text", "headline": "text",
    "device_kind": "text",
}  # fmt: skip
RUN = SHARED | {
    "status": "text", "num_samples": "integer", "num_recorded": "integer", "device": "text", "created": "text",
    "identity": "json", "scoring": "json", "versions": "json", "hardware": "json", "continued_with": "json",
}  # fmt: skip
# Keys of a record (kvbench/run/record.py). What is not listed, or has another type, is in the column `more`.
_RECORD = {
    "id": "text", "context": "text", "status": "text", "error": "text", "answers": "texts", "prediction": "text",
    "token_ids": "integers", "meta": "json", "prompt_tokens": "integer", "span": "integer", "new_tokens": "integer",
    "finish_reason": "text", "budget_tokens": "number", "budget_bytes": "integer", "promise": "text", "kept": "lists",
    "kept_mean": "number", "kept_max_decode": "integer", "read_max": "integer", "read_mean": "number",
    "held_bytes": "integer", "kv_bytes": "integer", "kv_bytes_full": "integer", "slack_bytes": "integer",
    "rows": "integer", "kernel": "text", "decode_step": "text", "fallback": "text", "device": "text",
    "hardware": "text", "time": "text",
}  # fmt: skip
SAMPLE = SHARED | {"score": "number", "scores": "json"} | _RECORD | dict.fromkeys(TIMINGS, "number") | {"more": "json"}


def run_row(run: StoredRun) -> Row:
    """Return a run as one row with the columns `RUN`."""
    manifest = run.manifest
    row = _shared(run) | {
        "status": run.status.get("status"),
        "num_samples": manifest["num_samples"],
        "num_recorded": len(run.samples),
        "device": manifest["device"],
        "created": manifest["created"],
        "identity": manifest["identity"],
        "scoring": manifest["scoring"],
        "versions": manifest["versions"],
        "hardware": manifest.get("hardware", {}),
        "continued_with": manifest.get("continued_with", []),
    }
    return {name: READ[kind](row[name]) for name, kind in RUN.items()}


def _shared(run: StoredRun) -> Row:
    label, identity, place = run.manifest["label"], run.manifest["identity"], run.manifest["part"]
    return {
        "run": run.manifest["hash"],
        **label,
        "suite": place["suite"] if place else None,
        "dataset": place["name"] if place else None,
        "category": place["category"] if place else None,
        "seed": identity["seed"],
        "dtype": identity["dtype"],
        "backend": identity["backend"],
        "headline": run.manifest["headline"],
        "device_kind": device_kind(run.manifest["device"]),
    }


def sample_rows(run: StoredRun) -> Iterator[Row]:
    """Yield the samples of a run as rows with the columns `SAMPLE`; None where a record has no value."""
    shared = _shared(run)
    head = {name: READ[kind](shared[name]) for name, kind in SHARED.items()}
    for sample in run.samples:
        record = cast(Mapping[str, object], sample)
        scores, timings = record.get("scores") or {}, record.get("timings") or {}
        assert isinstance(scores, Mapping) and isinstance(timings, Mapping)  # the store has checked them
        row = {name: READ[kind](record[name]) if name in record else None for name, kind in _RECORD.items()}
        more = {
            name: value
            for name, value in record.items()
            if name not in ("scores", "timings", "scoring") and value is not None and row.get(name) is None
        }
        yield {
            **head,
            "score": _number(scores.get(run.manifest["headline"])),
            "scores": json_text(scores) if scores else None,
            **row,
            **{name: _number(timings.get(name)) for name in TIMINGS},
            "more": json_text(more) if more else None,
        }
