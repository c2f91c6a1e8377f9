"""A user's own questions: every line becomes a sample, mistakes are one line, and the content is the identity."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kvbench.benchmarks.base import ModelFacts
from kvbench.benchmarks.jsonl import JsonLines
from kvbench.common.paths import conf_dir
from kvbench.data import questions
from kvbench.engine.prefill import PrefillPass
from kvbench.metrics.answers import VERSIONS, answer_score
from kvbench.run import runner
from kvbench.run.jobs import prepare
from tests.helpers.runs import count_rows, records
from tests.helpers.tokenizers_for_tests import gpt_style

ROOT = Path(__file__).resolve().parents[2]
ROW: dict[str, Any] = {"context": "The code is 7305. ", "question": "What is the code?", "answers": ["7305"]}
SHARED = "One. Two. Three. " * 12


def written(folder: Path, *rows: Any, name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def make(path: str | None, **changes: Any) -> JsonLines:
    node: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "benchmark" / "jsonl.yaml"))
    return JsonLines(**{key: value for key, value in node.items() if key != "_target_"} | {"path": path} | changes)


def test_a_line_is_a_sample(tmp_path: Path) -> None:
    more = {"answers": ["a", "b"], "answer_prefix": "It is", "max_new_tokens": 5, "id": "second"}
    samples = make(written(tmp_path, ROW, ROW | more), answer_prefix="So:", max_new_tokens=9).samples(gpt_style())
    assert [sample.id for sample in samples] == ["line-00001", "second"]
    assert samples[0].context == ROW["context"] and samples[0].question == "\n\nWhat is the code?"
    assert [(s.answer_prefix, s.max_new_tokens, s.answers) for s in samples] == [
        ("So:", 9, ("7305",)),
        ("It is", 5, ("a", "b")),
    ]
    assert [sample.meta["line"] for sample in samples] == [1, 2]


def test_a_line_may_name_its_task(tmp_path: Path) -> None:
    with_task = make(written(tmp_path, ROW, ROW | {"task": "aggregation"}))
    without = make(written(tmp_path, ROW, ROW, name="without.jsonl"))
    assert [sample.task for sample in with_task.samples(gpt_style())] == [None, "aggregation"]
    assert with_task.protocol()["tasks"] is True and "tasks" not in without.protocol()  # older runs had no such field


def test_the_template_goes_around(tmp_path: Path) -> None:
    row = ROW | {"context": "{question} {x}", "question": "{context}?"}  # braces of the data are text
    [sample] = make(written(tmp_path, row), template="Read:\n{context}\nAsk {question} now.").samples(gpt_style())
    assert sample.context == "Read:\n{question} {x}" and sample.question == "\nAsk {context}? now."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: cut off or not JSON"),
        ("", r"line 2: cut off or not JSON"),
        ("[1]", r"line 2: not a JSON object, such as \{\"context\": "),
        ({"context": "x", "answers": ["y"]}, r"line 2: no field 'question'; a line has context, question, answers"),
        (ROW | {"context": " "}, r"line 2: 'context' must be a text that is not empty, and is \" \""),
        (ROW | {"question": 5}, r"line 2: 'question' must be a text that is not empty, and is 5"),
        (ROW | {"answers": "7305"}, r"line 2: 'answers' must be a list of texts that are not empty, and is \"7305\""),
        (ROW | {"answers": []}, r"line 2: 'answers' must be a list of texts"),
        (ROW | {"answers": ["x", ""]}, r"line 2: 'answers' must be a list of texts"),
        (ROW | {"answer_prefix": None}, r"line 2: 'answer_prefix' must be a text, and is null"),
        (ROW | {"max_new_tokens": 0}, r"line 2: 'max_new_tokens' must be a whole number from 1 to 1000000, and is 0"),
        (ROW | {"max_new_tokens": True}, r"line 2: 'max_new_tokens' must be a whole number"),
        (ROW | {"task": "qa"}, r"line 2: 'task' must be localization or aggregation, and is \"qa\""),
        (ROW | {"task": ["aggregation"]}, r"line 2: 'task' must be localization or aggregation"),
        (ROW | {"task": None}, r"line 2: 'task' must be localization or aggregation, and is null"),
        (ROW | {"id": "../x"}, r"line 2: 'id' must be a text of letters, digits"),
        (ROW | {"id": "first"}, r"line 2: 'id' is 'first', as in line 1; make it another"),
        (ROW | {"question": "\ud800?"}, r"line 2: holds half of a character"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: Any, message: str) -> None:
    benchmark = make(written(tmp_path, ROW | {"id": "first"}, line, ROW))
    for use in (benchmark.protocol, lambda: benchmark.samples(gpt_style())):
        with pytest.raises(ValueError, match=rf"^benchmark\.path: .*mine\.jsonl, {message}") as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, "benchmark.path=null: name your file of JSON lines"),
        ({"path": "no/such.jsonl"}, "benchmark.path: no/such.jsonl: cannot be read (No such file"),
        ({"path": " "}, "benchmark.path=' ': name"),
        ({"scores": ["f2"], "headline": "f2"}, "benchmark.scores=f2: not known. Did you mean 'f1'?"),
        ({"scores": []}, "benchmark.scores=[]: give a list of exact"),
        ({"scores": "f1"}, "benchmark.scores=f1: give a list of exact"),
        ({"headline": "rouge_l"}, "benchmark.headline=rouge_l: must be one of benchmark.scores=['contains', 'f1']"),
        ({"question": "both"}, "benchmark.question=both: not known"),
        ({"max_new_tokens": 0}, "benchmark.max_new_tokens=0: give a whole number from 1"),
        ({"template": "{context} {answer} {question}"}, "benchmark.template: {answer}: the only placeholders are"),
        (
            {"template": "{question} {context}"},
            "benchmark.template: must have {context} once, and {question} once after",
        ),
        ({"template": "{context}"}, "benchmark.template: must have {context} once, and {question} once after"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        make(**{"path": None, **changes}).protocol()
    assert "\n" not in str(error.value)


def test_an_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^benchmark\.path: .*mine\.jsonl: the file is empty$"):
        make(written(tmp_path)).protocol()


def test_the_content_is_the_identity_and_the_place_is_not(tmp_path: Path) -> None:
    here, there = make(written(tmp_path, ROW)), make(written(tmp_path, ROW, name="other.jsonl"))
    assert here.protocol() == there.protocol()
    for change in ({"template": "{context} {question}"}, {"answer_prefix": "x"}, {"max_new_tokens": 3}):
        assert make(here.path, **change).protocol() != here.protocol()
    assert make(here.path, scores=["exact"], headline="exact").protocol() == here.protocol(), "old answers, new scores"
    before = here.protocol()
    written(tmp_path, ROW | {"answers": ["7306"]})
    assert make(here.path).protocol() != before, "the file was read again"


def test_runs_have_the_name_of_the_file() -> None:
    facts = ModelFacts("tiny")
    names = {path: make(path).benchmarks(facts)[0].name for path in ("a/my questions.jsonl", "b.c.jsonl", "…")}
    assert names == {"a/my questions.jsonl": "jsonl-my_questions", "b.c.jsonl": "jsonl-b.c", "…": "jsonl"}


def test_fields_that_nothing_reads_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kvbench"):
        path = written(tmp_path, ROW | {"source": "web"}, ROW | {"max_tokens": 5})
        make(path).protocol(), make(path).protocol()
    [line] = [r.getMessage() for r in caplog.records if "nothing reads" in r.getMessage()]
    assert "'max_tokens', 'source'" in line and "max_new_tokens" in line


@pytest.mark.parametrize(
    ("name", "prediction", "score"),
    [
        ("exact", " the  Key.\n", 1.0),
        ("exact", "the key is", 0.0),
        ("contains", "It is the key, I think", 1.0),
        ("contains", "It is 73051", 0.0),
        ("contains", "7305!", 1.0),
        ("f1", "A key", 1.0),
        ("f1", "red key", 2 / 3),
        ("rouge_l", "the key", 1.0),
        ("rouge_l", "no", 0.0),
    ],
)
def test_a_score_is_the_best_over_the_answers(name: str, prediction: str, score: float) -> None:
    assert answer_score(name, prediction, ["the key", "7305"]) == pytest.approx(score)
    assert answer_score(name, prediction, []) == 0.0


def test_every_score_can_be_the_headline(tmp_path: Path) -> None:
    benchmark = make(written(tmp_path, ROW), scores=list(VERSIONS), headline="rouge_l")
    assert benchmark.score(("7305",), "7305", {}) == dict.fromkeys(VERSIONS, pytest.approx(1.0))
    assert set(benchmark.scoring()["metrics"]) == set(VERSIONS)


@pytest.mark.parametrize("question", ["aware", "agnostic"])
def test_it_runs_and_questions_share_a_context(
    tmp_path: Path, compose: Callable[..., Any], question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ROW | {"context": SHARED, "question": f"What is {word}?", "answers": [word]} for word in ("one", "two", "six")
    ]
    words = ["benchmark=jsonl", f"benchmark.path={written(tmp_path, *rows)}", f"benchmark.question={question}"]
    words += ["model=tiny", "method=snapkv", "budget=0.3", "limit=2", "benchmark.max_new_tokens=3", "progress=false"]
    [job] = prepare(compose(*words, f"paths.outputs={tmp_path}"))
    assert job.question == question and job.label["benchmark"] == "jsonl-mine"
    prefills = count_rows(monkeypatch, PrefillPass)
    [outcome] = runner.run_jobs([job])
    assert outcome.error is None
    lines = records(outcome)
    assert {record["id"] for record in lines} == {"line-00001", "line-00002"}
    assert all(set(record["scores"]) == {"contains", "f1"} for record in lines)
    assert prefills == ([2] if question == "agnostic" else [1, 1]), "two questions on a context share its prefill"


def test_the_example_of_the_documents_is_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    [(name, body)] = re.findall(r"^<!-- file: (\S+) -->\n```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / name).write_text(body, encoding="utf-8")
    rows, _ = questions.read(tmp_path / name)
    assert [row.id for row in rows] == ["line-00001", "blue"] and rows[0].context == rows[1].context
