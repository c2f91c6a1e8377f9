"""Runs read block by block: facts for the tables, and the answers packed for the page.

A block holds some runs of one column. Nothing keeps more than one block of records, so that stores of any size fit.
"""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvbench.common.text import one_line
from kvbench.report.paired import matrix
from kvbench.store import AnsweredRecord, Manifest, Record, Status, StoredRun, load_manifests, load_run, numbers_of

log = logging.getLogger(__name__)

BLOCK = 5000  # samples of a block, all runs together
_MANY = 20_000  # samples from which on several processes read
_LONG = 500  # characters of a text in a sample's meta
_TEXTS = ("question", "prompt_tail", "prompt")  # of a record, where its writer stored them


@dataclass(frozen=True, eq=False)
class Head:
    """A run by its manifest alone; enough for its name, its order and its table. Compared by identity."""

    path: Path
    manifest: Manifest
    status: Status = field(default_factory=Status)
    samples: Sequence[Record] = ()


@dataclass(frozen=True)
class Facts:
    """The facts of one run that tables, curves and grids show.

    Attributes:
        scores: mean by name, in [0, 1].
        sums: of kept tokens, kept share, share of bytes, and MiB, over the samples that got an answer.
        times: sum and number of the measured seconds, by name.
        deltas: headline score minus that of the full cache, for each sample that the full cache has answered; NaN where
            this run has no answer.
        clusters: of each of these samples the number of its context, see `kvbench.report.paired.Matrix`.
        cells: (length, depth) → mean headline score, None where a sample has no answer; empty without a grid.
    """

    status: str | None
    n: int
    oom: int
    failed: int
    scores: Mapping[str, float]
    sums: tuple[float, float, float, float]
    times: Mapping[str, tuple[float, int]]
    deltas: NDArray[np.float64]
    clusters: NDArray[np.int64]
    cells: Mapping[tuple[int, int], float | None]


@dataclass(frozen=True)
class Task:
    """Runs of one column that become a block. `full` is the run that their differences refer to."""

    paths: tuple[Path, ...]
    full: Path | None
    level: int  # of compression; 0: no answers are packed


@dataclass(frozen=True)
class Block:
    """The facts of each run, None for a damaged one, and the packed answers."""

    facts: Sequence[Facts | None]
    packed: bytes


def heads_below(root: Path, benchmark: str | None = None) -> list[Head]:
    """Return the runs at or below `root`, of one benchmark or suite if named; damaged ones are skipped."""
    manifests = load_manifests(root)
    return [Head(path, manifest) for path, manifest in manifests.items() if _is_of(manifest, benchmark)]


def _is_of(manifest: Manifest, benchmark: str | None) -> bool:
    place = manifest["part"]
    names = [manifest["label"]["benchmark"], *([place["suite"]] if place else [])]
    return benchmark is None or any(name == benchmark or name.startswith(f"{benchmark}-") for name in names)


def tasks_of(column: Sequence[Head], full: Head | None, level: int) -> list[Task]:
    """Return the blocks of a column, in the order of its runs."""
    blocks: list[list[Path]] = [[]]
    size = 0
    for head in column:
        count = head.manifest["num_samples"]
        if blocks[-1] and size + count > BLOCK:
            blocks.append([])
            size = 0
        blocks[-1].append(head.path)
        size += count
    return [Task(tuple(paths), full.path if full else None, level) for paths in blocks if paths]


def read_blocks(tasks: Sequence[Task], samples: int) -> Iterator[Block]:
    """Yield a block per task, in their order. From some size on, several processes read."""
    workers = min(len(tasks), len(os.sched_getaffinity(0)), 8)
    if samples < _MANY or workers < 2:
        yield from map(read_block, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(read_block, tasks)


def read_block(task: Task) -> Block:
    """Return the facts and the packed answers of some runs."""
    runs = [_load(path) for path in task.paths]
    base, clusters = _full_scores(task.full) if task.full else ({}, np.zeros(0, dtype=np.int64))
    facts = [_facts(run, base, clusters) if run else None for run in runs]
    packed = b"" if not task.level else zlib.compress(_json(_content(runs)), task.level)
    return Block(facts, packed)


def _load(path: Path) -> StoredRun | None:
    try:
        return load_run(path)
    except ValueError as error:
        log.warning("%s; skipped", one_line(str(error)))
        return None


@lru_cache(maxsize=4)
def _full_scores(path: Path) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Return the headline scores of the full cache by sample id, and the number of the context of each."""
    try:
        run = load_run(path, bulky=False)
    except ValueError:  # warned about where it is a row
        return {}, np.zeros(0, dtype=np.int64)
    scores = matrix([numbers_of(run)], run.manifest["headline"]).among(0)
    return dict(zip(scores.ids, scores.scores[0].tolist(), strict=True)), scores.clusters


def _headlines(run: StoredRun) -> dict[str, float]:
    name = run.manifest["headline"]
    return {sample["id"]: sample["scores"][name] for sample in run.answered if name in sample["scores"]}


def _facts(run: StoredRun, full: Mapping[str, float], clusters: NDArray[np.int64]) -> Facts:
    answered, own = run.answered, _headlines(run)
    names = dict.fromkeys(name for sample in answered for name in sample["scores"])
    values = {name: [s["scores"][name] for s in answered if name in s["scores"]] for name in names}
    states = [record["status"] for record in run.samples]
    return Facts(
        status=run.status.get("status"),
        n=len(answered),
        oom=states.count("oom"),
        failed=states.count("failed"),
        scores={name: float(np.mean(scores)) for name, scores in values.items()},
        sums=(
            sum(sample["kept_mean"] for sample in answered),
            sum(sample["kept_mean"] / sample["span"] for sample in answered),
            sum(sample["kv_bytes"] / sample["kv_bytes_full"] for sample in answered),
            sum(sample["kv_bytes"] for sample in answered) / 2**20,
        ),
        times={name: _times(answered, name) for name in ("ttft_s", "tpot_s")},
        deltas=np.array([own.get(key, np.nan) - score for key, score in full.items()], dtype=np.float64),
        clusters=clusters,
        cells=_cells(run),
    )


def _times(answered: Sequence[AnsweredRecord], name: str) -> tuple[float, int]:
    times: list[Mapping[str, float | None]] = [sample["timings"] for sample in answered]  # type: ignore[misc]
    values = [value for time in times if (value := time.get(name)) is not None]
    return sum(values), len(values)


def _cells(run: StoredRun) -> dict[tuple[int, int], float | None]:
    """Return the scores by length and depth; {} unless all samples carry both."""
    values: dict[tuple[int, int], list[float]] = {}
    for sample in run.samples:
        length, depth = sample["meta"].get("length"), sample["meta"].get("depth")
        if type(length) is not int or type(depth) is not int:
            return {}
        scores = values.setdefault((length, depth), [])
        if sample["status"] == "ok" and run.manifest["headline"] in sample["scores"]:  # type: ignore[typeddict-item]
            scores.append(sample["scores"][run.manifest["headline"]])  # type: ignore[typeddict-item]
    return {cell: sum(scores) / len(scores) if scores else None for cell, scores in values.items()}


# ---- the answers of a block, see `asRecord` in assets/data.js -----------------------------------------------------


def _content(runs: Sequence[StoredRun | None]) -> dict[str, object]:
    """Return the answers of some runs by sample, each sample with a record per run."""
    samples: dict[str, dict[str, Any]] = {}
    for slot, run in enumerate(runs):
        for record in run.samples if run else ():
            sample = samples.setdefault(record["id"], _sample(record, len(runs)))
            sample["records"][slot] = _record(record, run.manifest["headline"]) if run else None
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
        _digits(raw["timings"].get("ttft_s")),
        _digits(raw["timings"].get("tpot_s")),
        scores,
    ]


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _details(run: StoredRun) -> dict[str, object]:
    identity = run.manifest["identity"]
    return {
        "path": "/".join(run.path.parts[-3:]),
        "hash": run.manifest["hash"],
        "seed": identity["seed"],
        "backend": identity["backend"],
        "method": identity["method"],
        "versions": run.manifest["versions"],
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


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def rounded(value: float | None, digits: int) -> float | None:
    """Return a finite number with few digits; None of None and of what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
