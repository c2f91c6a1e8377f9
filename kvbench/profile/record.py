"""The types of a measured cell's record. Records are checked against them when they are read."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict, get_origin, get_type_hints

from kvbench.store.schema import Amount, Count, Positive
from kvbench.store.validate import Range

Seconds = Annotated[float, Range(0, 1e9)]


class Device(TypedDict):
    """The measured device."""

    type: Literal["cpu", "cuda"]
    name: str


class CellRecord(TypedDict):
    """One line of cells.jsonl: the cell, how it was measured, and, if its status is ok, the numbers.

    Times are in seconds, memory in bytes, bandwidth in bytes per second. `full_cache` marks the cells that ratios
    refer to. Cells of a pool have its size, and the rows that fit into it as `batch`: 0 with the status
    no_room.
    """

    id: str
    method: str
    dials: dict[str, object]
    budget: float | str | None
    context: Positive
    batch: Count
    kernel: str
    full_cache: bool
    device: Device
    memory: str
    commit: str | None
    bandwidth: Amount
    load: Amount
    status: Literal["ok", "oom", "no_room"]
    error: str | None
    prefill_s: NotRequired[Seconds]
    compress_s: NotRequired[Seconds]
    ttft_s: NotRequired[Seconds]
    tpot_s: NotRequired[Seconds]
    tpot_low_s: NotRequired[Seconds | None]
    tpot_high_s: NotRequired[Seconds | None]
    tpot_mean_s: NotRequired[Seconds]
    first_step_s: NotRequired[Seconds | None]
    steps: NotRequired[Count]
    steps_by_graph: NotRequired[Amount]
    decode_step: NotRequired[Literal["fused", "transformers"]]
    tokens_per_s: NotRequired[Amount]
    kept_mean: NotRequired[Amount]
    kv_bytes: NotRequired[Count]
    kv_slack_bytes: NotRequired[Count]
    kv_full_bytes: NotRequired[Count]
    weight_bytes: NotRequired[Count]
    step_bytes: NotRequired[Count]
    roofline_s: NotRequired[Seconds]
    base_bytes: NotRequired[Count | None]
    peak_bytes: NotRequired[Count | None]
    peak_prefill_bytes: NotRequired[Count | None]
    peak_decode_bytes: NotRequired[Count | None]
    reserved_bytes: NotRequired[Count | None]
    pool: NotRequired[Positive | Literal["memory"]]
    row_tokens: NotRequired[Positive]
    token_bytes: NotRequired[Positive]
    capped: NotRequired[bool]
    request_tokens_per_s: NotRequired[Amount]


_OF_POOL = ("pool", "row_tokens", "token_bytes", "capped", "request_tokens_per_s")
# From the hints: with postponed annotations, a TypedDict itself does not know which keys are NotRequired.
MEASURED = tuple(
    name
    for name, kind in get_type_hints(CellRecord, include_extras=True).items()
    if get_origin(kind) is NotRequired and name not in _OF_POOL
)


def is_measured(record: CellRecord) -> bool:
    """Return True if a record has all numbers, as every record with the status ok must."""
    names = (*MEASURED, *(_OF_POOL if "pool" in record else ()))
    return all(name in record for name in names)
