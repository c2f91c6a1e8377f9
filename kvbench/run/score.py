"""`kvbench score outputs/runs`: score stored answers again, without a model, and print their tables."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench import store
from kvbench.common.command import Parser, command, log_messages, message_of
from kvbench.common.files import write_atomic
from kvbench.run.rescore import benchmark_of, score_folders

_EPILOG = """\
examples:
  kvbench score outputs/runs                              after a metric has changed; the answers stay
  kvbench score predictions/ --strip leading --json scores.json        LongBench files of another harness
"""
log = logging.getLogger(__name__)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Score run folders or prediction files. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench score",
        description="Score stored answers again, without a model, and print their tables.",
        epilog=_EPILOG,
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
    log_messages()
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
            benchmark_of(store.load_run(folder, any_scoring=True))
            folders.append(folder)
        except ValueError as error:
            log.warning("%s; skipped", error)
    if not folders:
        raise ValueError(f"{arguments.paths[0]}: no run there that could be scored; name outputs/runs or a run folder")
    try:
        scored = score_folders(folders, workers=arguments.workers, progress=not arguments.quiet)
    except OSError as error:
        if Path(str(error.filename)).name != "scores.json":
            raise
        hint = "scores are stored with the runs: copy these to a folder that can be written, and score them there"
        raise ValueError(f"{message_of(error)}; {hint}") from None
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
    scored = score_predictions(rows, workers=arguments.workers, progress=not arguments.quiet, **switches)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(scored, indent=2) + "\n")
    for title in ("datasets", "buckets", "categories", "averages"):
        lines = [
            {title: name} | (value if isinstance(value, dict) else {"score": value})
            for name, value in scored[title].items()
        ]
        if lines:
            print(tabulate(lines, headers="keys", tablefmt="github"), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
