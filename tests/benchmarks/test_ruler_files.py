"""RULER apart from generation: reading and splitting files, the cache, the command line."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvbench.benchmarks import ruler
from kvbench.benchmarks.ruler import TASKS, RulerRequest, Sources, caching, load_records, records_file, split
from kvbench.benchmarks.ruler.__main__ import main
from tests.helpers.outside import DATA, golden, read_rows
from tests.helpers.ruler_sources import generate, write_sources
from tests.helpers.tokenizers_for_tests import gpt_style

ROOT = Path(__file__).resolve().parents[2]
ORACLE = "oracle/ruler_kvpress_split.jsonl"
GENERATED = [name for name in TASKS if not name.startswith("qa")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("ruler") / "sources")


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return Sources.load(folder)


# ---- splitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["head", "linear2024"])
@pytest.mark.parametrize("task", TASKS)
def test_a_split_loses_nothing(task: str, fit: str, sources: Sources) -> None:
    record = generate(task, 2000, "words", num_samples=1, sources=sources, fit=fit)[0]
    whole = record["input"] + record.get("answer_prefix", "")
    context, question, prefix = split(task, record)
    assert context + question + prefix == whole
    assert question.endswith(("? ", ". ", "\n", f"{question.split()[-1]} ")) and not prefix.startswith(" ")
    assert question.startswith(("What ", "Question: ", "Answer the question"))
    # only the space between question and prefix changes its place
    other = split(task, record, style="upstream")
    assert other == (context, question.removesuffix(" "), f" {prefix}")
    if fit == "head":
        assert other[2] == record["answer_prefix"]


def test_a_split_keeps_the_wrapper_where_it_is(sources: Sources) -> None:
    for task in TASKS:
        record = generate(task, 2500, "words", num_samples=1, sources=sources, template="meta-chat")[0]
        context, question, prefix = split(task, record, style="upstream")
        assert context.startswith("[INST] ") and question.endswith(" [/INST]") and prefix == record["answer_prefix"]


def test_a_split_refuses_what_is_no_such_task(sources: Sources) -> None:
    record = generate("vt", 2000, "words", num_samples=1, sources=sources)[0]
    for style in ("kvpress", "upstream"):
        with pytest.raises(ValueError, match=r"benchmark.tasks=\[cwe\]: a record lacks the question"):
            split("cwe", record, style=style)
    with pytest.raises(ValueError, match="style=other: one of kvpress, upstream"):
        split("vt", record, style="other")


@golden(ORACLE, "ruler/source")
def test_splits_are_those_of_kvpress() -> None:
    rows, upstream = read_rows(ORACLE), Sources.load(DATA / "ruler" / "source")
    assert rows
    for row in rows:
        record = generate(row["task"], row["length"], "words", num_samples=row["sample"] + 1, sources=upstream)[-1]
        context, question, prefix = split(row["task"], record)
        assert (question, prefix, record["outputs"]) == (row["question"], row["answer_prefix"], row["answer"])
        digest = hashlib.sha256(context.encode()).hexdigest()
        assert (len(context), digest) == (row["context_chars"], row["context_sha256"])
        assert TASKS[row["task"]].tokens_to_generate == row["max_new_tokens"]


# ---- reading files ---------------------------------------------------------------------------------


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize("name", ["vt/validation.jsonl", "vt.jsonl"])
def test_folders_of_upstream_are_read(tmp_path: Path, sources: Sources, name: str) -> None:
    for fit in ("head", "linear2024"):
        records = generate("vt", 1500, "words", num_samples=3, sources=sources, fit=fit)
        file = write(tmp_path / name, records)
        assert load_records(tmp_path, "vt") == load_records(file, "vt") == records
        assert records_file(tmp_path, "vt") == file


def test_rows_of_the_hugging_face_data_set_are_read(tmp_path: Path) -> None:
    row = {
        "context": "The text. ",
        "question": "What is the special magic number for a-b mentioned? ",
        "answer_prefix": "The special magic number is",
        "answer": ["1234567"],
        "task": "niah_single_1",
        "max_new_tokens": 128,
    }
    file = write(tmp_path / "test.jsonl", [{**row, "task": "vt"}, row, {**row, "answer": "7654321"}])
    records = load_records(file, "niah_single_1")
    assert [record["outputs"] for record in records] == [["1234567"], ["7654321"]]
    assert records[0]["input"] == row["context"] + row["question"]
    assert split("niah_single_1", records[0]) == (row["context"], row["question"], row["answer_prefix"])
    upstream = split("niah_single_1", records[0], style="upstream")
    assert upstream == (row["context"], row["question"][:-1], f" {row['answer_prefix']}")
    with pytest.raises(ValueError, match=r"test.jsonl: no records of cwe in it$"):
        load_records(file, "cwe")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"input": "a", "outputs": ["b"]}', '{"input": "a", "outp'], r"line 2: cut off or not JSON \(.*"),
        (['{"input": "a"}'], r"line 1: the field 'outputs' is missing"),
        (["", '{"outputs": ["b"]}'], r"line 2: the field 'input' is missing"),
        (
            ['{"context": "a", "question": "b", "answer": ["c"]}'],
            r"line 1: the field 'answer_prefix' is missing",
        ),
        (
            ['{"input": "a", "outputs": []}'],
            r"line 1: the answers must be a list of texts that are not empty",
        ),
        (
            ['{"input": "a", "outputs": [1]}'],
            r"line 1: the answers must be a list of texts that are not empty",
        ),
        (['{"input": 1, "outputs": ["b"]}'], r"line 1: the field 'input' must be a text"),
        (["[" * 100_000], r"line 1: cut off or not JSON \(nested too deeply\)"),
        (['{"input": "a \\ud800", "outputs": ["b"]}'], r"line 1: holds half of a character.*"),
        (
            ['{"input": "a", "outputs": ["b"], "length": [1]}'],
            r"line 1: the field 'length' must be a whole.*",
        ),
        (
            ['{"input": "a", "outputs": [""]}'],
            r"line 1: the answers must be a list of texts that are not empty",
        ),
        (["[1]"], r"line 1: a JSON object was expected, not list"),
        ([], r"no records of vt in it"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "vt.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError) as caught:
        load_records(tmp_path, "vt")
    assert re.fullmatch(rf".*/vt\.jsonl[:,] {message}", str(caught.value)), str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^benchmark.files=.*: not a file, and no folder with vt.jsonl or vt/valid"):
        load_records(tmp_path, "vt")
    with pytest.raises(ValueError, match=r"^benchmark.tasks=\[vtt\]"):
        load_records(tmp_path, "vtt")


# ---- cache -----------------------------------------------------------------------------------------


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache; and the tasks that were really generated."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    generated: list[str] = []

    def counted(request: RulerRequest) -> list[dict[str, Any]]:
        generated.append(request.task)
        return ruler.generate(request)

    monkeypatch.setattr(caching, "generate", counted)
    return generated


def cached(task: str, length: int, tokenizer: Any, **settings: Any) -> list[dict[str, Any]]:
    return ruler.cached(RulerRequest(task, length, tokenizer, **settings))


def test_the_same_request_is_generated_once(calls: list[str], sources: Sources, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"num_samples": 3, "sources": sources}
    first = cached("niah_multikey_3", 3000, gpt_style(), **arguments)
    assert first == generate("niah_multikey_3", 3000, gpt_style(), **arguments)
    assert cached("niah_multikey_3", 3000, gpt_style(), **arguments) == first and len(calls) == 1
    (file,) = (tmp_path / "ruler").glob("*/niah_multikey_3.jsonl")
    about = json.loads(file.with_name("about.json").read_text())
    assert (about["length"], about["num_samples"], about["data"]["version"]) == (3000, 3, "upstream")
    assert sorted(path.name for path in file.parent.iterdir()) == ["about.json", "niah_multikey_3.jsonl"]
    for damage in ("", "\n".join(file.read_text().splitlines()[:2]), file.read_text()[:-20]):
        file.write_text(damage)
        assert cached("niah_multikey_3", 3000, gpt_style(), **arguments) == first
    assert len(calls) == 4


def test_everything_that_matters_is_in_the_key(calls: list[str], sources: Sources, tmp_path: Path) -> None:
    base: dict[str, Any] = {"task": "qa_1", "length": 900, "tokenizer": "words", "num_samples": 2, "sources": sources}
    changed = write_sources(tmp_path / "changed")
    (changed / "squad.json").write_text((changed / "squad.json").read_text() + "\n")
    variants: list[dict[str, Any]] = [
        {},
        {"task": "vt"},
        {"length": 901},
        {"tokenizer": gpt_style(), "length": 5000},
        {"num_samples": 3},
        {"seed": 1},
        {"sources": changed},
        {"template": "meta-chat"},
        {"edit_wrapper": False},
        {"fit": "linear2024"},
        {"start": 1},
    ]
    for variant in variants:
        cached(**{**base, **variant})
    assert len(calls) == len(variants) == len(list((tmp_path / "ruler").iterdir()))
    for variant in variants:
        cached(**{**base, **variant})
    cached(**{**base, "template": "{task_template}"})  # "base" in full
    assert len(calls) == len(variants)


def test_a_tokenizer_without_a_checksum_is_not_cached(calls: list[str], sources: Sources, tmp_path: Path) -> None:
    for _ in range(2):
        assert len(cached("vt", 3000, lambda text: len(text.split()), num_samples=1, sources=sources)) == 1
    assert len(calls) == 2 and not (tmp_path / "ruler").exists()


# ---- command line ----------------------------------------------------------------------------------


def test_the_command_writes_upstreams_format(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = gpt_style()
    tokenizer.backend_tokenizer.enable_truncation(10)  # as some published files have it
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    common = ["--num", "2", "--sources", str(folder), "--out", str(tmp_path / "out")]
    assert main(["--tasks", "vt,qa_1", "--length", "5000", "--tokenizer", str(tmp_path), *common]) == 0
    for task in ("vt", "qa_1"):
        text = (tmp_path / "out" / f"{task}.jsonl").read_text()
        records = generate(task, 5000, gpt_style(), num_samples=2, sources=folder)
        assert text == "".join(json.dumps(record) + "\n" for record in records)
    assert main(["--tasks", "fwe", "--length", "900", "--tokenizer", "words", "--fit", "linear2024", *common]) == 0
    assert load_records(tmp_path / "out", "fwe") == generate(
        "fwe", 900, "words", num_samples=2, sources=folder, fit="linear2024"
    )
    assert "vt: 100%" in capsys.readouterr().err


def test_the_command_does_what_it_can_and_says_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--length", "2000", "--tokenizer", "words", "--num", "1", "--sources", "embedded"]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert sorted(file.stem for file in tmp_path.iterdir()) == sorted(GENERATED)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kvbench: benchmark.")]
    assert [line.split(": ")[1] for line in lines] == ["benchmark.tasks=[qa_1]", "benchmark.tasks=[qa_2]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--tasks", "vt,nope"], "benchmark.tasks=[nope]: no such task"),
        (["--tokenizer", "/no/such"], "--tokenizer /no/such: no tokenizer.json there"),
        (["--tokenizer", __file__], "is no tokenizer"),
        (["--sources", "/no/such"], "benchmark.path=/no/such: no such folder"),
        (["--tasks", "vt", "--length", "90"], "benchmark.lengths=[90]: vt does not fit"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--length", "2000", "--tokenizer", "words", "--num", "1", "--sources", "embedded"]
    assert main([*arguments, "--out", str(tmp_path), *changes]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_light() -> None:
    code = (
        "import sys, kvbench.benchmarks.ruler; "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'nltk', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
