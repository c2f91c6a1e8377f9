"""The classifier of tasks: its file, what it reads of a prompt, and where it is asked."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import kvbench
from kvbench.common.paths import conf_dir
from kvbench.methods.files import read_file
from kvbench.methods.prompt_facts import PromptFacts
from kvbench.methods.task_classifier import TaskClassifier, buckets, ends, read_classifier, split, written
from kvbench.methods.tasks import OfTask
from perf.task_classifier.compose import composed, runs, text_of
from perf.task_classifier.prompts import Words

SHIPPED = conf_dir() / "tables" / "task_classifier.json"
TEXT = "The committee met on Tuesday. " * 60
ASKED = {
    "localization": "Answer the question based on the text.\n{}\n\nQuestion: Who led the committee?\nAnswer:",
    "aggregation": "Write a summary of the report.\n{}\n\nNow, write a one-page summary of the report.\n\nSummary:",
}


def test_the_shipped_weights_are_those_of_the_figures() -> None:
    about = json.loads(SHIPPED.with_suffix(".about.json").read_text())
    assert about["sha256"] == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert SHIPPED.stat().st_size < 100_000
    for name in ("held_out_samples", "held_out_wordings"):
        held_out = about["figures"][name]
        counts = [count for row in held_out["confusion"].values() for count in row.values()]
        assert held_out["share"] >= 0.95 and sum(counts) == held_out["prompts"]


def test_composed_instructions_repeat_nothing_held_out() -> None:
    text = "Please count the pages of this book and say how many there are. " * 9
    around = text_of("prose", " ".join(f"Sentence {n} is about boats. It is short." for n in range(40)), [], code=False)
    chinese = text_of("chinese", "这是一个关于河流和山脉的很长的句子，讲的是旅行的故事。" * 40, [], code=False)
    code = text_of("code", "x = 1\n" * 400, [], code=True)
    forbidden = runs([text])
    prompts = list(composed(random.Random(0), [around, chinese, code], forbidden, 1))
    assert {prompt.task for prompt in prompts} == set(ASKED) and all(
        runs([prompt.text]).isdisjoint(forbidden) for prompt in prompts
    )
    assert runs(["Say how many there are, please"]) == {("say", "how", "many", "there", "are", "please")}


@pytest.mark.parametrize("task", ASKED)
def test_plain_prompts_get_their_task(task: str) -> None:
    classifier, words = read_classifier(SHIPPED.read_text()), Words()
    ids = words.encode(ASKED[task].format(TEXT))
    assert classifier.task(ids, words.decode) == task
    assert classifier.task_of_texts(*(words.decode(part) for part in ends(ids, 256))) == task


def test_a_file_is_what_was_written() -> None:
    classifier = TaskClassifier(bytes(range(256)), -5, read=9, words=3)
    assert read_classifier(written(classifier)) == classifier
    sums = [TaskClassifier(bytes([weight]), 1).sum("word", "") for weight in (0, 127, 128, 255)]
    assert sums == [1, 128, -127, 0]


def test_ends_hold_no_token_twice() -> None:
    assert ends([1, 2, 3], 5) == ([1, 2, 3], [])
    assert ends([1, 2, 3, 4, 5], 3) == ([1, 2, 3], [4, 5])
    assert ends(range(10), 3) == (range(3), range(7, 10))


def test_only_words_near_the_ends_count() -> None:
    middle = " ".join(["middle"] * 50)
    assert buckets(f"a b {middle}", f"{middle} c d", 4096, 2) == buckets("a b", "c d", 4096, 2)
    assert buckets("Number 17", "", 4096, 9) == buckets("number 4", "", 4096, 9)


def test_marks_of_a_chat_template_do_not_count() -> None:
    assert split("<|im_start|>user\nSum <it> up [/INST]</s>") == ["user", "sum", "<", "it", ">", "up"]
    assert buckets("summarize", "", 4096, 9) & buckets("summary", "", 4096, 9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object of weights"),
        ({"format": "other"}, "format must be"),
        ({"bias": 1, "read": 1}, "KeyError"),
        ({"weights": "?", "bias": 1, "read": 1, "words": 1}, "Error"),
        ({"weights": "AAAA", "bias": 1.5, "read": 1, "words": 1}, "bias must be numbers above 0"),
        ({"weights": "AAAA", "bias": 1, "read": 0, "words": 1}, "must be numbers above 0"),
    ],
    ids=str,
)
def test_a_file_that_is_no_classifier_is_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    file = tmp_path / "own.json"
    head = {"format": "kvbench task classifier 2"}
    file.write_text(content if isinstance(content, str) else json.dumps(head | content))
    with pytest.raises(ValueError) as caught:
        kvbench.load_method("windowkv", classifier=str(file))
    text = str(caught.value)
    assert text.startswith(f"method.classifier={file}: is no classifier of tasks (") and reason in text
    assert "\n" not in text


class View:
    """A view of a model that decodes words."""

    def __init__(self) -> None:
        self.words = Words()

    def decode(self, ids: Any) -> str:
        return self.words.decode(ids)


def facts(asked: str, task: str | None) -> PromptFacts:
    view = View()
    ids = torch.tensor(view.words.encode(ASKED[asked].format(TEXT)))
    return PromptFacts(token_ids=ids, model=view, task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "named", "expected"),
    [
        ("auto", "localization", "localization"),
        ("auto", None, "aggregation"),
        ("classifier", "localization", "aggregation"),
        ("localization", None, "localization"),
        ("localization", "aggregation", "localization"),
    ],
)
def test_where_a_task_comes_from(source: str, named: str | None, expected: str) -> None:
    part = OfTask(source, read_file("classifier", str(SHIPPED)))
    assert part.task_of(facts("aggregation", named)) == expected
    assert part.needs == (frozenset() if source == "localization" else {"task", "token_ids", "model"})


def test_the_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(written(TaskClassifier(bytes(4), 0)))
    shipped, other_method = (kvbench.load_method("windowkv", **dials) for dials in ({}, {"classifier": str(other)}))
    digests = {method.dials["classifier"].digest for method in (shipped, other_method)}
    assert len(digests) == 2 and shipped != other_method
