"""RULER's samples: what each task promises, lengths, random streams, mistakes."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.benchmarks.ruler import TASKS, TEMPLATES, Sources
from kvbench.benchmarks.ruler.counting import counter, fingerprint
from kvbench.benchmarks.ruler.niah import DEPTHS
from kvbench.benchmarks.ruler.words import WordPairs
from tests.helpers.ruler_sources import generate, write_sources
from tests.helpers.tokenizers_for_tests import gpt_style

SINGULAR = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3")
QA = ("qa_1", "qa_2")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources.load(write_sources(tmp_path_factory.mktemp("ruler") / "sources"))


def prompt(record: dict[str, Any]) -> str:
    return record["input"] + record.get("answer_prefix", "")


# ---- what a sample of each task is -----------------------------------------------------------------


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("niah")])
def test_niah_hides_every_answer_under_its_key(task: str, sources: Sources) -> None:
    args = TASKS[task].args
    for record in generate(task, 1500, "words", num_samples=3, sources=sources):
        query = re.search(r"special magic \w+ for (.*) mentioned", record["answer_prefix"])
        assert query
        keys = re.split(r", and |, ", query[1])
        assert len(keys) == args["queries"]
        hidden = re.findall(r"One of the special magic \w+s for (\S+) is: (\S+)\.", record["input"])
        answers = [value for key in keys for name, value in hidden if name == key]
        assert sorted(answers) == sorted(record["outputs"])
        assert len(answers) == args["queries"] * args["values"]
        assert record["input"][record["index"] :].startswith(record["outputs"][0])
        assert record["token_position_answer"] == len(record["input"][: record["index"]].split())
        assert ("A special magic" in record["input"]) == (task in SINGULAR)
        assert record["answer_prefix"].endswith(" is" if task in SINGULAR else " are")


@pytest.mark.parametrize("fit", ["head", "linear2024"])
def test_vt_has_a_chain_and_a_solved_example(fit: str, sources: Sources) -> None:
    records = generate("vt", 1500, "words", num_samples=4, sources=sources, fit=fit)
    examples = set()
    for record in records:
        text = prompt(record)
        example, own = text[: text.rfind("Memorize and track")], text[text.rfind("Memorize and track") :]
        for part, letters in ((example, 3), (own, 5)):
            value = re.search(r"assigned the value (\d+) in the text", part)
            first = re.search(r"VAR (\w+) = (\d+)", part)
            assert value and first and first[2] == value[1]
            chain = [first[1]]
            for name, before in re.findall(r"VAR (\w+) = VAR (\w+)", part):
                assert before == chain[-1]
                chain.append(name)
            assert {len(name) for name in chain} == {letters} and len(set(chain)) == 5
            expected = record["outputs"] if letters == 5 else part.split()[-5:]
            assert chain == expected
        examples.add(example)
    # upstream made the example new for each row in 2025; before, it was the same everywhere
    assert len(examples) == (4 if fit == "head" else 1)
    assert ("assgined" in prompt(records[0])) == (fit == "linear2024")  # codespell:ignore


@pytest.mark.parametrize("length", [1500, 4200])
def test_cwe_repeats_ten_words(length: int, sources: Sources) -> None:
    common, others = (6, 1) if length < 4096 else (30, 3)
    for record in generate("cwe", length, "words", num_samples=2, sources=sources):
        own = record["input"][record["input"].rfind("Below is a numbered list") :].split("\n")[1]
        items = re.findall(r"\d+\. (\S*)", own)
        counts = Counter(items)
        assert sorted(counts) == sorted(set(items)) and set(counts.values()) == {common, others}
        assert {word for word, count in counts.items() if count == common} == set(record["outputs"])
        assert record["input"].count("Answer: The top 10 words") == 1  # that of the solved example


def test_fwe_asks_for_the_three_most_frequent_words_but_dots(sources: Sources) -> None:
    for record in generate("fwe", 1500, "words", num_samples=3, sources=sources):
        counts = Counter(record["input"].split("coded words. ")[1].split("\nQuestion")[0].split())
        assert [word for word, _ in counts.most_common(4)] == ["...", *record["outputs"]]


@pytest.mark.parametrize(("task", "gold"), [("qa_1", 1), ("qa_2", 10)])
def test_qa_keeps_the_documents_that_hold_the_answer(task: str, gold: int, sources: Sources) -> None:
    for number, record in enumerate(generate(task, 1500, "words", num_samples=12, sources=sources, start=3), 3):
        documents = re.split(r"(?:^|\n\n)Document \d+:\n", record["input"].split("\n\n", 2)[2])[1:]
        documents[-1] = documents[-1].split("\n\nAnswer the question")[0]
        assert len(set(documents)) == len(documents) >= gold
        if task == "qa_1":
            assert record["outputs"] == ["the harbour" if number < 12 else "the orchard"] * 2
            assert f"Question: What is chapter {number % 12} on?" in record["input"]
            assert any(text.startswith(f"Chapter {number % 12} on {record['outputs'][0]}.") for text in documents)
        else:
            assert record["outputs"] == [f"Writer {number}"]
            assert {f"Title {number}-{part}" for part in range(10)} <= {text.split("\n")[0] for text in documents}


def test_hotpotqa_leaves_out_documents_that_do_not_fit_but_not_the_needed_ones(sources: Sources) -> None:
    whole = generate("qa_2", 2000, "words", num_samples=4, sources=sources)[3]["input"]
    number = whole.count("Document ")
    for length in range(1000, 60, -20):
        try:
            text = generate("qa_2", length, "words", num_samples=4, sources=sources)[3]["input"]
        except ValueError as error:
            assert f"benchmark.lengths=[{length}]: qa_2 does not fit" in str(error)
            break
        titles = re.findall(r"Title \d+-\d+", text)
        assert {"Title 3-3", "Title 3-8"} <= set(titles) and text.count("Document ") <= number
        number = text.count("Document ")
        if len(titles) < 10:  # those that stay are the first of the data set, and the needed ones
            others = sorted(int(title[-1]) for title in titles if title[-1] not in "38")
            assert others == [0, 1, 2, 4, 5, 6, 7, 9][: len(others)]
    assert len(titles) == 2


def test_hotpotqa_without_supporting_facts_keeps_all_ten_documents(tmp_path: Path) -> None:
    write_sources(tmp_path)
    file = tmp_path / "hotpotqa_some.json"
    entries = json.loads(file.read_text())
    fits = generate("qa_2", 150, "words", num_samples=1, sources=tmp_path)
    for entry in entries:
        del entry["supporting_facts"]
    file.write_text(json.dumps(entries))
    assert fits
    with pytest.raises(ValueError, match="qa_2 does not fit"):
        generate("qa_2", 150, "words", num_samples=1, sources=tmp_path)


# ---- lengths and random streams --------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(sorted(TASKS)),
    length=st.integers(100, 5000),
    seed=st.integers(0, 2**32 - 1),
    chars=st.sampled_from([2, 4, 6]),
    fit=st.sampled_from(["head", "linear2024"]),
    template=st.sampled_from(sorted(TEMPLATES)),
)
def test_no_sample_is_ever_longer_than_the_length(
    sources: Sources, task: str, length: int, seed: int, chars: int, fit: str, template: str
) -> None:
    def count(text: str) -> int:
        return -(-len(text) // chars)

    arguments: dict[str, Any] = {"seed": seed, "sources": sources, "fit": fit, "template": template}
    try:
        records = generate(task, length, count, num_samples=3, **arguments)
    except ValueError as error:
        assert re.fullmatch(rf"benchmark\.lengths=\[{length}\]: {task} does not fit this length \(.*\); .*", str(error))
        assert length < 3500
        return
    answer = 0 if (task, fit) == ("fwe", "linear2024") else TASKS[task].tokens_to_generate
    for record in records:
        assert count(prompt(record)) + answer <= length
        assert record["outputs"] and all(record["outputs"])
    # the same again; and the first rows do not depend on how many follow
    assert generate(task, length, count, num_samples=2, **arguments) == records[:2]


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_is_a_data_set_and_the_global_random_state_is_left_alone(task: str, sources: Sources) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()
    first = generate(task, 2000, "words", num_samples=3, sources=sources)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(7)
    assert generate(task, 2000, "words", num_samples=3, sources=sources, seed=42) == first
    other = generate(task, 2000, "words", num_samples=3, sources=sources, seed=43)
    assert all(a["input"] != b["input"] for a, b in zip(first, other, strict=True))
    assert len({record["input"] for record in first}) == 3


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_used(task: str, sources: Sources) -> None:
    small, large = (
        max(r["length"] for r in generate(task, n, "words", num_samples=4, sources=sources)) for n in (2000, 6000)
    )
    assert small <= 2000 < large <= 6000
    # qa_1 has 60 short paragraphs here, and essays grow by 500 words
    assert large > (1.2 * small if task.startswith("qa") else 5300)


@pytest.mark.parametrize("task", TASKS)
def test_too_short_a_length_is_one_line_and_quick(task: str, sources: Sources) -> None:
    begin = time.process_time()
    with pytest.raises(ValueError, match=rf"^benchmark\.lengths=\[40\]: {task} does not fit this length \(.*$"):
        generate(task, 40, "words", num_samples=20, sources=sources)
    assert time.process_time() - begin < 20


def test_a_row_below_upstreams_smallest_size_gets_a_smaller_one(sources: Sources) -> None:
    # upstream adds 500 words at a time and would loop for ever here
    records = generate("niah_single_2", 512, "words", num_samples=20, sources=sources)
    assert {record["length"] <= 512 for record in records} == {True}
    assert min(record["length"] for record in records) > 300


@pytest.mark.parametrize("template", [*TEMPLATES, "Some of you are {{here}}: {task_template} <end>"])
def test_wrappers_stand_around_the_task_and_before_the_answer(template: str, sources: Sources) -> None:
    before, after = TEMPLATES.get(template, template).replace("{{here}}", "{here}").split("{task_template}")
    for task in ("niah_multiquery", "vt", "cwe", "fwe", "qa_1"):
        record = generate(task, 3000, "words", num_samples=1, sources=sources, template=template)[0]
        assert record["input"].startswith(before) and record["input"].endswith(after)
        assert record["answer_prefix"].split("{")[0].startswith(TASKS[task].answer_prefix[:10])
        # the example of cwe is a whole turn with its wrapper, that of vt stands inside the turn
        turns = 2 if task == "cwe" or (task == "vt" and not before) else 1
        assert record["input"].count(before + TASKS[task].template[:8]) == turns or task == "qa_1"


def test_the_singular_of_niah_reaches_the_wrapper_unless_asked_not_to(sources: Sources) -> None:
    arguments: dict[str, Any] = {"num_samples": 1, "sources": sources, "template": "lwm-chat"}
    edited = generate("niah_single_1", 1000, "words", **arguments)[0]["input"]
    spared = generate("niah_single_1", 1000, "words", edit_wrapper=False, **arguments)[0]["input"]
    assert edited.startswith("You is a helpful assistant. USER: A special magic number is hidden")
    assert spared == edited.replace("You is a", "You are a")
    several = generate("niah_multivalue", 1000, "words", **arguments)[0]["input"]
    assert several.startswith("You are a helpful assistant. USER: Some special magic numbers are hidden")


def test_linear2024_has_the_old_fields(sources: Sources) -> None:
    for task in TASKS:
        record = generate(task, 3000, "words", num_samples=2, sources=sources, fit="linear2024")[1]
        assert list(record) == ["index", "input", "outputs", "length"] and record["index"] == 1
        assert TASKS[task].answer_prefix.split("{")[0] in record["input"].replace("is for", "are for")
        if task == "fwe":
            assert record["length"] > 3000 - 100  # the answer is on top of the length
    lines = generate("niah_single_1", 5000, "words", num_samples=1, sources=sources, fit="linear2024")[0]["input"]
    assert lines.count("The grass is green.") % 25 == 0  # whole steps only


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "niah"}, r"benchmark.tasks=\[niah\]: no such task; RULER has niah_single_1, .*"),
        ({"length": 0}, r"benchmark.lengths=\[0\]: lengths are numbers of tokens, from 1 to 10000000"),
        ({"num_samples": 0}, r"benchmark.samples=0: from 1 to 100000, .*"),
        ({"num_samples": 61}, r"benchmark.samples=61: qa_1 has 60 questions, from 0 on"),
        ({"start": 58}, r"benchmark.samples=3: qa_1 has 60 questions, from 58 on"),
        ({"fit": "tail"}, r"benchmark.protocol=tail: one of head, linear2024"),
        ({"template": "[INST] {task}"}, r"benchmark.wrapper='\[INST\] \{task\}': one of base, .*"),
        ({"template": "a {task_template} b {task_template}"}, r"benchmark.wrapper='a .*"),
        ({"template": "a {task_template"}, r"benchmark.wrapper='a .*"),
        ({"tokenizer": 3}, r"tokenizer=3: a tokenizer, a function that counts tokens, or words"),
        ({"tokenizer": lambda text: 0}, r"tokenizer: it counts no tokens in a text; .*"),
        ({"sources": "/no/such/folder"}, r"benchmark.path=/no/such/folder: no such folder; .*kvbench.data ruler`"),
        ({"sources": "embedded"}, r"benchmark.tasks=\[qa_1\]: its questions are not here; .*kvbench.data ruler`"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str, sources: Sources) -> None:
    arguments = {"task": "qa_1", "length": 2000, "tokenizer": "words", "num_samples": 3, "sources": sources} | changes
    with pytest.raises(ValueError) as caught:
        generate(arguments.pop("task"), arguments.pop("length"), arguments.pop("tokenizer"), **arguments)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


# ---- parts -----------------------------------------------------------------------------------------


@given(
    st.lists(st.text("ab-", min_size=0, max_size=4), min_size=1, max_size=8),
    st.lists(st.text("ab-", min_size=0, max_size=3), min_size=1, max_size=8),
)
def test_word_pairs_are_the_sorted_list_without_building_it(adjectives: list[str], nouns: list[str]) -> None:
    pairs = WordPairs(adjectives, nouns)
    built = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    assert list(pairs) == built == pairs[:]
    assert pairs[-1] == built[-1]
    assert random.Random(3).sample(pairs, len(built)) == random.Random(3).sample(built, len(built))
    with pytest.raises(IndexError):
        pairs[len(built)]


def test_depths_are_those_of_numpy() -> None:
    assert np.round(np.linspace(0, 100, num=40, endpoint=True)).astype(int).tolist() == DEPTHS


def test_counts_are_those_of_tokenize() -> None:
    tokenizer = gpt_style()
    text = "Hello <|im_start|>user\n\nwörld " * 30
    count = counter(tokenizer)
    assert count(text) == len(tokenizer.tokenize(text)) == counter(tokenizer.backend_tokenizer)(text)
    before = fingerprint(tokenizer)
    tokenizer(text, truncation=True, max_length=8)
    assert tokenizer.backend_tokenizer.truncation is not None  # left switched on by that use
    assert fingerprint(tokenizer) == before  # it does not count
    assert count(text) == len(tokenizer.tokenize(text)) > 100
    assert fingerprint(gpt_style()) == before and fingerprint(str.split) is None
    tokenizer.add_tokens(["Hello"])
    assert fingerprint(tokenizer) != before
