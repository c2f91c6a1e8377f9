"""The file that `kvbench view` writes: its data, its size, its parts, and that texts cannot break out of it."""

from __future__ import annotations

import base64
import errno
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from kvbench.report.table import table
from kvbench.report.view import page
from kvbench.report.view.__main__ import main
from kvbench.store import load_numbers
from tests.helpers.fake_runs import make_run, make_suite, out_of_memory, store_run
from tests.helpers.synthetic_store import write_store

ASSETS = Path(page.__file__).parent / "assets"


def data(file: Path, name: str = "index") -> Any:
    """Return the content of one of the data elements of a page."""
    match = re.search(
        rf'<script type="application/octet-stream" id="{name}">([A-Za-z0-9+/=]*)</script>', file.read_text()
    )
    assert match, f"no {name}"
    return json.loads(zlib.decompress(base64.b64decode(match[1])))


def part(file: Path) -> Any:
    text = file.read_text()
    return json.loads(zlib.decompress(base64.b64decode(text.split('"')[3])))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for method, budget in (("fullkv", "full"), ("snapkv", "0.1"), ("snapkv", "0.2"), ("ada", "64"), ("kivi", "full")):
        store_run(root, make_run(method, budget, 1.0 if budget == "full" else None))
    return root


def test_one_file_holds_all_and_is_the_same_again(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(store)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{store}/view.html: 5 runs, 45 answers, ") and out.count("\n") == 1
    shutil.copytree(store, tmp_path / "copy" / "runs")  # other inodes, other times
    (tmp_path / "copy" / "runs" / "view.html").unlink()
    assert main([str(tmp_path / "copy" / "runs")]) == 0
    assert (store / "view.html").read_bytes() == (tmp_path / "copy" / "runs" / "view.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "runs"]


@pytest.mark.parametrize("limit", [page.LIMIT, 1])
def test_a_store_that_cannot_be_written_names_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, limit: int
) -> None:
    """The page and its parts lie next to the runs unless --out says where."""

    def read_only(path: Path, *more: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(page, "LIMIT", limit)
    monkeypatch.setattr(page, "write_atomic", read_only)
    monkeypatch.setattr(Path, "write_text", read_only)
    assert main([str(store)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"kvbench: {store}/view") and line.count("\n") == 1
    assert line.endswith(": Read-only file system; choose another place with --out FILE.html\n")
    assert main([str(store), "--out", str(tmp_path / "x.html")]) == 2
    assert capsys.readouterr().err.endswith(": Read-only file system\n"), "this place was chosen"


def test_the_numbers_are_those_of_the_report(store: Path) -> None:
    main([str(store)])
    [shown] = data(store / "view.html")["tables"]
    rows = table(load_numbers(store))
    assert [(row["method"], row["budget"]) for row in shown["rows"]] == [(row["method"], row["budget"]) for row in rows]
    for ours, theirs in zip(shown["rows"], rows, strict=True):
        assert ours["score"] == round(100 * (theirs["scores"]["recall"] or 0), 2)
        assert ours["keptShare"] == round(theirs["kept_share"] or 0, 4)
        assert ours["heldShare"] == round(theirs["held_share"] or 0, 4) and ours["n"] == theirs["n"] == 9
        assert (ours["diff"] is None) == (theirs["difference"] is None)
        if theirs["difference"] is not None:
            assert ours["diff"]["mean"] == round(100 * theirs["difference"]["mean"], 2)
            assert ours["diff"]["significant"] == theirs["difference"]["significant"]


def test_a_suite_is_one_table_with_a_column_per_dataset(tmp_path: Path) -> None:
    for row in (("fullkv", "full", 0.5), ("snapkv", "0.2", 0.25)):
        for run in make_suite(*row):
            store_run(tmp_path, run)
    main([str(tmp_path)])
    [shown] = data(tmp_path / "view.html")["tables"]
    assert [column["name"] for column in shown["columns"]] == ["qasper", "multifieldqa_en", "hotpotqa", "gov_report"]
    assert [row["score"] for row in shown["rows"]] == [50, 25] and shown["lead"] == "avg-4"
    assert shown["rows"][1]["diff"]["mean"] == -25 and shown["rows"][0]["diff"] is None


def test_runs_of_other_settings_stand_in_other_tables(tmp_path: Path) -> None:
    store_run(tmp_path, make_run("fullkv", "full", 1.0))
    store_run(tmp_path, make_run("snapkv", "0.2", 1.0, question="agnostic"))
    store_run(tmp_path, make_run("snapkv", "0.2", 1.0, device="cuda", hash="1" * 64))
    main([str(tmp_path)])
    tables = data(tmp_path / "view.html")["tables"]
    assert sorted(len(each["rows"]) for each in tables) == [1, 1, 1]
    assert all(row["diff"] is None for each in tables for row in each["rows"]), "no full cache of the same setting"


def test_what_is_missing_shows_as_missing(tmp_path: Path) -> None:
    store_run(tmp_path, make_run("fullkv", "full", 1.0), samples=4)
    store_run(tmp_path, out_of_memory(make_run("snapkv", "0.2", 1.0), 0, 1))
    main([str(tmp_path)])
    [shown] = data(tmp_path / "view.html")["tables"]
    full, snap = shown["rows"]
    assert (full["n"], full["of"], snap["n"], snap["oom"]) == (4, 9, 7, 2)
    grids = [shown["runs"][row["cells"][0]]["grid"] for row in shown["rows"]]
    assert grids[0].count(None) == 5 and grids[1].count(-1) == 2 and grids[1].count(100) == 7


HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\u2028\ud800\x1b[2J\u202e<!--"


def test_no_text_of_the_store_is_in_the_html(tmp_path: Path) -> None:
    run = make_run("fullkv", "full", 1.0)
    run.manifest["device"] = HOSTILE.replace("\ud800", "")
    run.manifest["identity"]["method"]["dial"] = HOSTILE.replace("\ud800", "")
    for sample in run.samples:
        sample |= {"prediction": HOSTILE, "answers": [HOSTILE], "scores": {"recall": 1.0, "</script>": 0.5}}
        sample["meta"][HOSTILE] = HOSTILE
    store_run(tmp_path / "<b>&x", run)
    assert main([str(tmp_path / "<b>&x"), "--out", str(tmp_path / "v.html")]) == 0
    text = (tmp_path / "v.html").read_text()
    assert "pwned" not in text and "onerror=" not in text and "<b>" not in text
    assert text.count("</script>") == 3 and text.count("<script") == 3  # the index, a block, the script itself
    assert data(tmp_path / "v.html", "block-0")["samples"][0]["answers"] == [HOSTILE]


def test_the_script_makes_no_markup_and_asks_for_nothing() -> None:
    scripts = {file.name: file.read_text(encoding="utf-8") for file in ASSETS.glob("*.js")}
    assert len(scripts) == len(page._SCRIPTS), "each script is in the page"
    banned = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|fetch\(|XMLHttp|WebSocket|import\("
    )
    for name, text in scripts.items():
        assert not re.search(banned, text), name
        assert "</script" not in text and "<!--" not in text, name
    html = (ASSETS / "page.html").read_text() + (ASSETS / "style.css").read_text()
    assert not re.search(r"https?:|//\w|@import|url\(", html)


def test_forty_runs_of_two_hundred_samples_fit_into_ten_megabytes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    count = write_store(tmp_path, runs=40, samples=200, budgets=3, datasets=1)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "view.html").stat().st_size < 10e6 and not (tmp_path / "view-parts").exists()
    assert f"{count} runs, {200 * count:,} answers" in capsys.readouterr().out


def test_a_larger_store_is_split_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_store(tmp_path / "runs", runs=12, samples=20, budgets=2, datasets=3, needle=True)
    monkeypatch.setattr(page, "LIMIT", 5000)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "my view.html")]) == 0
    out, folder = capsys.readouterr().out, tmp_path / "my view-parts"
    parts = sorted(folder.iterdir())
    assert f"{len(parts)} parts in {folder} hold the answers" in out and len(parts) == 4
    index = data(tmp_path / "my view.html")
    assert index["parts"] == "my%20view-parts" and 'id="block-0"' not in (tmp_path / "my view.html").read_text()
    runs = [run for shown in index["tables"] for run in shown["runs"]]
    for run in runs:
        content = part(folder / f"{run['block']}.js")
        assert content["runs"][run["slot"]]["hash"] == run["hash"]
    # a smaller view of the same name leaves none of these parts, but files of others
    (folder / "notes.js").write_text("mine")
    monkeypatch.setattr(page, "LIMIT", 10_000_000)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "my view.html")]) == 0
    assert [file.name for file in folder.iterdir()] == ["notes.js"]


def test_reading_in_several_processes_gives_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvbench.report.view import answers

    write_store(tmp_path / "runs", runs=12, samples=20, budgets=2, datasets=3)
    monkeypatch.setattr(answers, "BLOCK", 40)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "a.html")])
    monkeypatch.setattr(answers, "_MANY", 0)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "b.html")])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_damaged_run_hides_no_other(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    [file] = [file for file in store.rglob("samples.jsonl") if "ada" in str(file)]
    file.write_text('{"id": 1}\n' + file.read_text())
    assert main([str(store)]) == 0
    assert "line 1" in caplog.text and "skipped" in caplog.text
    [shown] = data(store / "view.html")["tables"]
    assert [row["label"] for row in shown["rows"]] == ["fullkv", "kivi", "snapkv", "snapkv"]


def test_answers_can_be_left_out(store: Path) -> None:
    assert main([str(store), "--no-answers"]) == 0
    index = data(store / "view.html")
    assert index["answers"] is False and 'id="block-0"' not in (store / "view.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "ruler"], "no runs of benchmark ruler there"),
        (["--out", "notes.txt"], "--out notes.txt: the name of an HTML file"),
    ],
)
def test_mistakes_are_one_line(store: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([str(store), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no runs there" in capsys.readouterr().err


def test_kept_counts_of_any_form_do_no_harm(tmp_path: Path) -> None:
    run = make_run("snapkv", "0.2", 1.0)
    odd: list[Any] = [None, "x", [], [[1, 2], [3]], [[1, 2], [3, 4]], [["a"]], {"a": 1}, [[3, 2], [1, 0]], 7]
    for sample, kept in zip(run.samples, odd, strict=True):
        sample["kept"] = kept
    store_run(tmp_path, run)
    assert main([str(tmp_path)]) == 0
    layers = data(tmp_path / "view.html", "block-0")["runs"][0]["layers"]
    assert len(layers) == 2 and all(len(layer) == 2 for layer in layers)
