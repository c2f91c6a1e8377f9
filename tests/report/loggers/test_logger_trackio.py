"""Trackio on this machine: every row, score and image, once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.helpers.fake_runs import FakeRun, store_run
from tests.helpers.logged_stores import needle_runs, order, run_order, write_store


def metrics(outputs: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the logged rows by run name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with sqlite3.connect(outputs / "trackio" / "kvbench.db") as connection:
        for name, text in connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id"):
            rows.setdefault(name, []).append(json.loads(text))
    return rows


def test_rows_scores_and_images_are_there_once(tmp_path: Path) -> None:
    write_store(tmp_path, needle_runs())
    for _ in range(2):
        done = run_order(order(tmp_path, trackio=True))
        assert done.returncode == 0, done.stderr
        logged = metrics(tmp_path)
        assert len(logged) == 3, "two variants and their sweep"
        (rows,) = [rows for name, rows in logged.items() if name.startswith("needle snapkv")]
        assert [row["recorded"] for row in rows] == [*range(1, 10), 9]
        final = rows[-1]
        assert len(final["samples"]["_value"]) == 9
        assert final["status"] == "done" and final["oom"] == 1
        picture = tmp_path / "trackio" / "media" / final["needle/needle"]["file_path"]
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert list((tmp_path / "trackio" / "artifacts").rglob("*"))


def test_more_samples_replace_the_run(tmp_path: Path) -> None:
    run = needle_runs()[1]
    store_run(tmp_path / "runs", run, samples=5)
    assert run_order(order(tmp_path, trackio=True)).returncode == 0
    store_run(tmp_path / "runs", FakeRun(run.manifest, run.samples[5:]))
    assert run_order(order(tmp_path, trackio=True)).returncode == 0
    (rows,) = metrics(tmp_path).values()
    assert [row["recorded"] for row in rows] == [*range(1, 10), 9]


def test_both_loggers_together(tmp_path: Path) -> None:
    from tests.helpers.wandb_log import read_logged

    write_store(tmp_path, needle_runs()[:1])
    assert run_order(order(tmp_path, wandb={"mode": "offline"}, trackio=True)).returncode == 0
    assert len(read_logged(tmp_path)) == 1 and len(metrics(tmp_path)) == 1
