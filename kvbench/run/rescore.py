"""`python -m kvbench.run.rescore outputs/runs`: score stored answers again, without a model.

Answers outlive the rule that scores them. New scores stand beside the records (`scores.json`), which are never changed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kvbench import store
from kvbench.benchmarks.base import Benchmark, ModelFacts, benchmarks_of
from kvbench.common.command import Parser, command
from kvbench.common.files import write_atomic
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
    if stored.manifest["scoring"] == scoring:
        return stored
    scores = _scores(stored, benchmark, stored.answered)
    log.info("%s: %d answers scored again", stored.path.name, len(scores))
    store.write_scores(stored.path, scoring, scores)
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
                    store.write_scores(folder, benchmark_of(store.load_run(folder)).scoring(), scores[folder])
    return list(scores)


_Scored = tuple[Path, dict[str, dict[str, float]] | str]  # a folder with scores by sample id, or with what went wrong


def _map(tasks: Sequence[tuple[Path, int]], workers: int) -> Iterator[_Scored]:
    if min(workers, len(tasks)) < 2:
        yield from map(_score_chunk, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_score_chunk, tasks)


def _answers(folder: Path) -> int:
    return len(store.load_run(folder).answered)


def _score_chunk(task: tuple[Path, int]) -> _Scored:
    folder, start = task
    try:
        stored = store.load_run(folder)
        return folder, _scores(stored, benchmark_of(stored), stored.answered[start : start + _CHUNK])
    except ValueError as error:
        return folder, str(error)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Score run folders or prediction files. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench score",
        description="Score stored answers again, without a model, and print their tables.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        help="run folders or folders of them, e.g. outputs/runs; or LongBench predictions of another harness: "
        "<dataset>.jsonl files, or folders of them, with rows of pred, answers, all_classes, length",
    )
    parser.add_argument("--answers", type=Path, help="folder with the answers that prediction files lack")
    parser.add_argument("--json", type=Path, help="write the scores of prediction files here")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--code-backend", help="of prediction files: difflib (default) or indel")
    parser.add_argument("--strip", help="of prediction files: none (default), or leading as kvpress has it")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    holds_runs = [not path.is_file() and any(path.rglob("manifest.json")) for path in arguments.paths]
    if any(holds_runs) and not all(holds_runs):
        raise ValueError("run folders and prediction files are scored by one command each")
    if all(holds_runs):
        for name in ("answers", "json", "code_backend", "strip"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: for prediction files; runs hold what they need")
        _score_runs(arguments)
    else:
        _score_predictions(arguments)
    return 0


def _score_runs(arguments: argparse.Namespace) -> None:
    from kvbench.report.present import present

    folders = []
    for folder in dict.fromkeys(folder for path in arguments.paths for folder in store.run_folders(path)):
        try:
            benchmark_of(store.load_run(folder))
            folders.append(folder)
        except ValueError as error:
            log.warning("%s; skipped", error)
    if not folders:
        raise ValueError(f"{arguments.paths[0]}: no run there that could be scored; name outputs/runs or a run folder")
    scored = score_folders(folders, workers=arguments.workers, progress=not arguments.quiet)
    if not scored:
        raise ValueError(f"{arguments.paths[0]}: none of its runs could be scored")
    present([store.load_run(folder, bulky=False) for folder in scored], None)


def _score_predictions(arguments: argparse.Namespace) -> None:
    from tabulate import tabulate

    from kvbench.benchmarks.longbench_predictions import prediction_files, read_predictions, score_predictions

    files = [file for path in arguments.paths for file in prediction_files(path)]
    if not files:
        raise ValueError(f"{arguments.paths[0]}: neither run folders nor <dataset>.jsonl files there")
    rows = read_predictions(files, arguments.answers)
    given = {"code_backend": arguments.code_backend, "strip": arguments.strip}
    switches = {name: value for name, value in given.items() if value is not None}
    made = score_predictions(rows, workers=arguments.workers, progress=not arguments.quiet, **switches)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(made, indent=2) + "\n")
    for title in ("datasets", "buckets", "categories", "averages"):
        lines = [
            {title: name} | (value if isinstance(value, dict) else {"score": value})
            for name, value in made[title].items()
        ]
        if lines:
            print(tabulate(lines, headers="keys", tablefmt="github"), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
