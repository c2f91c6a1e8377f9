"""New scores for stored answers, without a model.

Answers outlive the rule that scores them. New scores are stored next to the records (`scores.json`); records never
change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kvbench import store
from kvbench.benchmarks.base import Benchmark, ModelFacts, benchmarks_of
from kvbench.config import defaults
from kvbench.store import AnsweredRecord, StoredRun

log = logging.getLogger(__name__)

_CHUNK = 100  # answers per task: some take milliseconds, none takes seconds


def rescore(stored: StoredRun, benchmark: Benchmark) -> StoredRun:
    """Return the run with scores by the rule of `benchmark`; they are stored if another rule gave those on file.

    Raises:
        ValueError: a record lacks what scoring needs.
    """
    scoring = benchmark.scoring()
    if stored.manifest["scoring"] == scoring and not stored.scored_otherwise:
        return stored
    scores = _scores(stored, benchmark, stored.answered)
    log.info("%s: %d answers scored again", stored.path.name, len(scores))
    store.write_scores(stored.path, scoring, scores, stored.answered)
    return stored.rescored(scoring, scores)


def _scores(stored: StoredRun, benchmark: Benchmark, records: Sequence[AnsweredRecord]) -> dict[str, dict[str, float]]:
    try:
        return {
            record["id"]: benchmark.score(record["answers"], record["prediction"], record["meta"]) for record in records
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{stored.path}: a record does not hold what scoring needs ({error!r})") from None


def benchmark_of(stored: StoredRun) -> Benchmark:
    """Return the benchmark that a stored run belongs to, for scoring: no data is read.

    It is an object of the class that conf/benchmark/ names, whatever the run folder says: a folder from elsewhere runs
    no code.

    Raises:
        ValueError: the benchmark is not in conf/benchmark/, or has changed its settings since.
    """
    stored_node, model = stored.config.get("benchmark"), stored.config.get("model")
    if not isinstance(stored_node, dict) or not isinstance(model, dict) or "name" not in model:
        raise ValueError(f"{stored.path}: no config.yaml that says how it is scored; leave this folder out")
    node = {str(key): value for key, value in stored_node.items() if key != "_target_"}
    module, _, name = str(defaults("benchmark", str(node.get("name")))["_target_"]).rpartition(".")
    label = stored.manifest["label"]["benchmark"]
    try:
        built: Any = getattr(import_module(module), name)(**node)
        facts = ModelFacts(str(model["name"]), str(model.get("path") or ""))
        candidates = benchmarks_of(built, facts)
    except Exception as error:  # settings of another version, or changed by hand: any error is possible
        raise ValueError(f"{stored.path}: recorded with other settings of benchmark {node['name']} ({error})") from None
    matching = [candidate for candidate in candidates if candidate.name == label]
    if not matching:
        raise ValueError(f"{stored.path}: benchmark {node['name']} has no part {label}")
    return matching[0]


def score_folders(folders: Sequence[Path], *, workers: int | None = None, progress: bool = True) -> list[Path]:
    """Score the answers of run folders again, in parallel. Return the folders whose scores.json was written.

    A run that cannot be scored is skipped with a warning.
    """
    tasks = [(folder, start) for folder in folders for start in range(0, _answers(folder), _CHUNK)]
    scores: dict[Path, dict[str, dict[str, float]]] = {folder: {} for folder in folders}
    left = {folder: sum(task[0] == folder for task in tasks) for folder in folders}
    with tqdm(total=len(tasks) * _CHUNK, unit="answer", disable=not progress) as bar:
        for folder, result in _map(tasks, workers or os.cpu_count() or 1):
            left[folder] -= 1
            bar.update(_CHUNK)
            if isinstance(result, str):
                if folder in scores:
                    log.warning("%s; skipped", result)
                    del scores[folder]
            elif folder in scores:
                scores[folder] |= result
                if not left[folder]:
                    stored = store.load_run(folder, any_scoring=True)
                    scoring = benchmark_of(stored).scoring()
                    store.write_scores(folder, scoring, scores[folder], stored.answered)
    return list(scores)


_Scored = tuple[Path, dict[str, dict[str, float]] | str]  # a folder with scores by sample id, or with what went wrong


def _map(tasks: Sequence[tuple[Path, int]], workers: int) -> Iterator[_Scored]:
    if min(workers, len(tasks)) < 2:
        yield from map(_score_chunk, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_score_chunk, tasks)


def _answers(folder: Path) -> int:
    return len(store.load_run(folder, any_scoring=True).answered)


def _score_chunk(task: tuple[Path, int]) -> _Scored:
    folder, start = task
    try:
        stored = store.load_run(folder, any_scoring=True)
        return folder, _scores(stored, benchmark_of(stored), stored.answered[start : start + _CHUNK])
    except ValueError as error:
        return folder, str(error)
