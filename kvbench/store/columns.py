"""The numbers of a run as arrays, read by pyarrow: many times as fast as record by record, for reports on large stores.

Whatever is unusual in a file (a torn line, an id twice, a value of the wrong type) goes the slow way, through
`kvbench.store.read.load_run`, which decides about it and names the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from kvbench.store.files import read_bytes
from kvbench.store.places import fits
from kvbench.store.schema import HUGE, AnsweredRecord, Manifest, Record, held_bytes

if TYPE_CHECKING:
    import pyarrow as pa

STATES = ("ok", "oom", "failed")  # of a sample; `Columns.state` holds the position in this tuple
TIMINGS = ("prefill_s", "compress_s", "ttft_s", "tpot_s")
MEASURED = ("span", "kept_mean", "kv_bytes", "held_bytes", "kv_bytes_full", *TIMINGS)
_SCORES = re.compile(rb'"scores": ?\{([^{}]*)\}')
_KEY = re.compile(rb'"([\w.+ -]*)": ?[-0-9]')
_LIMIT = 1e15  # of a score


@dataclass(frozen=True)
class Columns:
    """The numbers of a run's samples, sorted by sample id.

    Attributes:
        ids: sample ids.
        state: [samples] uint8, position in `STATES`.
        scores: [samples] float64 by metric; NaN where a sample has none.
        measured: [samples] float64 by name, see `MEASURED`; NaN where a sample has none. `held_bytes` are `kv_bytes`
            where a record does not have them.
        context: the context of each sample, equal for questions on one context; "" where it is not stored.
        bucket: the length bucket of each sample; "" where it has none.
        length, depth: [samples] float64, the cell of a needle grid; NaN where a sample has none.
    """

    ids: tuple[str, ...]
    state: NDArray[np.uint8]
    scores: dict[str, NDArray[np.float64]]
    measured: dict[str, NDArray[np.float64]]
    context: tuple[str, ...]
    bucket: tuple[str, ...]
    length: NDArray[np.float64]
    depth: NDArray[np.float64]


def columns_of(records: Sequence[Record]) -> Columns:
    """Return the columns of records that were read one by one. They are sorted by id."""
    names = sorted({name for record in records if record["status"] == "ok" for name in _answer(record)["scores"]})
    nan = float("nan")
    scores = {name: [nan] * len(records) for name in names}
    measured = {name: [nan] * len(records) for name in MEASURED}
    for at, record in enumerate(records):
        if record["status"] != "ok":
            continue
        answer = _answer(record)
        for name, value in answer["scores"].items():
            scores[name][at] = value
        for name in MEASURED:
            value_of = cast(dict[str, float | None], answer["timings"] if name in TIMINGS else answer).get(name)
            measured[name][at] = nan if value_of is None else value_of
        measured["held_bytes"][at] = held_bytes(answer)
    return Columns(
        tuple(record["id"] for record in records),
        np.array([STATES.index(record["status"]) for record in records], dtype=np.uint8),
        {name: np.array(values, dtype=np.float64) for name, values in scores.items()},
        {name: np.array(values, dtype=np.float64) for name, values in measured.items()},
        tuple(_text(record.get("context")) for record in records),
        tuple(_text(record["meta"].get("bucket")) for record in records),
        *(np.array([_number(record["meta"].get(key)) for record in records]) for key in ("length", "depth")),
    )


def _answer(record: Record) -> AnsweredRecord:
    return cast(AnsweredRecord, record)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def read_columns(files: Sequence[Path], manifest: Manifest | None = None) -> Columns | None:
    """Return the columns of files of records.

    None where anything in them is unusual, such as another scoring, device or hardware than the manifest has.
    """
    import pyarrow as pa

    parts = [read_bytes(file) for file in files]
    data = b"".join(parts)
    if not data or any(part and not part.endswith(b"\n") for part in parts):
        return None
    if manifest is not None and not (_are_scored_by(manifest["scoring"], data) and fits(manifest, data)):
        return None
    texts = _SCORES.findall(data)
    joined = b", ".join(texts)
    keys = _KEY.findall(joined)
    if joined.count(b'"') != 2 * len(keys):  # a name or a value of another form
        return None
    names = sorted({key.decode() for key in keys})
    try:
        table = _parsed(data, names)
        return _checked(table, names, len(texts))
    except (pa.ArrowException, UnicodeDecodeError):  # the slow way finds the line
        return None


def _are_scored_by(scoring: Mapping[str, object], data: bytes) -> bool:
    """Return True if all records that name the rule of their scores name this one.

    No text of a record looks like the key, as quotes in a text have a backslash before them.
    """
    spaced, dense = json.dumps(scoring), json.dumps(scoring, separators=(",", ":"))
    forms = (f'"scoring": {spaced}', f'"scoring":{dense}')
    return data.count(b'"scoring":') == sum(data.count(form.encode()) for form in forms)


def _parsed(data: bytes, names: list[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    number, text = pa.float64(), pa.string()
    schema = pa.schema(
        [
            ("id", text),
            ("status", text),
            ("error", text),
            ("context", text),
            ("answers", pa.list_(text)),
            ("prediction", text),
            ("meta", pa.struct([("bucket", text), ("length", number), ("depth", number)])),
            ("scores", pa.struct([(name, number) for name in names])),
            ("span", pa.int64()),
            ("kept_mean", number),
            ("kv_bytes", pa.int64()),
            ("held_bytes", pa.int64()),
            ("kv_bytes_full", pa.int64()),
            ("timings", pa.struct([(name, number) for name in TIMINGS])),
        ]
    )
    return arrow_json.read_json(
        pa.BufferReader(data),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=max(len(data) + 1, 1 << 16)),
        parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    ).combine_chunks()


def _checked(table: pa.Table, names: list[str], texts: int) -> Columns | None:
    """Return the columns of a table, sorted by id; None unless all of it follows the types of `schema.py`."""
    ids, words = table["id"].to_pylist(), table["status"].to_pylist()
    if None in ids or len(set(ids)) < len(ids) or not set(words) <= set(STATES):
        return None
    if any(not 1 <= len(name) <= 512 for name in ids) or table["meta"].null_count:
        return None
    state = np.array([STATES.index(word) for word in words], dtype=np.uint8)
    answered = state == 0
    needed = ("scores", "timings", "answers", "prediction", "span", "kept_mean", "kv_bytes", "kv_bytes_full")
    for key in needed:
        if not table[key].is_valid().to_numpy()[answered].all():
            return None
    if texts != int(answered.sum()):  # scores in the text, and those of records
        return None
    scores = {name: _floats(_field(table, "scores", name)) for name in names}
    measured = {name: _floats(table[name]) for name in MEASURED if name not in TIMINGS}
    measured |= {name: _floats(_field(table, "timings", name)) for name in TIMINGS}
    low = {"span": 1, "kv_bytes_full": 1}
    for name, values in measured.items():
        if not _within(values, low.get(name, 0), HUGE):
            return None
        values[~answered] = np.nan
    held = measured["held_bytes"]
    measured["held_bytes"] = np.where(np.isnan(held), measured["kv_bytes"], held)
    for values in scores.values():
        if not _within(values, -_LIMIT, _LIMIT):
            return None
        values[~answered] = np.nan
    order = sorted(range(len(ids)), key=ids.__getitem__)
    context, bucket = table["context"].to_pylist(), _field(table, "meta", "bucket").to_pylist()
    return Columns(
        tuple(ids[at] for at in order),
        state[order],
        {name: values[order] for name, values in scores.items() if not np.isnan(values).all()},
        {name: values[order] for name, values in measured.items()},
        tuple(context[at] or "" for at in order),
        tuple(bucket[at] or "" for at in order),
        *(_floats(_field(table, "meta", key))[order] for key in ("length", "depth")),
    )


def _field(table: pa.Table, column: str, name: str) -> pa.Array:
    """Return a field of a struct column, null where the struct is."""
    import pyarrow.compute as pc

    chunk = table[column].combine_chunks()
    return pc.struct_field(chunk, name)


def _floats(values: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Return numbers as float64, NaN where there is none."""
    array = values.to_numpy(zero_copy_only=False) if hasattr(values, "type") else np.array(values)
    return np.array(array, dtype=np.float64)


def _within(values: NDArray[np.float64], low: float, high: float) -> bool:
    known = values[~np.isnan(values)]
    return not len(known) or (low <= float(known.min()) and float(known.max()) <= high)
