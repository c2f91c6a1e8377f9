"""Parity judges a run only if its protocol is that of the row's command, and knows a folder's model by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kvbench import config
from kvbench.benchmarks.base import ModelFacts, benchmarks_of, resolve
from kvbench.config.compose import compose_one
from kvbench.report.parity.__main__ import main, parity
from kvbench.report.parity.compare import Outcome, compare
from kvbench.report.parity.ours import read_variants
from kvbench.report.parity.presets import _words
from kvbench.report.parity.references import Entry, load_references
from kvbench.report.parity.show import parity_lines, parity_text, sweeps
from tests.helpers.fake_runs import make_part, make_run, store_run

ENTRIES = load_references()
FULL = {
    "adakv_gqa": "Mistral-7B-Instruct-v0.2",
    "pyramidkv": "Llama-3-8B-Instruct",
    "windowkv": "Qwen2.5-1.5B-Instruct",
    "kvzip_ruler4k": "Llama-3.1-8B-Instruct",
    "ruler_official_4096": "Qwen3-8B",
    "windowkv_needle": "Llama-3-8B-Instruct",
}  # a table of each kind of protocol, and a model of it


def full(table: str) -> Entry:
    """Return the row of the full cache of a table and its model."""
    [entry] = [e for e in ENTRIES if (e.table, e.model, e.method) == (table, FULL[table], "fullkv")]
    return entry


def run_row(root: Path, entry: Entry, *overrides: str, points: float | None = None, **change: Any) -> None:
    """Store the runs that the command of a row makes, with `overrides` at its end, and with the published scores.

    change: weights (default: of the hub), label (the model's name in tables), chat_kwargs.
    """
    config.register()
    given = _words(entry.command or "") | dict(override.split("=", 1) for override in overrides)
    cfg = compose_one([f"{key}={value}" for key, value in given.items()])
    facts = ModelFacts(str(cfg.model.name), str(cfg.model.path), 32768)
    hub = entry.settings["model"][0]
    for part in benchmarks_of(instantiate(cfg.benchmark), facts):
        rendering = asdict(resolve(part.rendering, facts.max_length))
        dataset = {} if part.column is None else {"dataset": {"name": part.name, "stops": rendering.pop("stops")}}
        sources = {} if given["benchmark"] != "ruler" or "benchmark.files" in given else {"sources": "upstream"}
        weights = change.get("weights", f"hub:{hub}@main")
        if part.column is None:
            run = make_run("fullkv", "full", (points or entry.mean) / 100, model=weights)
            run.manifest |= {"headline": "recall"}
            run.manifest["label"]["benchmark"] = part.name
        else:
            score = points or entry.scores.get(part.column.name, entry.mean)
            run = make_part("fullkv", "full", part.column.name, score / 100, model=weights, suite=part.column.suite)
        run.manifest["label"]["model"] = change.get("label", "any_name")
        run.manifest["identity"] |= {
            "dtype": "bfloat16",
            "model": {"name": str(cfg.model.name), "weights": weights},
            "protocol": part.settings() | dataset | sources | {  # type: ignore[attr-defined]
                "rendering": rendering,
                "chat_template": cfg.model.chat_template,
                "chat_kwargs": change.get("chat_kwargs", OmegaConf.to_container(cfg.model.chat_kwargs)),
            },
        }  # fmt: skip
        store_run(root, run)


def outcome(root: Path, entry: Entry) -> Outcome:
    [own] = [each for each in parity(root, entry.table) if each.entry == entry]
    return own


@pytest.mark.parametrize("table", FULL)
def test_the_run_of_a_rows_command_is_judged(table: str, tmp_path: Path) -> None:
    run_row(tmp_path, full(table))
    own = outcome(tmp_path, full(table))
    assert (own.verdict, own.differences) == ("within", {}) and not own.by_name


@pytest.mark.parametrize(
    ("table", "override", "differs"),
    [
        ("adakv_gqa", "benchmark.max_length=4000", {"protocol.rendering.max_length": ("31500", "4000")}),
        ("adakv_gqa", "benchmark.wrapper=chat", {"protocol.rendering.wrapper": ("none", "chat")}),
        ("adakv_gqa", "benchmark.code_backend=indel", {"protocol.code_backend": ("difflib", "indel")}),
        ("pyramidkv", "benchmark.wrapper=native", {"protocol.rendering.wrapper": ("none", "native")}),
        ("windowkv", "benchmark.code_backend=difflib", {"protocol.code_backend": ("indel", "difflib")}),
        ("pyramidkv", "model.chat_template=never", {"protocol.chat_template": ("auto or always", "never")}),
        (
            "kvzip_ruler4k",
            "benchmark.wrapper=none",
            {"protocol.wrapper": ("chat", "none"), "protocol.rendering.wrapper": ("native", "none")},
        ),
        ("ruler_official_4096", "benchmark.wrapper=none", {"protocol.wrapper": ("chat", "none")}),
        ("windowkv_needle", "benchmark.buffer=100", {"protocol.buffer": ("200", "100")}),
        ("windowkv_needle", "benchmark.haystack=generated", {"protocol.haystack": ("folder", "generated")}),
    ],
)
def test_a_changed_setting_is_another_protocol_and_named(
    table: str, override: str, differs: Mapping[str, tuple[str, str]], tmp_path: Path
) -> None:
    run_row(tmp_path, full(table), override)
    own = outcome(tmp_path, full(table))
    assert own.verdict == "other protocol" and own.differences == differs
    [(path, (theirs, ours)), *_] = differs.items()
    assert f"{path.split('.')[-1]}" in parity_text([own]) and f": {theirs} / ours {ours}" in parity_text([own])


def test_the_right_run_is_shown_next_to_a_wrong_one(tmp_path: Path) -> None:
    entry = full("adakv_gqa")
    run_row(tmp_path, entry, "benchmark.max_length=4000", points=99.0)
    run_row(tmp_path, entry)
    assert outcome(tmp_path, entry).verdict == "within"


def test_samples_of_a_folder_are_not_those_of_kvpress(tmp_path: Path) -> None:
    entry = full("kvzip_ruler4k")
    folder = tmp_path / "files"
    run_row(tmp_path / "runs", entry, f"benchmark.files={folder}")
    differences = outcome(tmp_path / "runs", entry).differences
    assert differences["protocol.files"] == ("hub", "true")
    assert differences["protocol.protocol"] == ("kvpress", "files")
    assert differences["protocol.rendering.first_may_stop"] == ("false", "true")
    run_row(tmp_path / "copy", entry, f"benchmark.files={folder}", "benchmark.protocol=kvpress")
    assert set(outcome(tmp_path / "copy", entry).differences) == {"protocol.files"}


def test_every_table_made_with_kvpress_wants_its_protocol() -> None:
    tables = {e.table for e in ENTRIES if e.command and "benchmark.files=hub" in e.command}
    assert len(tables) == 7
    for entry in ENTRIES:
        if entry.table in tables:
            assert (entry.settings["protocol.files"], entry.settings["protocol.protocol"]) == (("hub",), ("kvpress",))


# ---- the model of a folder


@pytest.mark.parametrize(
    ("label", "verdict"),
    [("Llama-3.1-8B-Instruct", "within"), ("llama31_8b", "within"), ("my_folder", "other protocol")],
)
def test_the_model_of_a_folder_is_known_by_its_name(label: str, verdict: str, tmp_path: Path) -> None:
    entry = full("kvzip_ruler4k")
    run_row(tmp_path, entry, weights="local:" + "a" * 64, label=label, chat_kwargs={})
    own = outcome(tmp_path, entry)
    assert own.verdict == verdict and own.by_name == (verdict == "within")
    assert ("taken for this model by its name" in parity_text([own])) == own.by_name
    assert [line["model_by"] for line in parity_lines([own])] == ["name" if own.by_name else "id"]
    assert bool(list(sweeps([own]))) == (verdict != "within"), "what was run is not asked for again"


def test_a_folder_without_the_settings_of_the_chat_template_is_told(tmp_path: Path) -> None:
    entry = full("ruler_official_4096")
    run_row(tmp_path, entry, weights="local:" + "a" * 64, label="Qwen3-8B", chat_kwargs={})
    assert outcome(tmp_path, entry).differences == {"protocol.chat_kwargs": ('{"enable_thinking": false}', "{}")}


def test_a_hub_model_is_never_known_by_its_name(tmp_path: Path) -> None:
    entry = full("kvzip_ruler4k")
    run_row(tmp_path, entry, weights="hub:other/Llama-3.1-8B-Instruct@main", label="Llama-3.1-8B-Instruct")
    assert outcome(tmp_path, entry).differences == {
        "model": ("meta-llama/Llama-3.1-8B-Instruct", "other/Llama-3.1-8B-Instruct")
    }


# ---- tables of a user's own


@pytest.mark.parametrize("words", ["benchmark=needel", "benchmark=needle benchmark.lenghts=[500]"])
def test_a_command_that_cannot_be_is_one_line(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_run(tmp_path / "runs", make_run("fullkv", "full", 1.0, model="hub:a/b@main"))
    model = {"hub": "a/b", "command": f"model=tiny {words}", "rows": [{"method": "F", "budget": "full", "mean": 99.0}]}
    table = {
        "source": {"paper": "A 2024", "place": "a", "read": "table", "checked": "by eye"}, "benchmark": "needle",
        "tolerance": {"mean": 1.0}, "settings": {}, "methods": {"F": {"name": "fullkv"}}, "models": {"B": model},
    }  # fmt: skip
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.yaml").write_text(yaml.safe_dump(table))
    assert main([str(tmp_path / "runs"), "--references", str(tmp_path / "tables")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_table_may_build_on_an_option_that_inherits(tmp_path: Path) -> None:
    entry = full("windowkv_needle")
    own = Entry(**{**vars(entry), "command": "model=tiny benchmark=needle_1k", "group": "needle_1k", "settings": {
        "model": entry.settings["model"], "dtype": ("bfloat16",)}})  # fmt: skip
    run_row(tmp_path, own)
    [variant] = read_variants(tmp_path, [("needle_1k", "fullkv")])
    assert compare(own, [variant]).differences == {}
