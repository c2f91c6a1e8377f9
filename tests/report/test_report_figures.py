"""Heatmaps and the command line of the report, on synthetic runs whose numbers are known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from kvbench import store
from kvbench.report.__main__ import main
from kvbench.report.figures.figure import png_alone
from kvbench.report.figures.needle import _places, heatmap, heatmaps
from kvbench.report.figures.needle_grid import grid, has_grid
from kvbench.report.present import present
from kvbench.report.runs import order, title
from tests.helpers.fake_runs import DEPTHS, LENGTHS, make_run, out_of_memory, store_run

PNG = b"\x89PNG\r\n\x1a\n"


# ---- heatmaps ------------------------------------------------------------------------------------


def test_grid_averages_seeds_and_keeps_missing_cells_on_the_axes() -> None:
    run = make_run("snapkv", "0.2", 1.0)
    second = {**run.samples[0], "id": "again", "scores": {"recall": 0.0, "rouge1": 0.0}}
    run.samples.append(second)
    out_of_memory(run, 4)
    del run.samples[6:9]  # the last length has not been run yet
    cells = grid(run, "recall")
    assert (cells.lengths, cells.depths) == (LENGTHS, DEPTHS)
    assert cells.score[500, 0] == 0.5 and cells.score[1000, 0] == 1.0
    assert cells.oom == {(1000, 50)} and not any(length == 2000 for length, _ in cells.score)


def test_heatmaps_are_written(tmp_path: Path) -> None:
    runs = [make_run(method, "full", 1.0) for method in ("fullkv", "kivi")]
    runs += [make_run(method, budget, None) for method in ("snapkv", "ada") for budget in ("0.2", "128")]
    out_of_memory(runs[2], 1)
    del runs[3].samples[5:]
    single = heatmap(runs[2], tmp_path / "new" / "one.png")
    [several] = heatmaps(runs, tmp_path / "grid.png", "rouge1")
    for path in (single, several):
        assert path.read_bytes().startswith(PNG)
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_a_png_alone_leaves_no_old_pdf(tmp_path: Path) -> None:
    run = make_run("snapkv", "0.2", 1.0)
    path = heatmap(run, tmp_path / "one.png")
    pdf = path.with_suffix(".pdf")
    with png_alone():
        heatmap(run, path, palette="field")
        assert not pdf.exists() and path.read_bytes().startswith(PNG)
    heatmap(run, path, palette="field")
    assert pdf.exists()


def test_panels_are_methods_by_budgets_with_budgetless_runs_on_the_left() -> None:
    names = [("fullkv", "full"), ("kivi", "full"), ("ada", "0.2")]
    names += [("snapkv", budget) for budget in ("0.2", "16", "128")]
    runs = sorted((make_run(*name, 1.0) for name in reversed(names)), key=order)
    assert dict(zip(names, _places(runs, [name for name, _ in names]), strict=True)) == {
        ("fullkv", "full"): (0, 0), ("kivi", "full"): (1, 0), ("ada", "0.2"): (0, 1),
        ("snapkv", "0.2"): (1, 1), ("snapkv", "16"): (1, 2), ("snapkv", "128"): (1, 3),
    }  # fmt: skip
    twins = [make_run("snapkv", "0.2", 1.0, hash=letter * 64) for letter in "ab"]
    assert _places([*twins, make_run("tova", "0.2", 1.0)], ["snapkv a", "snapkv b", "tova"]) == [(0, 0), (1, 0), (2, 0)]


def test_drawn_colours_follow_the_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = out_of_memory(make_run("snapkv", "0.2", 1.0), 0)
    run.samples[1]["scores"]["recall"] = 0.0
    seen = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda figure, path, stamp: seen.append(figure) or path)
    heatmap(run, tmp_path / "x.png")
    heatmap(run, tmp_path / "y.png", palette="field")
    axes = seen[0].axes[0]
    mesh = axes.collections[0]
    assert mesh.get_clim() == (0, 1) and axes.yaxis_inverted()
    grey = [sum(mesh.cmap(step / 10)[:3]) for step in range(11)]
    assert grey == sorted(grey), "lighter with the score, so that it can be read in grey"
    field = seen[1].axes[0].collections[0].cmap
    assert field(0.0)[:3] == pytest.approx([0xF0 / 255, 0x49 / 255, 0x6E / 255], abs=0.01)
    assert field(1.0)[:3] == pytest.approx([0x0C / 255, 0xD7 / 255, 0x9F / 255], abs=0.01)
    values = mesh.get_array()
    assert values.mask[0, 0] and values[1, 0] == 0.0 and values[2, 2] == 1.0  # rows are depths, 0 on top
    texts = {text.get_position(): text for text in axes.texts}
    words = [text.get_text() for text in axes.texts]
    assert words[0] == "OOM" and words[3] == "0.00" and words.count("1.00") == 7
    inks = {text.get_text(): text.get_color() for text in texts.values()}
    assert inks["0.00"] == "white" != inks["1.00"], "text stands out from its cell"
    assert axes.get_ylabel() == "Needle depth (%)"
    assert "Context length (tokens)" in [text.get_text() for text in seen[0].texts]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["500", "1000", "2000"]


def test_a_dense_grid_is_drawn_as_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lengths, depths = list(range(1000, 8001, 100)), [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    run = out_of_memory(make_run("snapkv", "0.2", None, lengths=lengths, depths=depths), 3)
    seen = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda figure, path, stamp: seen.append(figure) or path)
    heatmap(run, tmp_path / "x.png")
    heatmaps([run, make_run("h2o", "0.2", 1.0, lengths=lengths, depths=depths)], tmp_path / "y.png")
    for figure, step in zip(seen, (200, 500), strict=True):  # as many labels as fit
        axes = figure.axes[-2]  # the lowest panel; the last axes are the colour bar
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == [str(length) for length in range(1000, 8001, step)]
        assert {label.get_rotation() for label in labels} == {45.0}
        assert [label.get_text() for label in axes.get_yticklabels()] == [str(depth) for depth in depths]
        assert [text.get_text() for text in axes.texts if text.get_text() in ("×", "OOM", "1.00", "0.00")] == ["×"]
        lines = [line for line in axes.collections if hasattr(line, "get_segments")]
        assert [len(line.get_segments()) for line in lines] == [len(depths) - 1, len(lengths) - 1]
        assert axes.collections[0].get_clim() == (0, 1) and axes.yaxis_inverted()


def test_samples_without_depths_have_no_heatmap(tmp_path: Path) -> None:
    run = make_run("snapkv", "0.2", 1.0)
    for sample in run.samples:
        sample["meta"] = {}
    assert not has_grid(run)
    with pytest.raises(ValueError, match=r"^snapkv, 20% budget: its samples carry no length and depth"):
        heatmap(run, tmp_path / "x.png")


# ---- command line --------------------------------------------------------------------------------


def test_command_line_writes_a_table_and_heatmaps_per_group(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for question in ("aware", "agnostic"):
        for name in (("fullkv", "full"), ("snapkv", "0.2")):
            store_run(tmp_path / "runs", make_run(*name, 1.0, question=question))
    assert main([str(tmp_path / "runs"), "--benchmark", "needle", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| snapkv") == 2 == printed.count("| fullkv")
    assert "question-aware" in printed and "question-agnostic" in printed
    folders = sorted((tmp_path / "out").glob("[!.]*"))
    assert len(folders) == 2
    for folder in folders:
        names = [path.name.split("-")[0] for path in folder.iterdir()]
        assert names.count("fullkv") == names.count("snapkv") == 2, "a PNG and a PDF each"
        assert {"overview.png", "scores.csv", "table.json", "table.md"} <= set(names)
        lines = (folder / "table.md").read_text().splitlines()
        assert all(line in printed for line in lines if not line.startswith("- ")), "all but the footnotes"
        assert len(json.loads((folder / "table.json").read_text())["rows"]) == 2


def test_a_later_run_adds_to_the_report_and_is_compared_to_the_full_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in (("fullkv", "full"), ("snapkv", "0.2"), ("h2o", "0.2")):
        store_run(tmp_path / "runs", make_run(*name, 1.0))
    runs = store.load_runs(tmp_path / "runs")
    (h2o,) = [run for run in runs if run.manifest["label"]["method"] == "h2o"]
    present([h2o], tmp_path / "out", store=tmp_path / "runs")
    printed = capsys.readouterr().out
    assert "| h2o" in printed and "| fullkv" in printed and "| snapkv" not in printed
    (folder,) = (tmp_path / "out").glob("[!.]*")
    assert len(json.loads((folder / "table.json").read_text())["rows"]) == 3


def test_runs_that_differ_in_a_dial_are_named_by_it() -> None:
    runs = [make_run("snapkv", "64", 1.0) for _ in range(2)]
    for run, window in zip(runs, (8, 16), strict=True):
        run.manifest["identity"] = {**run.manifest["identity"], "method": {"name": "snapkv", "window": window}}
    assert [title(run, runs) for run in runs] == ["snapkv window=8, 64 tokens", "snapkv window=16, 64 tokens"]
    assert title(runs[0]) == "snapkv, 64 tokens"


def test_command_line_reports_mistakes_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path), "--benchmark", "needle"]) == 2
    assert re.fullmatch(r".*: no runs of benchmark needle there; .*\n", capsys.readouterr().err)
    store_run(tmp_path, make_run("snapkv", "0.2", 1.0))
    assert main([str(tmp_path), "--metric", "bleu"]) == 2
    assert capsys.readouterr().err == "kvbench: --metric bleu: these runs hold recall, rouge1\n"


def test_a_figure_is_drawn_again_only_when_it_would_change(tmp_path: Path) -> None:
    runs = [make_run("snapkv", "0.2", 1.0), make_run("fullkv", "full", 1.0)]
    for draw in (lambda: heatmap(runs[0], tmp_path / "one.png"), lambda: heatmaps(runs, tmp_path / "all.png")[0]):
        path = draw()
        first = path.stat().st_mtime_ns
        assert draw().stat().st_mtime_ns == first
        runs[0].samples[0]["scores"]["recall"] -= 0.25
        second = draw().stat().st_mtime_ns
        assert second > first
        path.write_bytes(b"torn")
        assert draw().read_bytes().startswith(PNG)


def names_in(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_report_leaves_nothing_of_runs_that_are_gone(tmp_path: Path) -> None:
    """Figures of a run, and the folder of a table. What the user put there stays."""
    stored, out = tmp_path / "runs", tmp_path / "out"
    for method in ("fullkv", "snapkv", "ada"):
        store_run(stored, make_run(method, "full" if method == "fullkv" else "0.2", None))
    store_run(stored, make_run("snapkv", "0.2", 1.0, dtype="bfloat16"))
    assert main([str(stored), "--out", str(out)]) == 0
    assert len(list(out.glob("*/table.md"))) == 2
    notes = next(out.glob("*/table.md")).with_name("notes.md")
    notes.write_text("mine")
    for folder in sorted({file.parent for file in stored.rglob("manifest.json")}):
        if "ada" in folder.name or '"bfloat16"' in (folder / "manifest.json").read_text():
            shutil.rmtree(folder)
    assert main([str(stored), "--out", str(out)]) == 0
    assert main([str(stored), "--out", str(tmp_path / "fresh")]) == 0
    assert names_in(out) == names_in(tmp_path / "fresh") | {str(notes.relative_to(out))}
    before = {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    assert main([str(stored), "--out", str(out)]) == 0
    assert before == {file: file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def test_the_report_of_a_command_leaves_other_tables_alone(tmp_path: Path) -> None:
    """It covers the tables of its own runs alone. Of these, figures of runs that are gone go."""
    out = tmp_path / "reports"
    for run in (make_run("snapkv", "0.2", None), make_run("ada", "0.2", None)):
        store_run(tmp_path / "runs", run)
    store_run(tmp_path / "other", make_run("snapkv", "0.2", 1.0, dtype="bfloat16"))
    present(store.load_numbers(tmp_path / "other"), out, pdf=False)
    runs = store.load_numbers(tmp_path / "runs")
    present(runs, out, pdf=False)
    before = names_in(out)
    present([run for run in runs if "snapkv" in run.path.name], out, pdf=False)
    gone = before - names_in(out)
    assert len(list(out.glob("*/table.md"))) == 2
    assert gone and all(Path(name).name.startswith("ada-") for name in gone)
