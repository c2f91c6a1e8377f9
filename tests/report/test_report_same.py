"""Forms of a table: the same bytes from the same store, and the same numbers in all of them."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.report.__main__ import main
from kvbench.report.bytes_axis import on_front
from kvbench.report.figures.points import points_of
from kvbench.report.formats import FORMATS
from kvbench.report.latex import latex_text
from kvbench.store import load_runs
from tests.helpers.fake_runs import make_part, make_run, store_run
from tests.helpers.synthetic_store import write_store


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_store(root, runs=28, samples=20, needle=True, failures=0.05)
    return root


@pytest.mark.parametrize("by", ["method", "bytes"])
@pytest.mark.parametrize("form", FORMATS)
def test_the_same_store_gives_the_same_bytes(
    form: str, by: str, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for _ in range(2):
        assert main([str(stored), "--format", form, "--by", by]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) > 1000


def test_another_process_gives_the_same_bytes(stored: Path) -> None:
    """Hash seeds and the order of sets do not matter."""
    command = [sys.executable, "-m", "kvbench.report", str(stored), "--format"]
    for form in ("html", "json"):
        first, second = (
            subprocess.run(
                [*command, form], check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed}
            ).stdout
            for seed in ("1", "2")
        )
        assert first == second and len(first) > 1000


class Page(html.parser.HTMLParser):
    """The cells of a page and their classes."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = (dict(attrs).get("class") or "") if tag == "td" else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.cells.append((data, self._open))
            self._open = None


def output(stored: Path, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(stored), "--benchmark", "synthetic", "--format", form]) == 0
    return capsys.readouterr().out


def test_marks_and_grey_are_the_same_in_every_form(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(output(stored, "json", capsys))[0]
    best = {
        f"{row['datasets'][name]['score']:.2f}"
        for row in content["rows"]
        for name in row["best"]
        if name in row["datasets"]
    }
    assert best, "the synthetic methods differ"
    page = Page()
    page.feed(output(stored, "html", capsys))
    latex, markdown = output(stored, "latex", capsys), output(stored, "table", capsys)
    for score in best:
        assert any(text.rstrip("*") == score and "best" in kind.split() for text, kind in page.cells)
        assert re.search(rf"\\textbf{{{score}\*?}}", latex) and f"**{score}" in markdown
    grey = {text for text, kind in page.cells if "grey" in kind.split()}
    uncertain = [row for row in content["rows"] if row["difference"] and not row["difference"]["significant"]]
    assert uncertain
    for row in uncertain:
        shown = f"{row['difference']['mean']:+.2f}"
        assert any(text.startswith(shown) and text.endswith("n.s.") for text in grey)
        assert rf"\textcolor{{gray}}{{{latex_text(shown)}" in latex


def test_csv_has_differences_marks_and_averages(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(csv.DictReader(io.StringIO(output(stored, "csv", capsys))))
    content = json.loads(output(stored, "json", capsys))[0]
    rows = {(row["method"], row["budget"]): row for row in content["rows"]}
    checked = 0
    for line in lines:
        row = rows[line["method"], line["budget"]]
        if line["metric"] == content["lead"]:
            expected = row["difference"]
        elif line["dataset"] and line["metric"] == "qa_f1":
            expected = row["differences"].get(line["dataset"])
        else:
            continue
        checked += expected is not None
        assert (line["delta"] == "") == (expected is None)
        if expected is not None:
            bounds = [float(line[key]) for key in ("delta", "delta_low", "delta_high")]
            assert bounds == pytest.approx([expected[key] / 100 for key in ("mean", "low", "high")], abs=1e-9)
            assert float(line["ttft_s"]) > 0 and float(line["kv_bytes"]) > 0
    assert checked == 4 * (len(rows) - 1)


# ---- one axis of bytes ---------------------------------------------------------------------------


def test_rows_are_sorted_by_bytes_with_quantised_and_evicted_ones_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised = make_run("kivi", "full", 0.9)
    for sample in quantised.samples:
        sample["kv_bytes"] = sample["kv_bytes_full"] // 4
    for run in (
        make_run("fullkv", "full", 1.0),
        make_run("snapkv", "0.2", 0.5),
        quantised,
        make_run("ada", "0.4", 0.5),
    ):
        store_run(tmp_path, run)
    assert main([str(tmp_path), "--by", "bytes"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert rows[0][:4] == ["method", "budget", "KV MiB", "front"]
    assert [(row[0], row[3]) for row in rows[1:]] == [("snapkv", "●"), ("kivi", "●"), ("ada", ""), ("fullkv", "●")]
    assert "front: no row with fewer bytes scores as high, and none with equal\nbytes" in out


def test_rows_that_are_equal_in_bytes_and_score_are_on_the_front_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (make_run("snapkv", "0.2", 0.5), make_run("ada", "0.2", 0.5), make_run("tova", "0.2", 0.4)):
        store_run(tmp_path, run)
    store_run(tmp_path, make_run("snapkv", "0.4", 0.5))
    assert main([str(tmp_path), "--by", "bytes"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert {(row[0], row[1]): row[3] for row in rows[1:]} == {
        ("ada", "0.2"): "●", ("snapkv", "0.2"): "●", ("tova", "0.2"): "", ("snapkv", "0.4"): "",
    }  # fmt: skip


def test_bytes_are_those_that_the_cache_holds_with_what_a_policy_knows_of_each_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method that evicts while it generates keeps fewer tokens in as many bytes: it is not the smaller one."""
    evicting = make_run("fading", "0.2B", 0.5)
    for sample in evicting.samples:
        sample["held_bytes"], sample["kv_bytes"] = sample["kv_bytes"], int(0.6 * sample["kv_bytes"])
    for run in (make_run("fullkv", "full", 1.0), make_run("snapkv", "0.2B", 0.75), evicting):
        store_run(tmp_path, run)
    assert main([str(tmp_path), "--by", "bytes"]) == 0
    printed = capsys.readouterr().out
    out = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    assert [(row[0], row[2], row[3]) for row in out[1:]] == [
        ("fading", "0.23 (20%)", ""), ("snapkv", "0.23 (20%)", "●"), ("fullkv", "1.14 (100%)", "●"),
    ]  # fmt: skip
    assert main([str(tmp_path), "--format", "csv"]) == 0
    lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
    shares = {line["method"]: (float(line["kv_share"]), float(line["held_share"])) for line in lines}
    assert shares["fading"] == (pytest.approx(0.12, rel=0.01), pytest.approx(0.2, rel=0.01))
    points = {point.method: point for point in points_of(load_runs(tmp_path)).points}
    assert points["fading"].held_share == points["snapkv"].held_share == pytest.approx(0.2, rel=0.01)


def test_the_front_is_what_its_legend_says() -> None:
    rng = random.Random(0)
    for _ in range(200):
        sizes = [rng.choice([None, 1.0, 2.0, 3.0]) for _ in range(8)]
        scores = [rng.choice([None, 0.1 + 0.2, 0.3, 0.6]) for _ in range(8)]
        known = [pair for pair in zip(sizes, scores, strict=True) if None not in pair]
        expected = [
            (size, score) in known
            and not any(other < size and high > score - 1e-9 for other, high in known)
            and not any(other == size and high > score + 1e-9 for other, high in known)
            for size, score in zip(sizes, scores, strict=True)
        ]
        assert on_front(sizes, scores) == expected


# ---- protocol --------------------------------------------------------------------------------------


def test_footnotes_name_protocol_metrics_and_weights(tmp_path: Path) -> None:
    for method, budget in (("fullkv", "full"), ("snapkv", "0.2")):
        store_run(tmp_path / "runs", make_part(method, budget, "qasper", 0.5))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    [folder] = (tmp_path / "out").glob("[!.]*")
    for file in ("table.md", "table.tex", "table.html"):
        text = (folder / file).read_text().replace("\\", "")
        assert "Protocol: protocol=longbench-original, question=aware." in text, file
        assert "Metrics and their versions: qa_f1 1." in text and "float32 on cpu" in text
