"""One axis of resident bytes: eviction and quantisation in one table, sorted by what the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import cast

from kvbench.report.formats import Cells
from kvbench.report.suite import SuiteRow
from kvbench.report.table import Row

_BYTES = "KV MiB"
_DIGITS = 9


def bytes_order(row: Row | SuiteRow) -> tuple[bool, float, str, str]:
    """Return the sort key of a row: the fewest bytes first, rows without a measurement last."""
    held = row["held_mib"]
    return held is None, held or 0.0, row["method"], row["budget"]


def on_front(sizes: Sequence[float | None], scores: Sequence[float | None]) -> list[bool]:
    """Return True for each row on the front: none of fewer bytes scores as high, and none of as many bytes higher.

    Rows that are equal in both are on it together. A row without a size or a score is not on it. Sizes and scores count
    to nine digits after the point: two sums of the same samples may differ in the last bit.
    """
    rows = [
        None if size is None or score is None else (round(size, _DIGITS), round(score, _DIGITS))
        for size, score in zip(sizes, scores, strict=True)
    ]
    best: dict[float, float] = {}  # the highest score of each size
    for size, score in filter(None, rows):
        best[size] = max(score, best.get(size, -inf))
    front, top = set(), -inf
    for size in sorted(best):
        if best[size] > top:
            top = best[size]
            front.add((size, top))
    return [row in front for row in rows]


def with_front(rows: Sequence[Cells], sizes: Sequence[float | None], scores: Sequence[float | None]) -> list[Cells]:
    """Return rows, sorted by bytes, with the bytes next to the budget and a dot where a row is on the front."""
    result: list[Cells] = []
    for row, is_on in zip(rows, on_front(sizes, scores), strict=True):
        head = {"method": row["method"], "budget": row["budget"], _BYTES: row[_BYTES], "front": "●" if is_on else ""}
        result.append(cast(Cells, head | {name: row[name] for name in row if name not in head}))
    return result
