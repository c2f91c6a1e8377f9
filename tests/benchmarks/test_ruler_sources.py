"""RULER's sources: kvbench's own, those of a folder, and the message when one is missing or damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kvbench.benchmarks.ruler import TASKS, Sources
from tests.helpers.ruler_sources import generate, write_sources

GENERATED = [name for name in TASKS if not name.startswith("qa")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("ruler") / "sources")


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return Sources.load(folder)


def test_without_files_our_own_words_and_prose_serve() -> None:
    sources = Sources.load("embedded")
    assert sources.version == "embedded-1"
    for task in GENERATED:
        records = generate(task, 4096, "words", num_samples=2, sources=sources)
        assert 3000 < max(record["length"] for record in records) <= 4096
        assert sources.checksums(task) == {}
    assert len(sources.sentences(5000)) > 250
    for task in ("qa_1", "qa_2"):
        with pytest.raises(ValueError, match=rf"^benchmark.tasks=\[{task}\]: .*`kvbench data ruler`$"):
            sources.require(task)


def test_embedded_words_last_for_any_length() -> None:
    record = generate("cwe", 30_000, "words", num_samples=1, sources="embedded")[0]
    assert record["length"] > 29_000  # about 4700 words: more than the lists hold


def test_a_prepared_cache_is_found_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    folder = write_sources(tmp_path / "data" / "ruler")
    assert Sources.load().version == "embedded-1"
    (folder / "manifest.json").write_text("{}")
    assert (Sources.load().version, Sources.load().folder) == ("upstream", folder)


def test_a_folder_is_read_once_while_its_files_stay(tmp_path: Path) -> None:
    """Every task of a sweep asks for the sources; essays as a list of words take a hundred megabytes."""
    folder = write_sources(tmp_path / "sources")
    first = Sources.load(folder)
    first.require("qa_1")
    assert Sources.load(folder) is first and Sources.load(str(folder)) is first
    assert Sources.load("embedded") is Sources.load("embedded")
    (folder / "squad.json").write_bytes(b" " + (folder / "squad.json").read_bytes())
    second = Sources.load(folder)
    assert second is not first and second.checksums("qa_1") != first.checksums("qa_1")


def test_checksums_are_of_the_files_a_task_reads(folder: Path, sources: Sources) -> None:
    names = {task: {name.split("/")[-1] for name in sources.checksums(task)} for task in TASKS}
    assert names["vt"] == names["fwe"] == names["niah_multikey_3"] == set()
    assert names["niah_single_1"] == {"adjectivelist.txt", "nounlist.txt"}
    assert names["cwe"] == names["niah_single_1"] | {"verblist.txt", "english_words.json"}
    assert names["niah_single_3"] - names["niah_single_1"] > {"PaulGrahamEssays.json", "collocations.tab"}
    assert (names["qa_1"], names["qa_2"]) == ({"squad.json"}, {"hotpotqa_some.json"})
    squad = hashlib.sha256((folder / "squad.json").read_bytes()).hexdigest()
    assert sources.checksums("qa_1") == {"squad.json": squad}


@pytest.mark.parametrize(
    ("name", "text", "task", "message"),
    [
        ("PaulGrahamEssays.json", None, "niah_single_2", "no PaulGrahamEssays.json in it"),
        ("PaulGrahamEssays.json", '{"text": "a', "niah_single_2", "PaulGrahamEssays.json is damaged"),
        ("wonderwords-2.2.0/nounlist.txt", None, "cwe", "no wonderwords-2.2.0/nounlist.txt in it"),
        ("squad.json", None, "qa_1", "no squad.json in"),
        ("squad.json", '{"rows": []}', "qa_1", r"squad.json is not in the layout of squad \(KeyError\('data'\)\)"),
        ("hotpotqa_some.json", None, "qa_2", "no hotpotqa.json in"),
        ("hotpotqa_some.json", '[{"context": [["a"]]}]', "qa_2", "hotpotqa_some.json is not in the layout of hotpotqa"),
        ("nltk_data/tokenizers/punkt_tab/english/collocations.tab", None, "niah_multiquery", "no .*collocations.tab"),
    ],
)
def test_missing_and_damaged_sources(tmp_path: Path, name: str, text: str | None, task: str, message: str) -> None:
    file = write_sources(tmp_path / "some") / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    line = rf"^benchmark\..*{message}.*; get it with `kvbench data ruler`$"
    with pytest.raises(ValueError, match=line):
        Sources.load(tmp_path / "some").require(task)
    with pytest.raises(ValueError, match=line):
        generate(task, 2000, "words", sources=tmp_path / "some")
    Sources.load(tmp_path / "some").require("vt")
