"""Runs as arrays: the fast way and the slow way give the same, and what is unusual goes the slow way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvbench import store
from kvbench.store import load_numbers, load_runs, numbers_of
from kvbench.store.columns import Columns, read_columns
from tests.helpers.fake_runs import make_run, store_run
from tests.helpers.store_runs import open_run, record
from tests.helpers.synthetic_store import write_store


def assert_equal(ours: Columns, theirs: Columns) -> None:
    assert (ours.ids, ours.context, ours.bucket) == (theirs.ids, theirs.context, theirs.bucket)
    assert ours.scores.keys() == theirs.scores.keys() and (ours.state == theirs.state).all()
    pairs = [(ours.scores[key], theirs.scores[key]) for key in ours.scores]
    pairs += [(ours.measured[key], theirs.measured[key]) for key in ours.measured]
    for a, b in [*pairs, (ours.length, theirs.length), (ours.depth, theirs.depth)]:
        np.testing.assert_array_equal(a, b)


def test_both_ways_read_the_same(tmp_path: Path) -> None:
    write_store(tmp_path, runs=12, samples=10, needle=True, failures=0.2)
    with_state = make_run("snapkv", "0.2", None)
    for sample in with_state.samples[::2]:  # the others stand for records of earlier versions
        sample["held_bytes"] = sample["kv_bytes"] + 8
    store_run(tmp_path, with_state)
    for run in load_runs(tmp_path):
        fast = read_columns([run.path / "samples.jsonl"])
        assert fast is not None
        assert_equal(fast, numbers_of(run).columns)
    numbers = load_numbers(tmp_path)
    assert [run.path for run in numbers] == [run.path for run in load_runs(tmp_path)]
    assert [run.status for run in numbers] == [run.status for run in load_runs(tmp_path)]
    ids = {id(run.columns.ids) for run in numbers if run.manifest["label"]["benchmark"] == "synthetic-dataset00"}
    assert len(ids) == 1, "runs with the same samples share their ids"


UNUSUAL: dict[str, dict[str, Any]] = {
    "a number as a text": {"kv_bytes": "20"},
    "below its range": {"span": 0},
    "above its range": {"kv_bytes": 2**60},
    "bytes held as a text": {"held_bytes": "20"},
    "a score that is a text": {"scores": {"recall": "1.0"}},
    "no scores": {"scores": None},
    "no headline": {"scores": {"other": 1.0}},
    "no timings": {"timings": None},
    "answers that are none": {"answers": "7"},
    "no prediction": {"prediction": None},
    "another status": {"status": "fine"},
    "a long id": {"id": "x" * 513},
}


@pytest.mark.parametrize("fault", UNUSUAL)
def test_a_damaged_record_is_refused_as_by_the_slow_way(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(tmp_path) as run:
        for name in ("a", "b"):
            run.append(record(name))
        folder = run.path
    lines = (folder / "samples.jsonl").read_text().splitlines()
    changed = json.loads(lines[1]) | UNUSUAL[fault]
    (folder / "samples.jsonl").write_text("\n".join([lines[0], json.dumps(changed)]) + "\n")
    assert read_columns([folder / "samples.jsonl"]) is None or fault == "no headline"
    refused = len(load_runs(tmp_path)) == 0
    messages = list(caplog.messages)
    caplog.clear()
    assert (len(load_numbers(tmp_path)) == 0) == refused and caplog.messages == messages


@pytest.mark.parametrize("text", ["", "{", '{"id": "b"', "null\n", "\n"])
def test_torn_files_are_read_as_by_the_slow_way(text: str, tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.append(record("a"))
        folder = run.path
    with open(folder / "samples.jsonl", "a") as file:
        file.write(text)
    slow, fast = load_runs(tmp_path), load_numbers(tmp_path)
    assert len(slow) == len(fast)
    for one_by_one, at_once in zip(slow, fast, strict=True):
        assert_equal(at_once.columns, numbers_of(one_by_one).columns)


def test_a_repeated_id_shards_and_new_scores_are_merged(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.append(record("a", status="oom"))
        run.append(record("b"))
        folder = run.path
    with open(folder / "samples.jsonl", "a") as file:
        file.write(json.dumps(record("a")) + "\n")
    (folder / "samples-1of2.jsonl").write_text(json.dumps(record("c")) + "\n")
    [numbers] = load_numbers(tmp_path)
    assert numbers.columns.ids == ("a", "b", "c") and not numbers.columns.state.any()
    answers = store.load_run(folder).answered
    store.write_scores(folder, {"metrics": {"recall": 2}}, {"a": {"recall": 0.25}}, answers)
    [numbers] = load_numbers(tmp_path)
    assert numbers.columns.scores["recall"].tolist() == [0.25, 1.0, 1.0]
    assert numbers.manifest["scoring"] == {"metrics": {"recall": 2}}


def test_records_whose_scores_have_different_names(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.append(record("a"))
        run.append(record("b", scores={"recall": 0.0, "a name, with: signs": 0.5}))
        run.append(record("c", meta={"scores": {"trap": 1}}))
    [fast], [slow] = load_numbers(tmp_path), load_runs(tmp_path)
    assert_equal(fast.columns, numbers_of(slow).columns)
    assert set(fast.columns.scores) == {"recall", "a name, with: signs"}
