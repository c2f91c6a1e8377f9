"""Published scores, read from conf/reference_scores: one YAML file per published table, in the form of `Table`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import yaml

from kvbench.common.paths import conf_dir
from kvbench.store.validate import check


class Source(TypedDict):
    """The origin of the numbers: the paper, the file they are in, how they were read, and how they were checked."""

    paper: str
    place: str
    read: str
    checked: str


class Row(TypedDict):
    """One row, in points. A budget of null is one that the source does not state."""

    method: str
    budget: str | float | None
    mean: NotRequired[float]
    scores: NotRequired[list[float]]


class Model(TypedDict):
    """The rows of a model; `command` has the overrides that run them, else `why_not` says why kvbench cannot."""

    hub: str
    command: NotRequired[str]
    why_not: NotRequired[str]
    rows: list[Row]


class Table(TypedDict):
    """A published table.

    `suite` or `benchmark` says where kvbench has these scores; `columns` are the datasets of `scores` and of the mean.
    `settings` has what our run must have, such as protocol.question or dtype; a list holds values of which each will
    do. What the source does not state is not there. `methods` has for each printed name the method of kvbench (name)
    and its dials. `tolerance` is in points: of the mean, and of a column.
    """

    source: Source
    suite: NotRequired[str]
    benchmark: NotRequired[str]
    columns: NotRequired[list[str]]
    tolerance: dict[str, float]
    settings: dict[str, object]
    methods: dict[str, dict[str, object]]
    models: dict[str, Model]


@dataclass(frozen=True)
class Entry:
    """One published row with all that it is compared by.

    Attributes:
        table: the name of the file. group: suite, or a benchmark that stands alone.
        model, label: the model and the method as they are printed.
        method, dials: the method of kvbench and the dials that the source states.
        budget: the label that a run has; None if the source states none.
        mean: of the columns if they are given, else as printed. printed: the printed mean; None without one.
        settings: path → accepted values, those of the model and the dials included.
        command: overrides that run the row, dials included; None if kvbench cannot, and then `why_not` says why.
    """

    table: str
    source: Source
    group: str
    columns: tuple[str, ...]
    model: str
    label: str
    method: str
    dials: Mapping[str, object]
    budget: str | None
    mean: float
    printed: float | None
    scores: Mapping[str, float]
    settings: Mapping[str, tuple[object, ...]]
    tolerance: Mapping[str, float]
    command: str | None
    why_not: str | None


def load_references(folder: Path | None = None) -> list[Entry]:
    """Return the rows of all tables in `folder` (default: conf/reference_scores), in the order of the files.

    Raises:
        ValueError: a file that does not have the form of `Table`; the message names the file and the key.
    """
    folder = folder or conf_dir() / "reference_scores"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ValueError(f"{folder}: no published tables (*.yaml) there")
    return [entry for file in files for entry in _read(file)]


def _read(file: Path) -> list[Entry]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        check(content, Table)
        return list(_entries(file.stem, cast(Table, content)))
    except yaml.YAMLError:
        raise ValueError(f"{file}: not valid YAML") from None
    except KeyError as error:
        raise ValueError(f"{file}: {error.args[0]}: not among methods") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _entries(name: str, table: Table) -> Iterator[Entry]:
    group = table.get("suite") or table.get("benchmark")
    columns = tuple(table.get("columns", ()))
    if not group:
        raise ValueError("suite: missing; name the suite, or a benchmark that stands alone")
    for label, model in table["models"].items():
        for row in model["rows"]:
            method = dict(table["methods"][row["method"]])
            kept_per = {"kept per": method.pop("kept per", "KV head")}
            kvbench_name = str(method.pop("name"))
            scores = _scores(columns, row)
            mean = sum(scores.values()) / len(scores) if scores else row.get("mean")
            if mean is None:
                raise ValueError(f"models.{label}: a row of {row['method']} has neither mean nor scores")
            dials = {f"method.{dial}": value for dial, value in method.items()}
            # without compression all caches are the same
            expected = {"model": model["hub"], **dials, **({} if row["budget"] == "full" else kept_per)}
            yield Entry(
                table=name,
                source=table["source"],
                group=group,
                columns=columns,
                model=label,
                label=row["method"],
                method=kvbench_name,
                dials=dials,
                budget=None if row["budget"] is None else str(row["budget"]),
                mean=mean,
                printed=row.get("mean"),
                scores=scores,
                settings={
                    path: tuple(value) if isinstance(value, list) else (value,)
                    for path, value in {**expected, **table["settings"]}.items()
                },
                tolerance=table["tolerance"],
                command=model.get("command"),
                why_not=model.get("why_not"),
            )


def _scores(columns: tuple[str, ...], row: Row) -> dict[str, float]:
    values = row.get("scores", [])
    if values and len(values) != len(columns):
        raise ValueError(f"rows: {row['method']} has {len(values)} scores for {len(columns)} columns")
    return dict(zip(columns, values, strict=True)) if values else {}
