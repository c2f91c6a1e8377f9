"""The content of an entry, from its stored runs alone: the same runs give the same content."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from kvbench.common.files import write_atomic
from kvbench.common.text import one_line
from kvbench.report.loggers.entries import Entry
from kvbench.report.loggers.sinks import Content, HistoryRow, Table, Value
from kvbench.store import AnsweredRecord, Record, StoredRun, held_bytes
from kvbench.store.columns import TIMINGS
from kvbench.store.environment import hardware_of, hardware_words, is_mixed

log = logging.getLogger(__name__)

COLUMNS = (
    "id", "dataset", "status", "score", "scores", "prompt_tail", "prediction", "answers", "error", "prompt_tokens",
    "new_tokens", "finish_reason", "kept", "kept_share", "held_bytes", "held_share", *TIMINGS,
)  # fmt: skip


def config(entry: Entry, runs: Sequence[StoredRun]) -> dict[str, object]:
    """Return the configuration of an entry: what people filter by first, then the identity and all settings.

    Secrets and absolute paths were left out when it was stored.
    """
    manifest, label = entry.manifest, entry.manifest["label"]
    identity = manifest["identity"]
    dials = {key: value for key, value in cast(Mapping[str, object], identity["method"]).items() if key != "name"}
    plain = {key: value for key, value in dials.items() if not isinstance(value, Mapping)}
    settings: dict[str, object] = {}
    for run in runs[:1]:
        try:
            settings = {key: value for key, value in run.config.items() if key != "logger"}
        except ValueError:  # damaged; the run goes on without it, and so does its entry
            settings = {}
    return {
        "benchmark": entry.benchmark,
        "model": label["model"],
        "method": label["method"],
        "budget": identity["budget"],
        "budget_label": label["budget"],
        "dials": plain,
        "seed": identity["seed"],
        "dtype": identity["dtype"],
        "backend": identity["backend"],
        "device": manifest["device"],
        "hardware": hardware_words(run.manifest for run in runs),
        "mixed": is_mixed(run.manifest for run in runs),
        "continued_with": [dict(more) for run in runs for more in run.manifest.get("continued_with", [])],
        "hash": entry.key,
        "versions": dict(manifest["versions"]),
        "identity": dict(identity),
        "settings": settings,
    }


def history(runs: Sequence[StoredRun]) -> Iterator[HistoryRow]:
    """Yield a row per recorded sample, in the order of their times: running means over the samples so far.

    Times of different hardware have no mean, as in tables.
    """
    timings = TIMINGS if len(hardware_of(run.manifest for run in runs)) < 2 else ()
    samples = [(record.get("time", ""), record["id"], name(run), run, record) for run in runs for record in run.samples]
    samples.sort(key=lambda sample: sample[:3])
    means: dict[str, _Mean] = {}
    counts = {"oom": 0, "failed": 0}
    for step, (time, _, dataset, run, record) in enumerate(samples, start=1):
        if record["status"] == "ok":
            for measured, number in _measured(run, cast(AnsweredRecord, record), dataset, timings):
                means.setdefault(measured, _Mean()).add(number)
        else:
            counts[record["status"]] += 1
        values = {"recorded": float(step), "oom": float(counts["oom"]), "failed": float(counts["failed"])}
        values |= {key: mean.value for key, mean in means.items()}
        datasets = [mean.value for key, mean in means.items() if key.startswith("score/")]
        if datasets:
            values["score"] = sum(datasets) / len(datasets)
        yield HistoryRow(step, _seconds(time), values)


class _Mean:
    """A running mean."""

    def __init__(self) -> None:
        self._sum, self._number = 0.0, 0

    def add(self, value: float) -> None:
        self._sum += value
        self._number += 1

    @property
    def value(self) -> float:
        """The mean so far."""
        return self._sum / self._number


def _measured(
    run: StoredRun, record: AnsweredRecord, dataset: str, timings: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield what is averaged of an answered sample. The headline score is named by its dataset."""
    headline = run.manifest["headline"]
    for metric, value in sorted(record["scores"].items()):
        if metric == headline:
            yield f"score/{dataset}", float(value)
        elif run.manifest["part"] is None:
            yield f"scores/{metric}", float(value)
    yield "kept", float(record["kept_mean"])
    yield "kept_share", record["kept_mean"] / record["span"]
    held = held_bytes(record)
    yield "held_bytes", float(held)
    yield "held_share", held / record["kv_bytes_full"]
    for key in timings:
        seconds = record["timings"].get(key)
        if isinstance(seconds, int | float):
            yield key, float(seconds)


def name(run: StoredRun) -> str:
    """Return the dataset of a run: its name in the suite, or its benchmark."""
    place = run.manifest["part"]
    return place["name"] if place else run.manifest["label"]["benchmark"]


def _seconds(time: str) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None


def content(entry: Entry, runs: Sequence[StoredRun], media: Path) -> Content:
    """Return all that an entry shows. Pictures and predictions are written into the folder `media`.

    Raises:
        OSError: `media` cannot be written.
    """
    return Content(
        summary=summary(runs),
        tables={"samples": samples_table(runs)},
        images=pictures(lambda: _images(runs, media)),
        files=[_predictions(runs, media)],
        failed=any(run.status.get("status") not in ("done", "partial") for run in runs),
    )


def summary(runs: Sequence[StoredRun]) -> dict[str, Value]:
    """Return the means over all samples, how many there are, and how the runs ended."""
    values: dict[str, Value] = {"recorded": 0, "oom": 0, "failed": 0}
    for row in history(runs):
        values |= row.values
    for key in ("recorded", "oom", "failed"):
        values[key] = int(cast(float, values[key]))
    states = [str(run.status.get("status", "running")) for run in runs]
    worst = ("failed", "running", "preempted", "partial", "done")
    values["status"] = next((state for state in worst if state in states), "running")
    values["samples"] = sum(run.manifest["num_samples"] for run in runs)
    values["datasets"] = len(runs)
    for category, scores in _categories(runs, values).items():
        values[f"category/{category}"] = sum(scores) / len(scores)
    return values


def _categories(runs: Sequence[StoredRun], values: Mapping[str, Value]) -> dict[str, list[float]]:
    """Return the scores of the datasets by category, for suites that have categories."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        place, score = run.manifest["part"], values.get(f"score/{name(run)}")
        if place and place["category"] and isinstance(score, float):
            scores.setdefault(place["category"], []).append(score)
    return scores


def samples_table(runs: Sequence[StoredRun]) -> Table:
    """Return the table of all samples, by dataset and id."""
    rows = [_row(run, record) for run in sorted(runs, key=name) for record in run.samples]
    return Table(COLUMNS, rows)


def _row(run: StoredRun, record: Record) -> list[Value]:
    facts: Mapping[str, Any] = record
    timings: Mapping[str, Any] = facts.get("timings", {})
    scores: Mapping[str, float] = facts.get("scores", {})
    kept, span = facts.get("kept_mean"), facts.get("span")
    full = facts.get("kv_bytes_full")
    held = held_bytes(cast(AnsweredRecord, record)) if full else None
    row: dict[str, Value] = {
        "id": _text(record["id"]),
        "dataset": name(run),
        "status": record["status"],
        "score": scores.get(run.manifest["headline"]),
        "scores": json.dumps(scores, sort_keys=True) if scores else None,
        "prompt_tail": _text(facts.get("prompt_tail")),
        "prediction": _text(facts.get("prediction")),
        "answers": _text(json.dumps(facts.get("answers", []), ensure_ascii=False)),
        "error": _text(record.get("error")),
        "prompt_tokens": facts.get("prompt_tokens"),
        "new_tokens": facts.get("new_tokens"),
        "finish_reason": facts.get("finish_reason"),
        "kept": kept,
        "kept_share": None if kept is None or not span else kept / span,
        "held_bytes": held,
        "held_share": held / full if held is not None and full else None,
        **{key: timings.get(key) for key in TIMINGS},
    }
    numbers = ("score", "kept", *TIMINGS)  # a column of W&B has one type, and 1 and 1.0 are two
    return [float(row[key]) if key in numbers and row[key] is not None else row[key] for key in COLUMNS]  # type: ignore[arg-type]


def _text(value: object) -> str | None:
    """Return a text that any encoder takes: half surrogates, which models do produce, become question marks."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def pictures(draw: Callable[[], dict[str, Path]]) -> dict[str, Path]:
    """Return what `draw` draws. A picture that cannot be drawn must not cost the rows: then there is none."""
    try:
        return draw()
    except Exception as error:  # of matplotlib, of a full disk, of a store that nobody has thought of
        log.warning("pictures: %s", one_line(f"{type(error).__name__}: {error}"))
        return {}


def _images(runs: Sequence[StoredRun], media: Path) -> dict[str, Path]:
    """Draw the pictures of an entry: a needle heatmap where the samples are a grid, and what each KV head kept."""
    from kvbench.report.figures.kept_heads import head_shares, kept_heads
    from kvbench.report.figures.needle import heatmap
    from kvbench.report.figures.needle_grid import has_grid
    from kvbench.report.runs import title

    media.mkdir(parents=True, exist_ok=True)
    images = {}
    for run in runs:
        if has_grid(run) and run.answered:
            images[f"needle/{name(run)}"] = heatmap(run, media / f"{name(run)}.png")
    shares = head_shares([record for run in runs for record in run.samples])
    if shares is not None and float(shares.min()) < 1:
        label = runs[0].manifest["label"]
        for path in kept_heads({title(runs[0]): shares}, label["method"], label["model"], media / "kept_heads.png"):
            images[path.stem] = path
    return images


def _predictions(runs: Sequence[StoredRun], media: Path) -> Path:
    """Write all answers as JSON lines. The same answers give the same bytes, of which W&B keeps one version."""
    lines = []
    for run in sorted(runs, key=name):
        for record in run.samples:
            facts: Mapping[str, Any] = record
            keys = ("id", "status", "error", "prediction", "answers", "scores", "meta")
            line = {"dataset": name(run)} | {key: facts[key] for key in keys if key in facts}
            lines.append(json.dumps(line, sort_keys=True) + "\n")
    path = media / "predictions.jsonl"
    media.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(lines))
    return path
