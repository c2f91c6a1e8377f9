"""Parity with papers: the published numbers as they are stored, and what is said about our own runs next to them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kvbench import config
from kvbench.benchmarks.longbench_protocols import PRESETS, VERSION
from kvbench.config.compose import compose_one
from kvbench.report.parity.__main__ import main, parity
from kvbench.report.parity.compare import Outcome, _points, _same, compare
from kvbench.report.parity.ours import Score
from kvbench.report.parity.references import Entry, load_references
from kvbench.report.parity.show import ROUNDING, parity_text, sweeps
from tests.helpers.fake_runs import FakeRun, make_part, make_run, out_of_memory, store_run
from tests.helpers.outside import DATA, golden

ENTRIES = load_references()
HUB = "owner/Name-7B"


# ---- the stored numbers


def test_every_table_names_its_source_and_how_it_was_checked() -> None:
    assert len({entry.table for entry in ENTRIES}) >= 18 and len(ENTRIES) >= 219
    for entry in ENTRIES:
        assert all(entry.source[key] for key in ("paper", "place", "read", "checked"))  # type: ignore[literal-required]
        assert re.search(r"arXiv \d{4}\.\d{5}|^none", entry.source["paper"]), entry.table
        assert 0 < entry.tolerance["mean"] <= 2 and 0 <= entry.mean <= 100
        assert entry.command or entry.why_not


def test_printed_means_follow_from_their_columns_but_for_five_rows_of_pyramidkv() -> None:
    both = [entry for entry in ENTRIES if entry.scores and entry.printed is not None]
    assert len(both) >= 100
    wrong = {
        (entry.table, entry.model, entry.label, entry.budget)
        for entry in both
        if abs(entry.printed - entry.mean) > (ROUNDING if entry.group == "longbench" else 0.06)  # type: ignore[operator]
    }
    mistral = ("pyramidkv", "Mistral-7B-Instruct")
    assert wrong == {
        (*mistral, "FullKV", "full"), (*mistral, "StreamingLLM", "128"), (*mistral, "H2O", "128"),
        (*mistral, "SnapKV", "2048"),
    }  # fmt: skip


def rows_of(tables: Sequence[str]) -> list[tuple[float, ...]]:
    return sorted(tuple(entry.scores.values()) for entry in ENTRIES if entry.table in tables)


@golden("reference_results")
@pytest.mark.parametrize(
    ("file", "tables", "columns"),
    [
        ("longbench16.csv", ("adakv_gqa", "adakv_nogqa", "pyramidkv", "windowkv", "snapkv"), slice(5, 21)),
        ("headkv_qa.csv", ("headkv",), slice(3, 9)),
        ("ruler4k_tables.csv", ("defensivekv_ruler4k",), slice(6, 19)),
    ],
)
def test_numbers_are_those_of_the_transcribed_tables(file: str, tables: Sequence[str], columns: slice) -> None:
    lines = list(csv.reader((DATA / "reference_results" / file).read_text().splitlines()))
    start = lines[0].index("NrtvQA" if "NrtvQA" in lines[0] else "cwe")
    wide = columns.stop - columns.start
    assert rows_of(tables) == sorted(tuple(map(float, line[start : start + wide])) for line in lines[1:])


@golden("reference_results")
def test_points_are_those_of_the_transcribed_plots(tmp_path: Path) -> None:
    lines = list(csv.DictReader((DATA / "reference_results" / "ruler4k_plots.csv").read_text().splitlines()))
    ours = [entry.mean for entry in ENTRIES if re.match("(adakv|kvpress)_ruler4k", entry.table)]
    assert sorted(ours) == sorted(float(line["avg13_read_from_plot"]) for line in lines)


# ---- commands


def commands() -> dict[str, Entry]:
    """Return rows that together have every command, and every method with its dials."""
    rows: dict[str, Entry] = {}
    seen: set[object] = set()
    for outcome in parity(Path(__file__).parent):  # a folder without runs
        entry = outcome.entry
        keys = {entry.command, (entry.method, *entry.dials.items())}
        if outcome.verdict == "not run" and not keys <= seen:
            seen |= keys
            rows[f"{entry.table}-{entry.model}-{entry.label}"] = entry
    return rows


COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_composes(name: str) -> None:
    """The settings that a row wants are those that its command sets, as far as the configuration knows them."""
    entry = COMMANDS[name]
    assert entry.command is not None and entry.budget is not None
    words = [word.strip('"') for word in entry.command.split(" ")]
    table = ["method.table=heads/smollm2_135m_retrieval.json"] if entry.method == "headkv" else []
    budget = [f"budget={entry.budget}"] if entry.budget != "full" else []
    dials = [f"{path}={value}" for path, value in entry.dials.items()]
    words += [f"method={entry.method}", *budget, *dials, *table]
    config.register()
    cfg = compose_one(words)
    chosen = dict(word.split("=", 1) for word in words)
    config.check(cfg, {group: chosen[group] for group in ("model", "benchmark", "method")})
    assert cfg.model.path == entry.settings["model"][0]
    assert cfg.model.dtype in entry.settings["dtype"]
    for key in ("protocol", "question", "samples", "max_new_tokens"):
        wanted = entry.settings.get(f"protocol.{key}")
        implied = key == "protocol" and cfg.benchmark.get("files") == "hub"  # it is kvpress's, whatever this key says
        if wanted is not None and cfg.benchmark.get(key) is not None and not implied:
            assert cfg.benchmark[key] in wanted, key


# ---- our runs next to them

TABLE: dict[str, Any] = {
    "source": {"paper": "A 2024", "place": "a/b, table 1", "read": "table", "checked": "by eye"},
    "suite": "longbench",
    "columns": ["qasper", "hotpotqa"],
    "tolerance": {"mean": 0.5, "column": 3.0},
    "settings": {"protocol.question": "aware", "dtype": ["bfloat16", "float32"], "scoring.switches.strip": "none"},
    "methods": {
        "Snap": {"name": "snapkv"},
        "Full": {"name": "fullkv"},
        "Per query": {"name": "h2o", "kept per": "query head"},
        "New": {"name": "newkv"},
    },
    "models": {
        "Name": {
            "hub": HUB,
            "command": "model=x benchmark=longbench",
            "rows": [
                {"method": "Full", "budget": "full", "mean": 50.0, "scores": [40.0, 60.0]},
                {"method": "Snap", "budget": 0.2, "mean": 30.0, "scores": [20.0, 40.0]},
                {"method": "Snap", "budget": 0.4, "mean": 35.0, "scores": [30.0, 40.0]},
                {"method": "Per query", "budget": 0.2, "mean": 20.0},
                {"method": "New", "budget": 0.2, "mean": 20.0},
                {"method": "Snap", "budget": None, "mean": 20.0},
            ],
        }
    },
}  # fmt: skip


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.yaml").write_text(yaml.safe_dump(TABLE))
    return folder


def part(root: Path, method: str, budget: str, dataset: str, points: float, hub: str = HUB, **change: Any) -> None:
    store_run(root, complete(make_part(method, budget, dataset, points / 100, model=f"hub:{hub}@main", **change)))


def complete(run: FakeRun) -> FakeRun:
    """Return the run with all of LongBench's protocol that a command without changes gives."""
    rendering = asdict(PRESETS["longbench-original"].rendering)
    protocol = run.manifest["identity"]["protocol"]
    protocol["dataset"]["stops"] = rendering.pop("stops")
    protocol |= {
        "benchmark": "longbench", "version": VERSION, "samples": None, "max_new_tokens": None, "chat_kwargs": {},
        "code_backend": "difflib", "rendering": rendering | {"max_length": 7500}, "chat_template": "auto",
    }  # fmt: skip
    return run


def outcomes(tmp_path: Path, tables: Path) -> list[Outcome]:
    (tmp_path / "runs").mkdir(exist_ok=True)
    return parity(tmp_path / "runs", references=tables)


def test_verdicts(tmp_path: Path, tables: Path) -> None:
    root = tmp_path / "runs"
    for dataset, full, snap in (("qasper", 40.2, 24.0), ("hotpotqa", 60.4, 40.0)):
        part(root, "fullkv", "full", dataset, full)
        part(root, "snapkv", "0.2", dataset, snap)
        part(root, "h2o", "0.2", dataset, 20)
    part(root, "snapkv", "0.4", "hotpotqa", 41)
    full, near, half, query, new, open_budget = outcomes(tmp_path, tables)
    assert (full.verdict, near.verdict, half.verdict) == ("within", "outside", "incomplete")
    assert full.delta == pytest.approx(0.3) and near.delta == pytest.approx(2.0) and near.outside == ["qasper"]
    assert (half.theirs, half.delta) == (40.0, pytest.approx(1.0)), "compared over the dataset that both have"
    assert half.missing == ["datasets: qasper"]
    assert query.verdict == "other protocol" and query.differences == {"kept per": ("query head", "KV head")}
    assert (new.verdict, new.reason) == ("cannot run", "kvbench has no method newkv")
    assert (open_budget.verdict, open_budget.reason) == ("cannot run", "the source states no budget")


def test_every_difference_is_named(tmp_path: Path, tables: Path) -> None:
    for dataset in ("qasper", "hotpotqa"):
        part(tmp_path / "runs", "fullkv", "full", dataset, 50, hub="other/Model", question="agnostic", dtype="float16",
             scoring={"metrics": {"qa_f1": 1}, "switches": {"strip": "leading"}})  # fmt: skip
    full = outcomes(tmp_path, tables)[0]
    assert full.verdict == "other protocol"
    assert full.differences == {
        "model": (HUB, "other/Model"),
        "protocol.question": ("aware", "agnostic"),
        "dtype": ("bfloat16 or float32", "float16"),
        "scoring.switches.strip": ("none", "leading"),
    }
    text = parity_text([full])
    assert "Full, protocol.question: aware / ours agnostic" in text and "+0.00" in text


def test_the_run_with_the_fewest_differences_is_compared(tmp_path: Path, tables: Path) -> None:
    for dataset in ("qasper", "hotpotqa"):
        part(tmp_path / "runs", "fullkv", "full", dataset, 10, question="agnostic")
        part(tmp_path / "runs", "fullkv", "full", dataset, 50)
    full = outcomes(tmp_path, tables)[0]
    assert (full.verdict, full.ours) == ("within", pytest.approx(50))


def test_samples_without_an_answer_make_a_row_incomplete(tmp_path: Path, tables: Path) -> None:
    part(tmp_path / "runs", "fullkv", "full", "hotpotqa", 60)
    run = make_part("fullkv", "full", "qasper", 0.4, model=f"hub:{HUB}@main")
    store_run(tmp_path / "runs", complete(out_of_memory(run, 3)))
    full = outcomes(tmp_path, tables)[0]
    assert full.verdict == "incomplete" and full.missing == ["qasper: 7 of 8 samples have an answer"]


def test_what_is_not_run_has_its_command(tmp_path: Path, tables: Path) -> None:
    assert list(sweeps(outcomes(tmp_path, tables))) == [
        "kvbench model=x benchmark=longbench method=fullkv",
        "kvbench -m model=x benchmark=longbench method=snapkv budget=0.2,0.4",
        "kvbench model=x benchmark=longbench method=h2o budget=0.2",
    ]


def test_a_benchmark_that_stands_alone(tmp_path: Path, tables: Path) -> None:
    alone = {**TABLE, "benchmark": "needle", "tolerance": {"mean": 1.0}, "settings": {}}
    del alone["suite"], alone["columns"]
    rows = [{"method": "Full", "budget": "full", "mean": 99.0}, {"method": "Snap", "budget": 0.2, "mean": 9.0}]
    alone["models"] = {"Name": {"hub": HUB, "why_not": "no GPU", "rows": rows}}
    (tables / "a.yaml").write_text(yaml.safe_dump(alone))
    store_run(tmp_path / "runs", make_run("fullkv", "full", 1.0, model=f"hub:{HUB}@abc"))
    full, snap = outcomes(tmp_path, tables)
    assert (full.verdict, full.ours) == ("within", pytest.approx(100))
    assert (snap.verdict, snap.reason) == ("cannot run", "no GPU")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"paper": "A"}}, "source"),
        ({"suite": None}, "suite"),
        ({"methods": {"Full": {"name": "fullkv"}}}, "Snap"),
        ({"columns": ["qasper"]}, "2 scores for 1 columns"),
        ({"tolerance": {"mean": "1"}}, "tolerance.mean"),
    ],
)
def test_a_damaged_table_is_one_line(
    change: dict[str, Any], message: str, tmp_path: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tables / "a.yaml").write_text(yaml.safe_dump({**TABLE, **change}))
    assert main([str(tmp_path), "--references", str(tables)]) == 2
    error = capsys.readouterr().err
    assert message in error and "a.yaml" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--table", "adakv_gq"], "--table adakv_gq: no such published table. Did you mean 'adakv_gqa'?"),
        ([".", "--references", "tests"], "no published tables"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_whole_report_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--columns"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(ENTRIES)} published rows" in printed and "kvbench -m model=mistral_7b_v02" in printed
    assert "40.55 is printed, the mean of the columns is 41.55" in printed


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_report_for_programs_has_a_line_per_row(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(Path(__file__).parent), "--format", form]) == 0
    printed = capsys.readouterr().out
    lines = json.loads(printed) if form == "json" else list(csv.DictReader(io.StringIO(printed)))
    assert len(lines) == len(ENTRIES)
    first = next(line for line in lines if line["table"] == "adakv_gqa" and line["method"] == "Ada-SnapKV(GQA)")
    assert (float(first["theirs"]), first["budget"], first["verdict"]) == (
        pytest.approx(35.48, abs=0.01),
        "128",
        "not run",
    )
    assert first["command"].endswith("method=ada_snapkv budget=128 method.window=32 method.kernel_size=7 "
                                     "method.pooling=max method.floor=0.2")  # fmt: skip


def test_a_published_mean_alone_is_not_compared_with_fewer_datasets_of_ours() -> None:
    """Their mean is of datasets that ours lacks, and there are no columns of which to take another."""
    entry = next(entry for entry in ENTRIES if entry.scores and len(entry.columns) > 2)
    ours = {entry.columns[0]: Score(40.0, 10, 10)}
    assert _points(replace(entry, scores={}), ours) == (entry.mean, None, {})
    theirs = entry.scores[entry.columns[0]]
    assert _points(entry, ours) == (theirs, 40.0, {entry.columns[0]: (theirs, 40.0)})


@pytest.mark.parametrize("off", [-1.01, -0.99, 0.99, 1.01])
def test_a_column_is_outside_in_both_directions(off: float) -> None:
    entry = next(entry for entry in ENTRIES if entry.scores and "column" in entry.tolerance)
    limit = entry.tolerance["column"]
    points = {
        name: Score(their + (off * limit if name == entry.columns[0] else 0), 10, 10)
        for name, their in entry.scores.items()
    }
    ours = SimpleNamespace(
        group=entry.group, method=entry.method, budget=entry.budget, scores=points, runs=[], is_local=False,
        facts=lambda path: entry.settings[path][:1],
    )  # fmt: skip
    assert list(compare(entry, [ours]).outside) == ([entry.columns[0]] if abs(off) > 1 else [])  # type: ignore[list-item]


def test_a_switch_is_no_number() -> None:
    assert _same(1, [1.0]) and _same(True, [True]) and not _same(True, [1]) and not _same(0, [False])
