"""One axis of resident bytes: eviction and quantisation in one table, sorted by what the stored cache takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from kvbench.report.formats import Cells
from kvbench.report.suite import SuiteRow
from kvbench.report.table import Row

_BYTES = "KV MiB"


def bytes_order(row: Row | SuiteRow) -> tuple[bool, float, str, str]:
    """Return the sort key of a row: the fewest bytes first, rows without a measurement last."""
    held = row["kv_mib"]
    return held is None, held or 0.0, row["method"], row["budget"]


def with_front(rows: Sequence[Cells], scores: Sequence[float | None]) -> list[Cells]:
    """Return rows, sorted by bytes, with the bytes next to the budget and a dot where a row is on the front.

    A row is on the front if no row of fewer or as many bytes scores higher.
    """
    best: float | None = None
    result: list[Cells] = []
    sizes = [row[_BYTES] for row in rows]
    for at, (row, score) in enumerate(zip(rows, scores, strict=True)):
        same = [other for other, size in zip(scores, sizes, strict=True) if size == sizes[at] and other is not None]
        is_front = score is not None and (best is None or score > best) and score >= max(same)
        best = score if best is None or (score is not None and score > best) else best
        head = {"method": row["method"], "budget": row["budget"], _BYTES: row[_BYTES], "front": "●" if is_front else ""}
        result.append(cast(Cells, head | {name: row[name] for name in row if name not in head}))
    return result
