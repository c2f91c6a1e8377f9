"""The best method of a column under each budget, marked only where it is significantly better than all others.

The row with the highest score under a budget is compared with every row of another method under this budget, sample by
sample. Rows that differ in seed or backend alone are one method, and no rivals. All comparisons of a column are
corrected together (Holm). A row is marked if all of its comparisons stay below 5 % and it is better on the common
samples: a row without the hard samples has a high score, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvbench.report.difference import Average, ColumnScores
from kvbench.report.holm import ALPHA, Floats, holm, p_values


def best_rows(
    columns: Sequence[ColumnScores],
    averages: Mapping[str, Average],
    scores: Mapping[str, Sequence[float | None]],
    groups: Sequence[Sequence[int]],
    methods: Sequence[object],
) -> dict[str, set[int]]:
    """Return the rows that are significantly best, by column and average.

    Args:
        scores: by column and average, the shown score of every row of the table.
        groups: rows under the same budget each; the full cache is in none.
        methods: of every row of the table, equal for rows of one method with the same dials.
    """
    by_name = {column.name: column for column in columns}
    wanted: dict[str, Average] = {column.name: [[column.name]] for column in columns} | dict(averages)
    return {key: _best(by_name, average, scores[key], groups, methods) for key, average in wanted.items()}


def _best(
    columns: Mapping[str, ColumnScores],
    average: Average,
    scores: Sequence[float | None],
    groups: Sequence[Sequence[int]],
    methods: Sequence[object],
) -> set[int]:
    members = [name for group in average for name in group if name in columns]
    has = {name: set(columns[name].rows) for name in members}
    most = max((sum(row in has[name] for name in members) for group in groups for row in group), default=0)
    compared: list[tuple[int, Floats]] = []
    for group in groups:
        rows = [r for r in group if scores[r] is not None and most == sum(r in has[name] for name in members)]
        rows.sort(key=lambda row: -(scores[row] or 0.0))
        rivals = [row for row in rows if methods[row] != methods[rows[0]]]
        if not rivals or scores[rivals[0]] == scores[rows[0]]:
            continue
        equal = [row for row in rows if methods[row] == methods[rows[0]] and scores[row] == scores[rows[0]]]
        for best in equal:
            names = [name for name in members if best in has[name]]
            alike = [row for row in rivals if all(row in has[name] for name in names)]
            compared.append((best, _contributions(columns, average, names, best, alike)))
    if not compared:
        return set()
    p = [np.where(own.sum(-1) > 0, p_values(own), 1.0) for _, own in compared]
    corrected = np.split(holm(np.concatenate(p)), np.cumsum([len(values) for values in p])[:-1])
    return {row for (row, _), values in zip(compared, corrected, strict=True) if len(values) and (values < ALPHA).all()}


def _contributions(
    columns: Mapping[str, ColumnScores], average: Average, names: Sequence[str], best: int, others: Sequence[int]
) -> Floats:
    """Return [others, clusters] contributions to the difference between the best row and the others."""
    groups = [[name for name in group if name in names] for group in average]
    groups = [group for group in groups if group]
    pieces = [np.zeros((len(others), 0))]
    for group in groups:
        for name in group:
            place = {row: at for at, row in enumerate(columns[name].rows)}
            sums, sizes = columns[name].matrix.strata(place[best], [place[row] for row in others])
            number = np.maximum(sizes.sum(-1, keepdims=True), 1)
            pieces.append(sums / number / len(group) / len(groups))
    return np.concatenate(pieces, axis=-1)
