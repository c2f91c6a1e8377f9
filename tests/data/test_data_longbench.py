"""LongBench on disk: layouts, every mistake in a file, the cache of checks, and the derived splits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvbench.benchmarks.longbench_datasets import DATASETS
from kvbench.data import inventory, longbench, needle, rows, splits
from kvbench.data.sources import LONGBENCH_ROWS
from tests.helpers import longbench_bundle as bundle
from tests.helpers.outside import DATA, golden

SHARED = DATA / "longbench"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return bundle.write(tmp_path / "LongBench", qasper=3, trec=2)


# ---- finding and reading -------------------------------------------------------------------------


def test_rows_come_in_file_order_with_all_fields(root: Path) -> None:
    folder = longbench.find(str(root))
    assert folder.available() == ["qasper", "trec"]
    assert folder.rows("qasper") == [bundle.row("qasper", number) for number in range(3)]
    assert folder.check("trec") == 2 and not folder.complete("trec")
    assert folder.checksum("trec") == hashlib.sha256((root / "data" / "trec.jsonl").read_bytes()).hexdigest()
    assert folder.prompts["qasper"] == folder.prompts["qasper_e"] == bundle.PROMPTS["qasper"]
    assert folder.max_new_tokens["qasper"] == folder.max_new_tokens["qasper_e"] == 128


@pytest.mark.parametrize(
    ("jsonl", "config"),
    [(".", "config"), ("data", "config"), ("dev", "config"), ("data", "LongBench/config"), ("data", "../config")],
)
def test_the_usual_layouts(tmp_path: Path, jsonl: str, config: str) -> None:
    root = tmp_path / "x" / "root"
    root.mkdir(parents=True)
    derived = bundle.write(tmp_path / "derived", qasper=1)
    (root / jsonl).mkdir(exist_ok=True)
    (derived / "data" / "qasper.jsonl").rename(root / jsonl / "qasper.jsonl")
    (root / config).parent.mkdir(exist_ok=True)
    (derived / "config").rename(root / config)
    assert longbench.find(str(root)).check("qasper") == 1


def test_a_repeated_id_is_no_mistake(root: Path) -> None:
    (root / "data" / "qasper.jsonl").write_text(bundle.text([bundle.row("qasper")] * 2), encoding="utf-8")
    assert longbench.find(str(root)).check("qasper") == 2


def test_rows_of_longbench_e_may_carry_either_name(root: Path) -> None:
    derived = [bundle.row("qasper"), bundle.row("qasper_e", 1)]
    (root / "data" / "qasper_e.jsonl").write_text(bundle.text(derived), encoding="utf-8")
    assert longbench.find(str(root)).check("qasper_e") == 2


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n"])
def test_the_end_of_a_file_may_differ(root: Path, ending: str) -> None:
    content = bundle.text([bundle.row("qasper")]).removesuffix("\n") + ending
    (root / "data" / "qasper.jsonl").write_bytes(content.encode())
    assert longbench.find(str(root)).check("qasper") == 1


GOOD = bundle.text([bundle.row("qasper")])


def without(field: str) -> str:
    return GOOD + json.dumps({name: value for name, value in bundle.row("qasper", 1).items() if name != field})


def changed(dataset: str = "qasper", **fields: Any) -> str:
    return GOOD + bundle.text([bundle.row(dataset, 1, **fields)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "qasper.jsonl: the file is empty; fetch the file again"),
        ("\n \n", "qasper.jsonl: the file is empty"),
        (GOOD + GOOD[:60], "qasper.jsonl, line 2: cut off or not JSON"),
        (GOOD + "\n" + GOOD, "line 2: cut off or not JSON"),
        (GOOD + "[1]", "line 2: not a JSON object"),
        ("<html>\n" + GOOD, "line 1: cut off or not JSON"),
        (GOOD.encode() + b'{"input": "\xff"}', "line 2: not UTF-8"),
        *((without(field), f"line 2: no field '{field}'") for field in bundle.row("qasper")),
        (changed(context=""), "line 2: 'context' must be a text that is not empty, and is \"\""),
        (changed(context=" \n"), "line 2: 'context' must be a text that is not empty"),
        (changed(context=None), "line 2: 'context' must be a text that is not empty, and is null"),
        (changed(input=3), "line 2: 'input' must be a text, and is 3"),
        (changed(answers="yes"), "line 2: 'answers' must be a list of texts, and is \"yes\""),
        (changed(answers=["yes", 1]), "line 2: 'answers' must be a list of texts"),
        (changed(length="12"), "line 2: 'length' must be a whole number"),
        (changed(length=True), "line 2: 'length' must be a whole number"),
        (changed(length=1.5), "line 2: 'length' must be a whole number"),
        (changed(language=None), "line 2: 'language' must be a text"),
        (changed(all_classes="Reason"), "line 2: 'all_classes' must be a list of texts, or null"),
        (changed(_id=""), "line 2: '_id' must be a text that is not empty"),
        (changed(_id=7), "line 2: '_id' must be a text that is not empty"),
        (changed(dataset="trec"), 'line 2: a row of "trec" in the file of qasper'),
        (GOOD * 201, "qasper.jsonl: 201 rows, but qasper has 200"),
    ],
)
def test_what_is_wrong_with_a_file(root: Path, content: str | bytes, says: str) -> None:
    path = root / "data" / "qasper.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder = longbench.find(str(root))
    for use in (folder.check, folder.rows, folder.checksum):
        with pytest.raises(ValueError) as error:
            use("qasper")
        assert says in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_classified_datasets_need_their_classes(root: Path) -> None:
    path = root / "data" / "trec.jsonl"
    path.write_text(bundle.text([bundle.row("trec", all_classes=None)]), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: trec is scored with 'all_classes', which is empty here"):
        longbench.find(str(root)).check("trec")


def test_names_that_do_not_exist_or_have_no_file(root: Path) -> None:
    folder = longbench.find(str(root))
    with pytest.raises(ValueError, match="benchmark.datasets=qaspr: not a dataset of LongBench. Did you mean 'qas"):
        folder.rows("qaspr")
    with pytest.raises(ValueError, match="benchmark.datasets=zzz: not a dataset of LongBench. Known: 2wikimqa, "):
        folder.check("zzz")
    with pytest.raises(ValueError, match=r"no lcc.jsonl in .*; run `kvbench data longbench`"):
        folder.checksum("lcc")


def test_a_file_is_checked_once_per_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = rows.read
    monkeypatch.setattr(rows, "read", lambda path, dataset: calls.append(dataset) or read(path, dataset))
    for _ in range(3):
        folder = longbench.find(str(root))
        folder.check("qasper")
        folder.checksum("qasper")
    assert calls == ["qasper"]
    path = root / "data" / "qasper.jsonl"
    os.utime(path, ns=(1, 1))
    folder.check("qasper")
    path.write_text(GOOD + "{", encoding="utf-8")
    with pytest.raises(ValueError, match="cut off"):
        folder.check("qasper")
    assert calls == ["qasper"] * 3


def test_a_manifest_is_held_to(root: Path) -> None:
    path = root / "data" / "qasper.jsonl"
    entry = {"sha256": inventory.sha256(path), "bytes": path.stat().st_size}
    inventory.write(root, {"files": {"data/qasper.jsonl": entry}})
    assert longbench.find(str(root)).check("qasper") == 3
    path.write_text(bundle.text([bundle.row("qasper", number) for number in range(2)]), encoding="utf-8")
    with pytest.raises(ValueError, match="qasper.jsonl: changed since it was prepared; fetch the file again"):
        longbench.find(str(root)).rows("qasper")


# ---- folders that are none -----------------------------------------------------------------------


def test_nothing_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"benchmark.path=null: LongBench is not there in .*; run `kvbench data"):
        longbench.find(None)
    assert needle.essays_folder() is None and inventory.prepared("ruler") is None
    bundle.write(tmp_path / "data" / "longbench", qasper=1)
    with pytest.raises(ValueError, match="LongBench was not finished in"):
        longbench.find(None)
    inventory.write(tmp_path / "data" / "longbench", {"files": {"data/qasper.jsonl": {}}})
    assert longbench.find(None).available() == ["qasper"]


def test_a_path_that_leads_nowhere(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match="^benchmark.path=/no/where: no such folder"):
        longbench.find("/no/where")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^benchmark.path=.*: no config/dataset2prompt.json in .*; copy LongBench/co"):
        longbench.find(str(tmp_path / "empty"))
    (root / "config" / "dataset2maxlen.json").unlink()
    with pytest.raises(ValueError, match="no config/dataset2maxlen.json"):
        longbench.find(str(root))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("dataset2prompt", "{", "cut off or not JSON"),
        ("dataset2prompt", "[]", "not a JSON object"),
        ("dataset2prompt", '{"qasper": "Answer {input}"}', "the template of qasper has no {context}"),
        ("dataset2prompt", '{"qasper": "{context} {question}"}', "asks for {question}, which no row has"),
        ("dataset2prompt", '{"qasper": "{context} {"}', "the template of qasper has a stray brace"),
        ("dataset2prompt", '{"qasper": 1}', "the template of qasper is not a text"),
        ("dataset2maxlen", '{"qasper": 0}', "qasper must have a whole number of tokens, 1 or more, and has 0"),
        ("dataset2maxlen", '{"qasper": true}', "and has True"),
    ],
)
def test_damaged_configuration(root: Path, name: str, content: str, says: str) -> None:
    (root / "config" / f"{name}.json").write_text(content)
    with pytest.raises(ValueError) as error:
        longbench.find(str(root))
    assert says in str(error.value) and "\n" not in str(error.value) and f"{name}.json" in str(error.value)


# ---- splits --------------------------------------------------------------------------------------


def test_the_splits_follow_their_rules() -> None:
    derived = splits.kvpress(bundle.PROMPTS)
    assert derived["context_prefix"]["qasper"] == "Read this.\n\nText: {context}\n\n Now answer.\n\n"
    assert derived["question_template"]["qasper"] == "Question: {input}\n\n"
    assert derived["answer_prefix"] == {
        "qasper": "Answer:",
        "trec": "Type:",
        "lcc": "Next:\n",
        "gov_report": "Summary:",
    }
    assert derived["question_template"]["gov_report"] == "Sum up.\n\n"
    assert (derived["context_prefix"]["trec"], derived["question_template"]["trec"]) == (
        "Which kind?\n\n{context}\n",
        "{input}",
    )
    assert derived["question_template"]["lcc"] == "{input}"
    agnostic = splits.ffy0(bundle.PROMPTS)
    assert agnostic["context_prompt"]["qasper"] == "Read this.\n\nText: {context}\n\n"
    assert agnostic["question_prompt"]["qasper"] == "Now answer.\n\nQuestion: {input}\n\nAnswer:"  # without its space
    assert agnostic["_concatenation_equals_upstream_template"] == {"qasper": False} | dict.fromkeys(
        ("trec", "lcc", "gov_report"), True
    )
    odd = splits.kvpress({"a": "{input} first, then {context}\n\n", "b": "{context}"})
    assert odd["context_prefix"] == {"a": "{input} first, then {context}\n\n", "b": "{context}"}
    assert odd["question_template"] == {"a": "", "b": ""} and odd["answer_prefix"] == {}


def test_a_folder_derives_the_splits_of_its_templates(root: Path) -> None:
    folder = longbench.find(str(root))
    assert folder.splits("kvpress") == splits.kvpress(bundle.PROMPTS)
    assert folder.splits("ffy0") == splits.ffy0(bundle.PROMPTS)


# ---- the real data -------------------------------------------------------------------------------


@golden("longbench/config")
@pytest.mark.parametrize("name", ["kvpress", "ffy0"])
def test_derived_splits_are_the_published_ones(name: str) -> None:
    config = SHARED / "config"
    prompts = longbench.read_prompts(config / "dataset2prompt.json")
    derived = longbench.find(str(SHARED)).splits(name)
    assert derived == (splits.kvpress(prompts) if name == "kvpress" else splits.ffy0(prompts))
    published = json.loads((config / f"{name}_split.json").read_text(encoding="utf-8"))
    for key in set(published) - {"_notes", "max_new_tokens"}:
        assert derived[key] == published[key]
    notes = ("_notes", "input_suffix_removed")
    if name == "kvpress":
        assert derived[notes[0]][notes[1]] == published[notes[0]][notes[1]]


@golden("longbench/dev", "longbench/groundtruth")
@pytest.mark.parametrize("dataset", DATASETS)
def test_real_files_are_accepted(dataset: str) -> None:
    folder = longbench.find(str(SHARED))
    real = folder.rows(dataset)
    truths = (SHARED / "groundtruth" / f"{dataset}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    assert 0 < len(real) == folder.check(dataset) < LONGBENCH_ROWS[dataset] == len(truths)
    folder.prompts[dataset].format(**real[0])
