"""The parts that all exports share: runs read one at a time, clean texts, and the names of models."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kvbench.common.text import one_line
from kvbench.store import StoredRun, load_run

log = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Written:
    """The numbers and the files of what an export wrote.

    Attributes:
        left_out: number of runs that the format cannot hold.
        files: those whose names depend on the runs.
    """

    runs: int
    samples: int
    left_out: int = 0
    files: tuple[Path, ...] = ()

    def __add__(self, other: Written) -> Written:
        return Written(
            self.runs + other.runs,
            self.samples + other.samples,
            self.left_out + other.left_out,
            self.files + other.files,
        )


def read_runs(folders: Iterable[Path]) -> Iterator[StoredRun]:
    """Yield runs, one at a time. One that is damaged is left out with a warning."""
    for folder in folders:
        try:
            run = load_run(folder)
        except ValueError as error:
            log.warning("%s; left out", one_line(str(error)))
            continue
        yield run


def clean(text: str) -> str:
    r"""Return a text that UTF-8 can hold: half a surrogate pair, which an answer may end with, becomes "\ud800"."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_text(value: object) -> str:
    """Return a value as canonical JSON that UTF-8 can hold."""
    return clean(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def strings(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as texts: texts as they are, all others as JSON. None is left out."""
    return {
        clean(key): clean(value) if isinstance(value, str) else json_text(value)
        for key, value in sorted(values.items())
        if value is not None
    }


def hub_name(run: StoredRun) -> str | None:
    """Return the owner/name of a model of the Hugging Face hub; None for any other model, or if unknown."""
    try:
        model = run.config.get("model")
    except ValueError as error:
        log.warning("%s", one_line(str(error)))
        return None
    if not isinstance(model, Mapping) or model.get("kind") != "hub":
        return None
    path = model.get("path")
    owner, _, name = path.partition("/") if isinstance(path, str) else ("", "", "")
    return f"{owner}/{name}" if owner and name and "/" not in name else None


def model_id(run: StoredRun) -> str:
    """Return the owner/name of a model of the hub; any other model is called local/<its name>."""
    return hub_name(run) or f"local/{run.manifest['label']['model']}"


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value, in the order of the samples."""
    return sum(values) / len(values)


def metrics_of(run: StoredRun) -> list[str]:
    """Return the names of the scores in a run, the headline first."""
    names = {name for record in run.answered for name in record["scores"]}
    return sorted(names, key=lambda name: (name != run.manifest["headline"], name))
