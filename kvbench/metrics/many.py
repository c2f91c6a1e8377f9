"""LongBench scores of many stored predictions at once, on all processor cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from typing import Any

from kvbench.metrics.longbench import check_switches, longbench_scores, metric_of

_CHUNK = 64  # rows: some 30 milliseconds of work, so that cores finish together
_PER_WORKER = 1000  # rows: fewer are scored before a process has started and read jieba's dictionary


def score_many(
    rows: Iterable[Mapping[str, Any]],
    *,
    workers: int | None = None,
    detail: bool = False,
    progress: bool = False,
    **switches: Any,
) -> list[Any]:
    """Return `longbench_score` of each row, in order; with `detail` the dict of `longbench_scores` instead.

    A row has `dataset`, `prediction`, `answers` and, for a classification, `all_classes` (LongBench takes those of a
    dataset's last row for all of its rows; in its data they are the same in every row). `workers` are processes: by
    default as many as there are cores and work for; 1 stays in this process. `progress` shows a bar.

    Raises:
        ValueError: as `longbench_score`; `workers` below 1.
        RuntimeError: worker processes could not be started, mostly because a `__main__` guard is missing.
    """
    rows = list(rows)
    check_switches(**switches)
    for dataset in {row["dataset"] for row in rows}:
        metric_of(dataset)
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least 1")
    count = workers or max(1, min(_cores(), len(rows) // _PER_WORKER))
    score = partial(_score_chunk, detail=detail, switches=switches)
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    if count == 1:
        return list(chain.from_iterable(_shown(map(score, chunks), len(chunks), progress)))
    # Spawned, not forked: the caller may hold threads of torch or a CUDA context.
    try:
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            return list(chain.from_iterable(_shown(pool.map(score, chunks), len(chunks), progress)))
    except BrokenProcessPool as error:
        raise RuntimeError(
            'score_many: a worker process ended. Call it below `if __name__ == "__main__":`, or with workers=1'
        ) from error


def _score_chunk(rows: Sequence[Mapping[str, Any]], detail: bool, switches: Mapping[str, Any]) -> list[Any]:
    scores = [
        longbench_scores(row["dataset"], row["prediction"], row["answers"], row.get("all_classes"), **switches)
        for row in rows
    ]
    return scores if detail else [each[metric_of(row["dataset"])] for each, row in zip(scores, rows, strict=True)]


def _shown(done: Iterator[list[Any]], total: int, progress: bool) -> Iterable[list[Any]]:
    if not progress:
        return done
    from tqdm import tqdm

    return tqdm(done, total=total, desc="scoring", unit=f"x{_CHUNK}")


def _cores() -> int:
    """Return the number of cores that this process may use: a job's share, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
