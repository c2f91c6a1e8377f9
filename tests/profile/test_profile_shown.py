"""Tables and figures of the profile, from invented records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvbench.profile import figure, table


def record(method: str, budget: int | None, context: int, batch: int = 1, **fields: Any) -> dict[str, Any]:
    step = None if fields.get("status") == "oom" else context * batch * (0.5 if budget else 1.0) / 1000
    return {
        "id": f"{method}-{budget}-{context}-{batch}-{fields}", "method": method, "dials": {}, "budget": budget,
        "full_cache": budget is None,
        "context": context, "batch": batch, "kernel": "torch", "status": "ok", "device": {"name": "chip"},
        "tpot_s": step, "peak_bytes": step and int(step * 2**30), "base_bytes": 2**20,
    } | fields  # fmt: skip


def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, records: Sequence[Any]) -> tuple[Any, Path | None]:
    """Draw the figure without writing it. Return its axes, by row and column, and its path."""
    pictures: list[Any] = []
    monkeypatch.setattr(figure.figure, "save", lambda picture, path, stamp: pictures.append(picture) or path)
    path = figure.draw(table.rows(records), "H", "D", tmp_path / "x.png", without_base=False)
    return (None if path is None else pictures[0].axes), path


def series(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """Return the points of every line, by its label."""
    return {
        line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_marker() != "x"
    }


def test_the_figure_has_a_line_per_method_and_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = [
        record(method, budget, context, batch)
        for context in (1024, 512)
        for batch in (16, 1)
        for method, budget in (("snapkv", 64), ("snapkv", 128), ("fullkv", None))
    ]
    axes, _ = drawn(monkeypatch, tmp_path, records)
    assert [a.get_title() for a in axes[:2]] == ["batch 1", "batch 16"] and len(axes) == 4
    assert set(series(axes[0])) == {"fullkv", "snapkv, 64", "snapkv, 128"}
    assert series(axes[0])["fullkv"] == [(512, 512), (1024, 1024)]  # ms
    assert series(axes[1])["snapkv, 64"] == [(512, 4096), (1024, 8192)]
    assert series(axes[2])["fullkv"][1] == (1024, pytest.approx(1.024))
    assert "GiB" in axes[2].get_ylabel() and axes[1].get_legend().get_texts()[0].get_text() == "fullkv"
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes[0].lines}
    assert len(set(styles.values())) == 3
    for panel in axes:
        low, high = panel.get_ylim()
        assert low == 0 and all(y <= high for points in series(panel).values() for _, y in points)


def test_out_of_memory_is_a_cross(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    records = [record("fullkv", None, 512), record("fullkv", None, 1024, status="oom"), record("h2o", 64, 512)]
    axes, _ = drawn(monkeypatch, tmp_path, [*records, record("h2o", 64, 1024)])
    crosses = [list(line.get_xdata()) for line in axes[0].lines if line.get_marker() == "x"]
    assert crosses == [[1024]] and series(axes[0])["fullkv"] == [(512, 512)]


def test_batches_are_the_axis_where_there_is_one_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    axes, _ = drawn(monkeypatch, tmp_path, [record("fullkv", None, 512, batch) for batch in (1, 4)])
    assert axes[0].get_title() == "context 512" and axes[1].get_xlabel() == "Batch (rows)"
    assert drawn(monkeypatch, tmp_path, [record("fullkv", None, 512)]) == (None, None)


def test_a_figure_is_drawn_once(tmp_path: Path) -> None:
    rows = table.rows([record("fullkv", None, 512), record("fullkv", None, 1024)])
    path = figure.draw(rows, "H", "D", tmp_path / "x.png", without_base=True)
    assert path is not None
    before = path.stat().st_mtime_ns
    figure.draw(rows, "H", "D", path, without_base=True)
    assert path.stat().st_mtime_ns == before


def test_ratios_are_to_the_full_cache_at_the_same_place() -> None:
    records = [record("snapkv", 64, 512, 4), record("fullkv", None, 512, 1), record("fullkv", None, 512, 4)]
    rows = table.rows(records)
    assert [(row["name"], row["batch"]) for row in rows] == [("fullkv", 1), ("fullkv", 4), ("snapkv", 4)]
    assert rows[2]["speedup"] == 2 and rows[2]["peak_share"] == pytest.approx(0.5)
    alone = table.rows([record("snapkv", 64, 512), record("fullkv", None, 512, status="oom")])
    assert alone[1]["speedup"] is None and table.cells(alone[1])["×full"] == "–"


def test_dials_are_named_only_where_methods_differ_in_them() -> None:
    records = [record("snapkv", 64, 512, dials={"window": w, "sinks": 0}) for w in (8, 16)]
    assert [row["name"] for row in table.rows(records)] == ["snapkv window=8", "snapkv window=16"]
    assert [row["name"] for row in table.rows(records[:1])] == ["snapkv"]


def test_the_full_cache_is_known_by_its_mark_and_not_by_its_name() -> None:
    plain = record("my_base", None, 512)
    quantised = record("fullkv", None, 512, full_cache=False, tpot_s=0.256)
    rows = table.rows([quantised, plain])
    assert [(row["name"], row["speedup"]) for row in rows] == [("my_base", 1), ("fullkv", 2)]
