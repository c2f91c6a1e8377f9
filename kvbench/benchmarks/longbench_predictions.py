"""Prediction files of other LongBench harnesses, scored by ours: one <dataset>.jsonl per dataset.

Rows are those of LongBench's own script: {"pred", "answers", "all_classes", "length"}. A row that has no answers (a
file of predictions alone, in which each row may name its "dataset" and "index") takes them from a folder of ground
truth, which has one <dataset>.jsonl of {"answers", "all_classes", "length"} in upstream's order.
"""

from __future__ import annotations

import logging
import lzma
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvbench.benchmarks.longbench_datasets import DATASETS, ENGLISH
from kvbench.data.sources import LONGBENCH_ROWS
from kvbench.data.text import parse_json, read_lines
from kvbench.metrics.longbench import BUCKETS, METRIC_OF, bucket, dataset_score, metric_of
from kvbench.metrics.many import score_many

log = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".jsonl.xz")


def prediction_files(path: Path) -> list[Path]:
    """Return the prediction files at or in `path`; [] when there are none."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("*.jsonl*"))
    return [file for file in files if file.name.endswith(_SUFFIXES)]


def read_predictions(files: Iterable[Path], answers: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return rows with everything that scoring needs, by dataset.

    Raises:
        ValueError: a row without prediction or answers, an unknown dataset, invalid JSON; names file and line.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    home: dict[str, Path] = {}
    for file in files:
        named = file.name.partition(".jsonl")[0]
        lines = _lines(file)
        if not lines:
            raise ValueError(f"{file}: empty")
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict) or not isinstance(row.get("pred"), str):
                raise ValueError(f'{where}: no text under "pred"')
            dataset = str(row.get("dataset", named))
            if home.setdefault(dataset, file) != file:
                raise ValueError(f"{where}: {dataset} is in {home[dataset]} already; give each dataset once")
            try:
                metric_of(dataset)
            except ValueError:
                reason = f"{where}: {dataset!r} is not a dataset of LongBench; name the file <dataset>.jsonl"
                raise ValueError(reason) from None
            rows.setdefault(dataset, []).append(row | {"where": where})
    return {dataset: _complete(dataset, entries, answers) for dataset, entries in rows.items()}


def _complete(dataset: str, rows: list[dict[str, Any]], answers: Path | None) -> list[dict[str, Any]]:
    """Return the rows with answers, from the ground truth where they have none, and the classes of the last row."""
    truth: list[dict[str, Any]] = []
    if any("answers" not in row for row in rows):
        file = None if answers is None else answers / f"{dataset}.jsonl"
        if file is None or not file.is_file():
            raise ValueError(f"{rows[0]['where']}: no answers; give --answers FOLDER with {dataset}.jsonl")
        truth = [_truth(line, f"{file}, line {number}") for number, line in enumerate(_lines(file), start=1)]
    complete = []
    seen: set[int] = set()
    for position, row in enumerate(rows):
        index = row.get("index", position)
        if not isinstance(index, int) or index in seen:
            raise ValueError(f"{row['where']}: index={index!r}, which must be a whole number and come once")
        seen.add(index)
        if "answers" not in row:
            if not 0 <= index < len(truth):
                raise ValueError(f"{row['where']}: row {index} is not among the {len(truth)} of {answers}")
            row = row | truth[index]
        classes, length = row.get("all_classes"), row.get("length")
        if not isinstance(row["answers"], list) or not all(isinstance(text, str) for text in row["answers"]):
            raise ValueError(f"{row['where']}: the answers must be a list of texts")
        if dataset.endswith("_e") and not isinstance(length, int):
            raise ValueError(f'{row["where"]}: no "length", which says the bucket')
        if METRIC_OF[dataset.removesuffix("_e")] == "classification" and not classes:
            raise ValueError(f'{row["where"]}: no "all_classes", by which {dataset} is scored')
        complete.append(
            {
                "dataset": dataset,
                "prediction": row["pred"],
                "answers": row["answers"],
                "all_classes": classes,
                "length": length,
            }
        )
    if len(complete) != LONGBENCH_ROWS[dataset]:
        log.warning("%s: %d of the %d published rows", dataset, len(complete), LONGBENCH_ROWS[dataset])
    return [row | {"all_classes": complete[-1]["all_classes"]} for row in complete]


def score_predictions(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    workers: int | None = None,
    progress: bool = False,
    **switches: Any,
) -> dict[str, Any]:
    """Return dataset scores as LongBench prints them, category means and averages.

    Returns:
        {"datasets": {name: {"n", "score", and for code both backends}}, "buckets": {name: {bucket: score}},
        "categories": {name: mean}, "averages": {name: mean}}; an average is there only when all its datasets are.

    Raises:
        ValueError: an unknown switch.
    """
    flat = [row for entries in rows.values() for row in entries]
    scores = iter(score_many(flat, workers=workers, detail=True, progress=progress, **switches))
    by_dataset = {dataset: [next(scores) for _ in entries] for dataset, entries in rows.items()}
    order = sorted(rows, key=lambda name: list(DATASETS).index(name.removesuffix("_e")))
    datasets: dict[str, dict[str, float]] = {}
    buckets: dict[str, dict[str, float]] = {}
    for dataset in order:
        scored, metric = by_dataset[dataset], metric_of(dataset)
        datasets[dataset] = {"n": len(scored), "score": dataset_score(s[metric] for s in scored)}
        datasets[dataset] |= {name: dataset_score(s[name] for s in scored) for name in scored[0] if name != metric}
        if dataset.endswith("_e"):
            lengths = [row["length"] for row in rows[dataset]]
            buckets[dataset] = {
                name: dataset_score(s[metric] for s, n in zip(scored, lengths, strict=True) if bucket(n) == name)
                for name in BUCKETS
            }
    return {"datasets": datasets, "buckets": buckets} | _means(
        {name: scored["score"] for name, scored in datasets.items()}
    )


def _means(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return category means over the given datasets, and the averages that are complete."""
    groups: dict[tuple[str, str], list[float]] = {}
    for name, score in scores.items():
        kind, language = DATASETS[name.removesuffix("_e")]
        tag = "LongBench-E" if name.endswith("_e") else language
        groups.setdefault((kind, tag), []).append(score)
    categories = {
        _category(kind, tag, groups): round(sum(values) / len(values), 2) for (kind, tag), values in groups.items()
    }
    averages = {}
    for name, members in (("avg-16", ENGLISH), ("avg-21", tuple(DATASETS))):
        if all(member in scores for member in members):
            averages[name] = round(sum(scores[member] for member in members) / len(members), 2)
    if "avg-16" in averages:
        kinds = dict.fromkeys(DATASETS[member][0] for member in ENGLISH)
        english = [[scores[m] for m in ENGLISH if DATASETS[m][0] == kind] for kind in kinds]
        averages["macro-en"] = round(sum(sum(v) / len(v) for v in english) / len(english), 2)
    return {"categories": categories, "averages": averages}


def _category(kind: str, tag: str, groups: Mapping[tuple[str, str], object]) -> str:
    """Return the name of a mean: those of other languages, and of LongBench-E next to LongBench, say so."""
    return kind if tag == "en" or (tag == "LongBench-E" and (kind, "en") not in groups) else f"{kind} ({tag})"


def _truth(line: str, where: str) -> dict[str, Any]:
    row = parse_json(line, where)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object")
    return row


def _lines(file: Path) -> list[str]:
    if file.suffix != ".xz":
        return [line for line in read_lines(file)[0] if line.strip()]
    try:
        with lzma.open(file, "rt", encoding="utf-8") as stream:
            return [line for line in stream if line.strip()]
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{file}: cannot be read as text ({error})") from None
