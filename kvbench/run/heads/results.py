"""The records of a probe's prompts, and the table of head scores that is made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from kvbench.run.asset import RecordFolder, name_of
from kvbench.store.validate import check

_DIGITS = 5  # of a score in the table


class ProbeRecord(TypedDict):
    """One prompt: how much of the answer the model gave, and the scores of its heads, layer by layer.

    `heads` is empty if the prompt does not count.
    """

    id: str
    score: float
    prediction: str
    heads: list[list[float]]


def as_record(value: object) -> ProbeRecord:
    """Return a value of the file as a record. Raises ValueError if it is none."""
    check(value, ProbeRecord)
    return cast(ProbeRecord, value)


def folder_of(outputs: str | Path, setting: Mapping[str, Any]) -> Path:
    """Return the folder for a setting, whether or not it exists."""
    name = name_of(setting, setting["model"]["name"].rpartition("/")[2], setting["probe"]["probe"])
    return Path(outputs).absolute() / "heads" / name


def write_table(results: RecordFolder[ProbeRecord], name: str, counted: Sequence[ProbeRecord]) -> Path:
    """Write `name`.json in HeadKV's format, and name.about.json with its checksum and where it is from.

    Returns the path of the table.
    """
    layers = [layer for record in counted[:1] for layer in record["heads"]]
    table = {
        f"{layer}-{head}": [_rounded(record["heads"][layer][head]) for record in counted]
        for layer, row in enumerate(layers)
        for head in range(len(row))
    }
    text = json.dumps(table, separators=(",", ":")) + "\n"
    return results.write(name, text, prompts=len(results.records), counted=[record["id"] for record in counted])


def _rounded(score: float) -> float | int:
    """Return a score with few digits; zeros, which most are, as short as JSON has them."""
    return float(f"{score:.{_DIGITS}g}") or 0
