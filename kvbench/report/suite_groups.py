"""Rules for the runs of suites that share a table, a column and a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from kvbench.report.runs import AnyRun, Described, order, setting
from kvbench.store import Manifest, SuitePlace


class SuiteSetting(TypedDict):
    """The setting that the runs in one table share; data and scoring are a column's own."""

    suite: str
    model: list[object]  # label, identity
    dtype: str
    device: str
    protocol: dict[str, object]


class ColumnSetting(TypedDict):
    """The setting that the runs in one column share."""

    name: str
    dataset: object
    scoring: dict[str, object]


def suite_setting(manifest: Manifest) -> SuiteSetting:
    """Return what a run of a suite shares with the others in its table."""
    shared = setting(manifest)
    return {
        "suite": place_of(manifest)["suite"],
        "model": shared["model"],
        "dtype": shared["dtype"],
        "device": shared["device"],
        "protocol": {key: value for key, value in shared["protocol"].items() if key != "dataset"},
    }


def column_setting(manifest: Manifest) -> ColumnSetting:
    """Return what a run of a suite shares with the others in its column."""
    shared = setting(manifest)
    dataset = shared["protocol"].get("dataset")
    return {"name": place_of(manifest)["name"], "dataset": dataset, "scoring": shared["scoring"]}


def place_of(manifest: Manifest) -> SuitePlace:
    """Return the place of a run in its suite; there must be one."""
    place = manifest["part"]
    assert place is not None, "a run of a suite"
    return place


def suite_groups(runs: Iterable[AnyRun]) -> list[list[AnyRun]]:
    """Sort runs into tables. Where a column has several data or scorings, that of most runs is in the first table."""
    by_setting: dict[str, dict[str, list[AnyRun]]] = {}
    for run in runs:
        columns = by_setting.setdefault(json.dumps(suite_setting(run.manifest), sort_keys=True), {})
        columns.setdefault(json.dumps(column_setting(run.manifest), sort_keys=True), []).append(run)
    groups: list[list[AnyRun]] = []
    for key in sorted(by_setting):
        tables: list[list[list[AnyRun]]] = []  # of each table, the runs of each column
        for _, same in sorted(by_setting[key].items(), key=lambda item: (-len(item[1]), item[0])):
            fitting = next((table for table in tables if _fits(same[0], [column[0] for column in table])), None)
            if fitting is None:
                tables.append([same])
            else:
                fitting.append(same)
        groups += [[run for column in table for run in column] for table in tables]
    return [sorted(group, key=_order) for group in groups]


def _order(run: Described) -> tuple[object, ...]:
    place = place_of(run.manifest)
    return (*order(run)[:3], place["order"], place["name"])


def row_key(run: Described) -> str:
    """Return a key that is equal for the runs of one row: the same method and dials, budget, seed and backend."""
    return key_of_row(run.manifest)


def key_of_row(manifest: Manifest) -> str:
    """Return the `row_key` of the run with this manifest."""
    identity = manifest["identity"]
    return json.dumps([identity["method"], identity["budget"], identity["seed"], identity["backend"]], sort_keys=True)


def _fits(run: Described, table: Sequence[Described]) -> bool:
    """Return True if a run's column may stand in a table, given a run of each column of it.

    Its name has to be new there, and its scoring must contradict none.
    """
    own = column_setting(run.manifest)
    ours = _leaves(own["scoring"])
    for other in (column_setting(other.manifest) for other in table):
        theirs = _leaves(other["scoring"])
        if other["name"] == own["name"] or any(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()):
            return False
    return True


def _leaves(value: object, path: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {path: value} if path else {}
    return {leaf: at for key in value for leaf, at in _leaves(value[key], f"{path}/{key}").items()}
