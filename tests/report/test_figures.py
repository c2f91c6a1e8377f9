"""Points, fronts, kept tokens and the files of figures, on runs whose numbers are known."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvbench import store
from kvbench.report.__main__ import main
from kvbench.report.figures import draw, figure, gallery
from kvbench.report.figures.bars import bars
from kvbench.report.figures.curve import curve
from kvbench.report.figures.kept_heads import head_shares, kept_heads
from kvbench.report.figures.kept_text import answer_tokens, kept_text
from kvbench.report.figures.needle import heatmap, heatmaps
from kvbench.report.figures.needle_grid import grid, wilson
from kvbench.report.figures.palette import line_styles
from kvbench.report.figures.points import points_of
from kvbench.report.figures.shown import Shown
from kvbench.report.figures.tradeoff import front, size_ticks, tradeoff
from kvbench.store import numbers_of
from tests.helpers.fake_runs import FakeRun, make_run, store_run

ROOT = Path(__file__).resolve().parents[2]


def study() -> list[FakeRun]:
    runs = [make_run("fullkv", "full", 1.0)]
    return runs + [make_run(method, b, None) for method in ("ada", "h2o", "snapkv", "tova") for b in ("0.1", "0.4")]


def test_points_hold_scores_intervals_and_costs() -> None:
    run = make_run("snapkv", "0.2", None)
    scores = [sample["scores"]["recall"] for sample in run.samples]
    [full, point] = points_of([run, make_run("fullkv", "full", 1.0)]).points
    assert full.is_full_cache and (full.low, full.high) == (1.0, 1.0), "no spread, no interval"
    assert point.score == pytest.approx(np.mean(scores)) and 0 <= point.low < point.score < point.high <= 1
    assert (point.kept_share, point.budget) == (pytest.approx(0.2), "0.2")
    assert point.held_mib == pytest.approx(np.mean([s["kv_bytes"] for s in run.samples]) / 2**20)
    assert dict(point.seconds) == {"prefill_s": 1.0, "compress_s": 0.05, "ttft_s": 1.2, "tpot_s": 0.02}


def test_questions_on_one_context_count_as_one_in_intervals() -> None:
    apart, shared = make_run("snapkv", "0.2", None), make_run("snapkv", "0.2", None)
    for sample in shared.samples:
        sample["scores"]["recall"] = float(sample["meta"]["length"] == shared.samples[0]["meta"]["length"])
        sample["context"] = str(sample["meta"]["length"])
    for sample, other in zip(apart.samples, shared.samples, strict=True):
        sample["scores"]["recall"] = other["scores"]["recall"]
    [narrow], [wide] = points_of([apart]).points, points_of([shared]).points
    assert narrow.score == wide.score and wide.low <= narrow.low < narrow.high < wide.high


def test_the_front_holds_what_no_other_beats_in_as_few_bytes() -> None:
    runs = [make_run("a", "0.1", 0.2), make_run("b", "0.1", 0.3), make_run("a", "0.2", 0.3), make_run("b", "0.2", 0.9)]
    runs.append(make_run("fullkv", "full", 0.9))
    assert [(point.method, point.budget) for point in front(points_of(runs).points)] == [("b", "0.1"), ("b", "0.2")]
    runs.append(make_run("c", "0.2", 0.9))
    tied = [(point.method, point.budget) for point in front(points_of(runs).points)]
    assert tied == [("b", "0.1"), ("b", "0.2"), ("c", "0.2")]


@pytest.mark.parametrize("count", [2, 5, 30])
def test_intervals_of_cells_are_wilsons(count: int) -> None:
    from math import sqrt

    for successes in range(count + 1):
        low, high = wilson(successes / count, count)
        for bound in (low, high):  # they solve (p - mean)^2 = z^2 p (1 - p) / n
            assert abs(bound - successes / count) == pytest.approx(1.96 * sqrt(bound * (1 - bound) / count), abs=1e-9)
        assert 0 <= low <= successes / count <= high <= 1


def test_repeated_cells_have_an_interval_and_a_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = make_run("snapkv", "0.2", 1.0)
    run.samples.append({**run.samples[0], "id": "again", "scores": {"recall": 0.0}})
    cells = grid(run, "recall")
    assert cells.interval == {(500, 0): pytest.approx((0.0945, 0.9055), abs=1e-3)}
    seen: list[Any] = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda figure, path, stamp: seen.append(figure) or path)
    heatmap(run, tmp_path / "x.png")
    assert len(seen[0].axes[0].lines) == 2, "the range from 0 to 1, and the interval on it"


def test_rows_that_do_not_fit_go_to_another_page(tmp_path: Path) -> None:
    runs = [make_run(f"m{number}", "0.2", 1.0) for number in range(12)]
    paths = heatmaps(runs, tmp_path / "overview.png")
    assert [path.name for path in paths] == ["overview.png", "overview-2.png"]
    from PIL import Image

    for path in paths:
        with Image.open(path) as picture:
            assert picture.height / 200 <= figure.TALL and picture.width / 200 <= figure.DOUBLE + 0.01


def test_more_methods_than_bands_get_a_panel_each(tmp_path: Path) -> None:
    points = points_of(study())
    names = [path.name for path in curve(points, "needle", "", tmp_path / "budgets.png")]
    assert names == ["budgets.png", "budgets_methods.png"]
    few = points_of(study()[:3])
    assert [path.name for path in curve(few, "needle", "", tmp_path / "few.png")] == ["few.png"]
    assert tradeoff(points_of(study()[:1]), "needle", "", tmp_path / "x.png") == []


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, in place of their files."""
    seen: list[Any] = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda picture, path, stamp: seen.append(picture) or path)
    return seen


def colours(picture: Any) -> dict[str, str]:
    lines = [line for axes in picture.axes for line in axes.lines]
    return {line.get_label(): line.get_color() for line in lines if not line.get_label().startswith("_")}


def test_a_method_has_one_colour_in_all_figures_of_a_table(pictures: list[Any], tmp_path: Path) -> None:
    runs = [make_run("kivi", "full", 0.5), make_run("ada", "0.1", 0.5), make_run("zeta", "0.1", 0.5)]
    points = points_of([*runs, make_run("ada", "0.2", 0.5), make_run("fullkv", "full", 1.0)])
    curve(points, "needle", "", tmp_path / "budgets.png")
    tradeoff(points, "needle", "", tmp_path / "bytes.png")
    by_budget, by_bytes = map(colours, pictures)
    assert {"ada", "zeta", "kivi"} <= set(by_bytes) and len({by_bytes[name] for name in ("ada", "zeta", "kivi")}) == 3
    assert all(by_budget[name] == by_bytes[name] for name in ("ada", "zeta"))


def test_of_many_methods_those_shown_have_colours_of_their_own() -> None:
    methods = [f"m{place:02d}" for place in range(40)]
    shown = line_styles(methods, ["m31", "m01", "m11", "m21"])
    assert shown["m01"] == line_styles(methods)["m01"]
    assert len({style["color"] for style in shown.values()}) == 4


def test_only_points_of_equal_bytes_are_moved_and_the_front_goes_through_them(
    pictures: list[Any], tmp_path: Path
) -> None:
    runs = [make_run("fullkv", "full", 1.0), make_run("ada", "0.1", 0.5), make_run("snapkv", "0.1", 0.5)]
    points = points_of([*runs, make_run("snapkv", "0.4", 0.75)])
    tradeoff(points, "needle", "", tmp_path / "bytes.png")
    (axes,) = pictures[0].axes
    drawn = [(line.get_label(), x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)]
    at = {name: sorted(x for label, x, _ in drawn if label == name) for name in ("ada", "snapkv", "fullkv")}
    share = {(point.method, point.budget): point.held_share for point in points.points}
    assert at["ada"][0] < share["ada", "0.1"] < at["snapkv"][0] and at["snapkv"][1] == share["snapkv", "0.4"]
    corners = {(x, y) for label, x, y in drawn if label == "front"}
    assert corners == {(x, y) for label, x, y in drawn if label in at}


def test_a_picture_of_runs_that_all_score_0_has_the_range_of_the_score_and_no_front(
    pictures: list[Any], tmp_path: Path
) -> None:
    """Scores of a tiny model: each row has a size and a score, and the smallest row is the whole front."""
    runs = [make_run("fullkv", "full", 0.0), make_run("ada", "0.12", 0.0), make_run("snapkv", "0.19", 0.0)]
    tradeoff(points_of(runs), "needle", "", tmp_path / "bytes.png")
    curve(points_of([*runs, make_run("ada", "0.2", 0.0)]), "needle", "", tmp_path / "budgets.png")
    for picture in pictures:
        low, high = picture.axes[0].get_ylim()
        assert -0.1 < low <= 0 and high == pytest.approx(1.05)
    axes = pictures[0].axes[0]
    assert "front" not in [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(axes.get_xticks()) > 2


@pytest.mark.parametrize(("low", "high"), [(9, 115), (10.8, 21.9), (24, 26.4), (0.4, 120)])
def test_an_axis_of_bytes_has_round_ticks(low: float, high: float) -> None:
    ticks = size_ticks(low, high)
    assert len(ticks) > 2 and low <= min(ticks) and max(ticks) <= high
    assert (low, high) != (9, 115) or ticks == [10, 20, 40, 100]


def test_pictures_say_how_many_rows_they_leave_out(pictures: list[Any], tmp_path: Path) -> None:
    points = replace(points_of(study()), left_out=6)
    tradeoff(points, "ruler", "", tmp_path / "bytes.png")
    curve(points, "ruler", "", tmp_path / "budgets.png")
    bars(points, "ruler", "", tmp_path / "costs.png")
    assert len(pictures) == 4
    for picture in pictures:
        texts = [text.get_text() for part in (picture, *picture.axes) for text in part.texts]
        assert any("6 rows are not shown" in text for text in texts)


def test_pictures_name_the_rows_that_tables_mark(pictures: list[Any], tmp_path: Path) -> None:
    """Rows that were computed with different versions or on different hardware have the mark of the table."""
    points = points_of(study())
    marked = replace(points, points=[replace(point, mixed=point.method == "snapkv") for point in points.points])
    assert not points.notes
    budgets = [point.budget for point in marked.points if point.mixed]
    note = f"† different versions or hardware: {', '.join(f'snapkv {budget}' for budget in budgets[:3])}"
    assert marked.notes.startswith(note) and marked.notes.endswith(f"and {len(budgets) - 3} more") == (len(budgets) > 3)
    for given, is_there in ((marked, True), (points, False)):
        pictures.clear()
        for number, drawn in enumerate((curve, tradeoff, bars)):
            drawn(given, "h", "d", tmp_path / f"{is_there}{number}.png")
        assert pictures
        for picture in pictures:
            texts = [text.get_text() for text in picture.findobj(lambda x: hasattr(x, "get_text"))]
            assert any("†" in text for text in texts) == is_there, texts


def test_shares_of_heads_are_means_over_samples() -> None:
    records: list[Any] = [
        {"id": "a", "status": "ok", "span": 10, "kept": [[1, 3], [2, 2]]},
        {"id": "b", "status": "ok", "span": 20, "kept": [[4, 4], [8, 0]]},
        {"id": "c", "status": "oom"},
        {"id": "d", "status": "ok", "span": 20, "kept": [[4, 4]]},
        {"id": "e", "status": "ok", "span": 20, "kept": [["x", 4], [8, 0]]},
    ]
    shares = head_shares(records)
    assert shares is not None and np.allclose(shares, [[0.15, 0.25], [0.3, 0.1]])
    assert head_shares([]) is None and head_shares(records[2:3]) is None


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("streaming_llm_decode", ["streaming_llm_", "decode"]),
        ("scope window=-8 alpha=0.1-0.2", ["scope window=-8", "alpha=0.1-0.2"]),
        ("question-agnostic", ["question-", "agnostic"]),
        ("ada_expected_attention_scores_of_heads", ["ada_expected_", "attention_ …"]),
        ("longer_than_two_lines_of_it_are", ["longer_than_two_", "lines_of_it_are"]),
    ],
)
def test_titles_break_between_the_parts_of_a_name(text: str, lines: list[str]) -> None:
    wide = 16 * 0.62 * 8 / 72 + 0.001  # 16 letters of 8 points
    assert figure.wrapped(text, wide, 8).split("\n") == lines


def test_no_label_of_the_costs_is_clipped_by_long_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("kvbench.report.figures.figure.save", lambda picture, path, stamp: seen.append(picture) or path)
    runs = [make_run(method, "0.1", 0.5) for method in ("ada_expected_attention", "streaming_llm_decode")]
    bars(points_of(runs), "needle", "details", tmp_path / "costs.png")
    (picture,) = seen
    picture.draw_without_rendering()
    legend = picture.axes[1].get_legend().get_window_extent()
    for axes in picture.axes:
        box = axes.xaxis.label.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= picture.bbox.x1
    assert legend.x1 <= picture.bbox.x1 and legend.y1 < picture.texts[-1].get_window_extent().y0


def test_the_answer_is_marked_where_it_stands() -> None:
    tokens = ["The", " code", " is ", "73", "05", ". Not", " 1", "7305", "!"]
    assert answer_tokens(tokens, ["7305", ""]) == {3, 4, 7} and answer_tokens(tokens, ["9"]) == set()


@pytest.mark.parametrize("tokens", [9, 6000])
def test_kept_tokens_over_a_text_of_any_length(tmp_path: Path, tokens: int) -> None:
    words = [("word$ ", "\n", "\x1b[", "日本")[place % 4] for place in range(tokens)]
    kept = store.KeptTokens("a", words, np.arange(6 * tokens).reshape(3, 2, tokens) % 5 == 0)
    path = kept_text(kept, "needle", "", tmp_path / "x.png", ["word"])
    from PIL import Image

    with Image.open(path) as picture:
        assert picture.height / 200 <= figure.TALL


def draw_all(folder: Path) -> None:
    heatmaps(study(), folder / "overview.png")
    curve(points_of(study()), "needle", "details", folder / "budgets.png")
    kept_heads({"ada": np.array([[0.1, 0.5], [0.3, 0.4]])}, "needle", "", folder / "kept.png")


def test_the_same_data_gives_the_same_bytes_whatever_the_user_has_set(tmp_path: Path) -> None:
    draw_all(tmp_path / "a")
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nfont.family: serif\naxes.facecolor: red\nsavefig.dpi: 50\n")
    code = "import sys, pathlib, tests.report.test_figures as t; t.draw_all(pathlib.Path(sys.argv[1]))"
    environment = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    environment |= {"MPLBACKEND": "nonsense", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, cwd=ROOT, env=environment)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 8 and {Path(name).suffix for name in names} == {".png", ".pdf"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_large_table_has_figures_of_the_methods_that_score_highest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draw, "_ROWS", 6)
    runs = [store.RunNumbers(Path(), run.manifest, {}, numbers_of(run).columns) for run in study()]
    shown = Shown(runs, None, "needle", "", tmp_path / "table")
    methods: dict[str, list[float]] = {point.method: [] for point in shown.points.points}
    for point in shown.points.points:
        methods[point.method].append(point.score)
    best = sorted(set(methods) - {"fullkv"}, key=lambda name: (-np.mean(methods[name]), name))[:3]
    kept_points, details = draw._best_points(shown, "curves")
    kept = kept_points.points
    assert details == "only the 3 of 4 methods that score highest"
    assert {point.method for point in kept} == {"fullkv", *best} and len(kept) == 7
    places = draw._best_runs(shown, range(len(runs)), 5, "panels")
    assert {runs[at].manifest["label"]["method"] for at in places} == {"fullkv", *best[:2]}
    assert "table: 9 rows are too many for curves, which are those of the 3 methods that score highest (7 rows); " in (
        caplog.text
    )
    everything = replace(shown, limited=False)
    assert (
        draw._best_points(everything, "curves") == (shown.points, "")
        and not draw._best_runs(everything, [1], 0, "")[1:]
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("snapkv ada_snapkv", ["snapkv", "ada_snapkv"]),
        ("streaming_llm_decode", ["streaming_", "llm_decode"]),
        ("abcdefghijklmnop", ["abcdefghij", "klmnop"]),
    ],
)
def test_names_are_broken_only_if_a_line_cannot_hold_them(text: str, lines: list[str]) -> None:
    assert figure.wrapped(text, 10.5 * 0.62 / 72, 1.0) == "\n".join(lines)


def test_the_palette_is_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_run(tmp_path / "runs", make_run("snapkv", "0.2", 1.0))
    out = ["--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "runs"), *out]) == 0 and main([str(tmp_path / "runs"), *out, "--palette", "field"]) == 0
    assert main([str(tmp_path / "runs"), *out, "--palette", "pink"]) == 2
    assert "pink" in capsys.readouterr().err


def test_the_gallery_and_the_table_of_readme_are_those_of_the_example_stores(tmp_path: Path) -> None:
    docs = ROOT / "docs"
    assert (docs / "gallery.md").read_text(encoding="utf-8") == gallery.text()
    gallery.gallery(docs, tmp_path)
    for picture in gallery.PICTURES:
        drawn, kept = (folder / "gallery" / f"{picture.name}.png" for folder in (tmp_path, docs))
        assert figure.stamp_of(drawn) == figure.stamp_of(kept) is not None, f"{kept} is old: run {gallery.COMMAND}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert gallery.MARKS[0] in readme and readme == gallery.with_table(readme, docs), f"run {gallery.COMMAND}"
    text = readme.partition("At a 20 % budget ")[2].partition(" of the needles")[0]
    words = dict(re.findall(r"([A-Z][\w-]+) (?:finds )?(\d+) %", text))
    points = points_of(store.load_runs(docs / "example_store", "needle", bulky=False)).points
    shown = {point.method.replace("_", ""): f"{100 * point.score:.0f}" for point in points if point.budget == "0.2"}
    assert {name.lower().replace("-", ""): value for name, value in words.items()} == shown, "what README says of them"
