"""Answers packed for the page, block by block.

A block holds some runs of one column. Nothing keeps the records of more than one block, so that stores of any size fit.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvbench.common.text import one_line
from kvbench.report.measured import four_digits
from kvbench.store import KeptTokens, Record, RunNumbers, StoredRun, load_run, read_kept

log = logging.getLogger(__name__)

BLOCK = 5000  # samples of a block, all runs together
_MANY = 20_000  # samples from which on several processes read
_RANGES = 8  # of layers, whose kept tokens are shown by themselves
_LONG = 500  # characters of a text in a sample's meta
_TEXTS = ("question", "prompt_tail", "prompt")  # of a record, where its writer stored them


@dataclass(frozen=True)
class Task:
    """Runs of one column that become a block; `level` is that of the compression."""

    paths: tuple[Path, ...]
    level: int


def tasks_of(column: Sequence[RunNumbers], level: int) -> list[Task]:
    """Return the blocks of a column, in the order of its runs."""
    blocks: list[list[Path]] = [[]]
    size = 0
    for run in column:
        count = len(run.columns.ids)
        if blocks[-1] and size + count > BLOCK:
            blocks.append([])
            size = 0
        blocks[-1].append(run.path)
        size += count
    return [Task(tuple(paths), level) for paths in blocks if paths]


def read_blocks(tasks: Sequence[Task], samples: int) -> Iterator[bytes]:
    """Yield the packed answers of each task, in their order. From some size on, several processes read."""
    workers = min(len(tasks), len(os.sched_getaffinity(0)), 8)
    if samples < _MANY or workers < 2:
        yield from map(read_block, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(read_block, tasks)


def read_block(task: Task) -> bytes:
    """Return the packed answers of some runs."""
    text = json.dumps(_content([_load(path) for path in task.paths]), separators=(",", ":"), allow_nan=False)
    return zlib.compress(text.encode(), task.level)


def _load(path: Path) -> StoredRun | None:
    try:
        return load_run(path)
    except ValueError as error:  # damaged after its numbers were read
        log.warning("%s; skipped", one_line(str(error)))
        return None


def _content(runs: Sequence[StoredRun | None]) -> dict[str, object]:
    """Return the answers of some runs by sample, each sample with a record per run."""
    samples: dict[str, dict[str, Any]] = {}
    for slot, run in enumerate(runs):
        kept = _kept(run) if run else {}
        for record in run.samples if run else ():
            if record["id"] not in samples:
                samples[record["id"]] = _sample(record, len(runs))
            sample, tokens = samples[record["id"]], kept.get(record["id"])
            sample["records"][slot] = _record(record, run.manifest["headline"]) if run else None
            if tokens is not None and record["status"] == "ok":
                _add_map(sample, slot, tokens)
    ordered = [samples[key] for key in sorted(samples)]
    return {"runs": [run and _details(run) for run in runs], "samples": ordered}


def _sample(record: Record, slots: int) -> dict[str, Any]:
    raw: Mapping[str, Any] = record
    answers = raw.get("answers")
    texts = {key: raw[key] for key in _TEXTS if isinstance(raw.get(key), str)}
    return {
        "id": record["id"],
        "meta": {key: _short(value) for key, value in record["meta"].items() if not isinstance(value, dict | list)},
        "answers": [answer for answer in answers if isinstance(answer, str)] if isinstance(answers, list) else [],
        **({"texts": texts} if texts else {}),
        "records": [None] * slots,
    }


def _short(value: object) -> object:
    return value[:_LONG] if isinstance(value, str) else value


def _record(record: Record, headline: str) -> list[object]:
    """Return status, answer or error, score, kept, span, new tokens, finish reason, TTFT, TPOT, other scores."""
    raw: Mapping[str, Any] = record
    if record["status"] != "ok":
        error = raw.get("error")
        return [record["status"], error if isinstance(error, str) else ""]
    scores = {name: round(100 * score, 2) for name, score in raw["scores"].items()}
    tokens, finish = raw.get("new_tokens"), raw.get("finish_reason")
    return [
        "ok",
        raw["prediction"],
        scores.pop(headline, None),
        round(raw["kept_mean"], 1),
        raw["span"],
        tokens if isinstance(tokens, int) else None,
        finish if isinstance(finish, str) else None,
        four_digits(raw["timings"].get("ttft_s")),
        four_digits(raw["timings"].get("tpot_s")),
        scores,
    ]


def _kept(run: StoredRun) -> dict[str, KeptTokens]:
    try:
        return read_kept(run.path)
    except ValueError as error:
        log.warning("%s; its kept tokens are left out", one_line(str(error)))
        return {}


def _add_map(sample: dict[str, Any], slot: int, kept: KeptTokens) -> None:
    """Add to a record which share of heads keeps each token: a digit 0 to f per token, over all layers and by range."""
    layers = len(kept.mask_LUT)
    step = -(-layers // _RANGES)
    ranges = [(0, layers - 1), *((first, min(first + step, layers) - 1) for first in range(0, layers, step))]
    if sample.setdefault("kept", {"tokens": list(kept.tokens), "layers": ranges})["tokens"] != list(kept.tokens):
        return  # of another span
    shares = [kept.mask_LUT[first : last + 1].mean((0, 1)) for first, last in ranges]
    # a token that any head keeps is not 0
    digits = [np.where(share > 0, np.maximum(1, np.round(15 * share)), 0).astype(int) for share in shares]
    sample["records"][slot].append(["".join(f"{digit:x}" for digit in each) for each in digits])


def _details(run: StoredRun) -> dict[str, object]:
    identity = run.manifest["identity"]
    kernel, _, cache = str(identity["backend"]).rpartition("-")
    records: list[Mapping[str, Any]] = list(run.answered)
    ran = {one_line(str(record["kernel"])) for record in records if record.get("kernel")}
    return {
        "path": "/".join(run.path.parts[-3:]),
        "hash": run.manifest["hash"],
        "seed": identity["seed"],
        "kernel": kernel,
        "cache": cache,
        "ran": ", ".join(sorted(ran)),
        "method": identity["method"],
        "versions": run.manifest["versions"],
        "hardware": run.manifest.get("hardware", {}),
        "continuedWith": run.manifest.get("continued_with", []),
        "layers": _layers(run),
    }


def _layers(run: StoredRun) -> list[list[float]] | None:
    """Return the share of tokens kept per layer and KV head, the mean over samples; None where it is not stored."""
    total: NDArray[np.float64] | None = None
    count = 0
    for sample in run.answered:
        try:
            kept = np.array(sample.get("kept"), dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if kept.ndim != 2 or not kept.size or (total is not None and kept.shape != total.shape):
            continue
        share = kept / sample["span"]
        total, count = share if total is None else total + share, count + 1
    if total is None or not np.isfinite(total).all():
        return None
    return [[round(float(share), 4) for share in layer] for layer in total / count]
