"""The needle benchmark: insertion, samples, protocol, and every mistake it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from kvbench.benchmarks import needle_checks
from kvbench.benchmarks.base import ModelFacts, encode
from kvbench.benchmarks.haystack import Essays, first_ids
from kvbench.benchmarks.insertion import Placement, insert, trimmed
from kvbench.benchmarks.needle import Needle
from tests.helpers.needle_forms import CONF, ToyTokenizer, make
from tests.helpers.tokenizers_for_tests import gpt_style

YAML = CONF / "needle.yaml"


# ---- insertion -----------------------------------------------------------------------------------


def placed(haystack: str, needle: str, length: int, depth: int, buffer: int = 0, stop: str = ".") -> Placement:
    """Place a needle as the published code does; sentences end at the tokens of `stop`."""
    tokenizer = ToyTokenizer()
    stop_ids = encode(tokenizer, stop)
    ids = encode(tokenizer, haystack * (length // len(encode(tokenizer, haystack)) + 1))
    context = trimmed(tokenizer, tokenizer.decode, ids, length)
    return insert(tokenizer.decode, context, encode(tokenizer, needle), length - buffer, depth, stop_ids)


@pytest.mark.parametrize(
    ("depth", "text", "index", "reached"),
    [
        (0, "X.Aa bb. Cc dd. Ee", 0, 0.0),
        (30, "X.Aa bb. Cc dd. Ee", 0, 0.0),  # token 3 of 11 has no full stop before it
        (40, "Aa bb.X. Cc dd. Ee", 4, 36.4),  # token 4 follows a full stop
        (80, "Aa bb.X. Cc dd. Ee", 4, 36.4),  # token 8 steps back from " "
        (90, "Aa bb. Cc dd.X. Ee", 9, 81.8),
        (100, "Aa bb. Cc dd. EeX.", None, 100.0),
    ],
)
def test_insertion_steps_back_to_the_end_of_a_sentence(
    depth: int, text: str, index: int | None, reached: float
) -> None:
    # Tokens: Aa _ bb . _ Cc _ dd . _ Ee ...; a length of 16 less a buffer of 3 less a needle of 2: 11.
    assert placed("Aa bb. Cc dd. Ee ff. Gg hh.", "X.", 16, depth, buffer=3) == Placement(text, index, reached)


def test_other_tokens_can_end_sentences() -> None:
    assert placed("Aa bb cc dd ee", "X", 8, 80, stop=" ").text == "Aa bb Xcc dd"


def test_a_needle_longer_than_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^benchmark\.lengths: 3 tokens .* needle of 5 tokens$"):
        placed("Aa bb.", "a b c", 3, 50)


# ---- haystacks of other languages ------------------------------------------------------------------

CHINESE = "".join(f"第{i}天下了雨，人们都在家里读书。" for i in range(400))
CODE = "".join(f"def area_{i}(a, b):\n    return a * b + {i}\n\n" for i in range(400))
ONE_LINE = "0123456789 abcdef " * 900  # no sentence at all
RARE = "Version 2. " + ONE_LINE  # a single full stop at the very beginning


@pytest.mark.parametrize("text", [CHINESE, CODE, ONE_LINE, RARE], ids=["chinese", "code", "one line", "rare"])
def test_needles_reach_their_depth_in_texts_without_full_stops(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokenizer = gpt_style()  # a token for every byte, so a character can be cut
    for sample in make(haystack=str(tmp_path), lengths=[1500], depths=[0, 25, 50, 75, 100]).samples(tokenizer):
        depth, reached = sample.meta["depth"], sample.meta["depth_reached"]
        assert depth - 5.1 <= reached <= depth, (depth, reached)
        before, _, after = sample.context.partition(" One of the special magic numbers")
        before = before.partition("afterwards.\n")[2]
        assert "\ufffd" not in before and "\ufffd" not in after[:200]
        if depth == 50 and text is CHINESE:
            assert before.endswith("。")
        if depth == 50 and text is CODE:
            assert before.rstrip(" ").endswith("\n")  # a border within the indentation counts


def test_the_depth_reached_is_recorded_in_prose_too() -> None:
    for sample in make(lengths=[1000]).samples(ToyTokenizer()):
        assert sample.meta["depth"] - 8 <= sample.meta["depth_reached"] <= sample.meta["depth"]


def test_period_ids_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^benchmark\.period_ids=\[999999\]: none of these tokens occurs"):
        make(period_ids=[999999]).samples(ToyTokenizer())


# ---- samples -------------------------------------------------------------------------------------


def test_default_samples_ask_for_the_number_in_their_own_context() -> None:
    samples = make().samples(ToyTokenizer())
    assert len(samples) == 28 == len({sample.id for sample in samples})
    assert samples[10].id == "len00600-depth050-seed0"
    for sample in samples:
        key, value = re.search(r"magic numbers for (\w+-\w+) is: (\d{7})\.", sample.context).groups()
        assert sample.answers == (value,) and re.findall(r"\d+", sample.context) == [value]
        assert sample.question == f"\nWhat is the special magic number for {key} mentioned in the provided text?"
        assert sample.answer_prefix.startswith(f"The special magic number for {key} ")
        assert sample.chat and sample.max_new_tokens == 20 and json.dumps(dict(sample.meta))
    assert len({sample.answers for sample in samples}) == 28


def test_needles_lie_at_their_depth_and_contexts_have_their_length() -> None:
    tokenizer = ToyTokenizer()
    benchmark = make(lengths=[1000, 3000], depths=[0, 25, 75, 100], buffer=100)
    for sample in benchmark.samples(tokenizer):
        text = sample.context.removeprefix(benchmark.preamble)
        length = len(tokenizer.encode(text, add_special_tokens=False))
        assert length in (
            sample.meta["length"] - 100,
            sample.meta["length"] - 101,
        )  # two spaces may become one
        at = text.index(" One of the special") / len(text)
        assert -0.06 <= at - sample.meta["depth"] / 100 <= 0.02
        assert (sample.meta["needle_token"] is None) == (sample.meta["depth"] == 100)


def test_needles_follow_the_given_ends_of_sentences() -> None:
    tokenizer = ToyTokenizer()
    space = tokenizer.encode(" ", add_special_tokens=False)
    at = {
        ids: make(lengths=[500], depths=[50], period_ids=ids and list(ids)).samples(tokenizer)[0].meta["needle_token"]
        for ids in (None, tuple(space))
    }
    room = 500 - len(tokenizer.encode(" One of the special magic numbers for a-b is: 1.", add_special_tokens=False))
    assert at[None] < at[tuple(space)] and at[tuple(space)] in (room // 2, room // 2 - 1)


def test_cells_do_not_depend_on_the_rest_of_the_grid() -> None:
    wide = {sample.id: sample for sample in make(lengths=[500, 1500], num_seeds=2).samples(ToyTokenizer())}
    alone = make(lengths=[500], depths=[33], seed=1).samples(ToyTokenizer())
    assert [sample.id for sample in alone] == ["len00500-depth033-seed1"]
    assert wide[alone[0].id] == alone[0]
    assert wide["len00500-depth033-seed0"].context != alone[0].context


def test_score_needs_only_what_a_record_holds() -> None:
    assert make(haystack="gone").score(["1234567"], "1234567", {"reference": "1"})["recall"] == 1.0
    benchmark = make()
    sample = benchmark.samples(ToyTokenizer())[0]
    record = json.loads(json.dumps({"answers": sample.answers, "meta": dict(sample.meta)}))
    right = benchmark.score(record["answers"], f" {sample.answers[0]}.", record["meta"])
    assert right == {"recall": 1.0, "rouge1": 1.0}
    assert benchmark.score(record["answers"], " 42.", record["meta"]) == {"recall": 0.0, "rouge1": 0.0}


# ---- protocol ------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """Two folders with equal essays and a third with others."""
    for name, text in (("first", "Some text. "), ("same", "Some text. "), ("other", "Another text. ")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "essay.txt").write_text(text * 300)
    yield str(tmp_path / "first"), str(tmp_path / "same"), str(tmp_path / "other")


def test_protocol_is_json_and_knows_texts_not_paths(folders: tuple[str, str, str]) -> None:
    first, same, other = (make(haystack=folder).protocol() for folder in folders)
    assert first == same == json.loads(json.dumps(first))
    assert first != other and not any(folders[0] in str(value) for value in first.values())
    assert first["version"] == 1 and "metrics" not in first


def test_scoring_names_the_metrics_with_their_versions() -> None:
    assert make().scoring() == {"metrics": {"recall": 1, "rouge1": 1}}
    assert make(scores=["recall"]).scoring() == {"metrics": {"recall": 1}}


def test_lengths_in_steps_are_the_same_protocol_as_lengths_listed() -> None:
    listed, steps = make(lengths=[500, 700, 900]), make(lengths=None, start=500, end=1000, step=200)
    assert steps.protocol() == listed.protocol() != make().protocol()


def test_lengths_that_a_model_does_not_take_are_refused_before_any_text_is_made() -> None:
    benchmark = make(lengths=[1000, 8192, 9000])
    with pytest.raises(ValueError, match=r"^benchmark\.lengths=\[8192, 9000\]: some takes 8192 tokens with question"):
        benchmark.benchmarks(ModelFacts("some", max_length=8192))
    assert benchmark.benchmarks(ModelFacts("some", max_length=20_000)) == [benchmark]


def test_a_backslash_and_an_n_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    needle_checks.tell_escapes.cache_clear()
    for _ in range(2):
        make(question_text="\\nWhat is {key}?")
    assert caplog.text.count("benchmark.question_text holds a backslash and an n") == 1


CHANGES: dict[str, Any] = {
    "question": "agnostic", "lengths": [600], "depths": [1], "seed": 5, "num_seeds": 2, "buffer": 9,
    "preamble": "P",
    "needle": " N {key} {value}.", "question_text": "Q", "answer_prefix": "A", "answer": "{value}!",
    "headline": "rouge1", "reference": "R", "scores": ["recall"], "max_new_tokens": 8, "stop": ["\n"],
    "chat": False, "raw": True, "name": "other", "period_ids": [3],
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_protocol_changes_with_every_key(key: str) -> None:
    needed = {"chat": False} if key == "raw" else {}
    changed = make(**{key: CHANGES[key]}, **needed).protocol()
    same = key in ("headline", "scores")  # which scores are taken, and shown, changes no answer
    assert (changed == make().protocol()) == same


def test_every_key_of_the_yaml_is_covered_by_the_protocol_tests() -> None:
    assert set(yaml.safe_load(YAML.read_text())) == {*CHANGES, "_target_", "haystack", "start", "end", "step"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [50, 120]}, r"benchmark\.depths=120: give a whole number from 0 to 100"),
        ({"depths": [-1]}, r"benchmark\.depths=-1: give a whole number from 0 to 100"),
        ({"depths": [33.3]}, r"benchmark\.depths=33\.3: give a whole number"),
        ({"depths": []}, r"benchmark\.depths=\[\]: give a list of at least one"),
        ({"depths": [5, 5]}, r"benchmark\.depths=\[5, 5\]: give each value once"),
        ({"lengths": [500, 500]}, r"benchmark\.lengths=\[500, 500\]: give each value once"),
        ({"lengths": [-500]}, r"benchmark\.lengths=-500: give a whole number from 1 to 10000000"),
        (
            {"lengths": [200], "buffer": 200},
            r"benchmark\.lengths=\[200\]: each must exceed benchmark\.buffer=200",
        ),
        ({"buffer": -1}, r"benchmark\.buffer=-1"),
        ({"seed": "x"}, r"benchmark\.seed=x: give a whole number"),
        ({"seed": -1}, r"benchmark\.seed=-1: give a whole number of at least 0"),
        ({"start": 500, "step": 5}, r"benchmark\.lengths=.*: give .*; add benchmark\.start=null benchmark\.step=null$"),
        ({"lengths": None}, r"benchmark\.start=null: benchmark\.lengths is null, so give start, end and step"),
        ({"lengths": None, "start": 5, "end": 9, "step": 0}, r"benchmark\.step=0: give a whole number from 1"),
        ({"lengths": None, "start": 9, "end": 8, "step": 1}, r"benchmark\.end=8: at least benchmark\.start=9"),
        ({"lengths": 1000}, r"benchmark\.lengths=1000: give a list"),
        ({"period_ids": 13}, r"benchmark\.period_ids=13: give a list"),
        ({"period_ids": []}, r"benchmark\.period_ids=\[\]: give a list of at least one"),
        ({"buffer": 0.5}, r"benchmark\.buffer=0\.5: give a whole number"),
        ({"num_seeds": 0}, r"benchmark\.num_seeds=0: give a whole number from 1"),
        ({"max_new_tokens": 0}, r"benchmark\.max_new_tokens=0: give a whole number from 1"),
        ({"raw": True}, r"benchmark\.raw=true: a raw prompt has no chat template; set benchmark\.chat=false"),
        ({"question": "both"}, r"benchmark\.question=both: not known\. Known: agnostic, aware"),
        ({"scores": ["bleu"]}, r"benchmark\.scores=bleu: not known\. Known: overlap, recall, rouge1"),
        ({"headline": "overlap"}, r"benchmark\.headline=overlap: must be one of"),
        ({"needle": "The {thing}."}, r"benchmark\.needle='The \{thing\}\.': the only placeholders"),
        ({"answer": "{value"}, r"benchmark\.answer='\{value': "),
        ({"needle": "No slots."}, r"benchmark\.question_text asks for \{key\}, which benchmark\.needle"),
        ({"answer": " "}, r"benchmark\.needle and benchmark\.answer must not be empty"),
        ({"lengths": [10**40]}, r"benchmark\.lengths=10{40}: give a whole number from 1 to 10000000"),
        ({"lengths": [1e40]}, r"benchmark\.lengths=1e\+40: give a whole number"),
        ({"num_seeds": 10**9}, r"benchmark\.num_seeds=1000000000: give a whole number from 1 to 100000"),
        ({"num_seeds": 50_000}, r"benchmark\.num_seeds=50000: with 28 cells .* more than 100000 samples"),
        ({"num_seeds": 90_000, "depths": [1], "lengths": [999]}, r"benchmark\.num_seeds=90000: the haystacks would"),
        ({"lengths": None, "start": 1, "end": 10**7, "step": 1}, r"benchmark\.step=1: that is 10000000 lengths"),
        ({"stop": ["a", 5]}, r"benchmark\.stop=\['a', 5\]: give a list of texts"),
        ({"haystack": "no/such/folder"}, r"benchmark\.haystack=no/such/folder: no such folder"),
    ],
)
def test_mistakes_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Needle(**{**_arguments(), **changes}).protocol()
    assert "\n" not in str(error.value)


def _arguments() -> dict[str, Any]:
    config = OmegaConf.create({"benchmark": OmegaConf.load(YAML)})
    arguments = OmegaConf.to_container(config, resolve=True)["benchmark"]
    del arguments["_target_"]
    return arguments


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^benchmark\.haystack=.*holds no \.txt files$"):
        Needle(**{**_arguments(), "haystack": str(tmp_path)}).protocol()


def test_a_needle_that_does_not_fit_is_refused_when_lengths_are_known() -> None:
    with pytest.raises(ValueError, match=r"^benchmark\.lengths: 10 tokens"):
        make(lengths=[10, 500]).samples(ToyTokenizer())


def test_an_end_of_a_sentence_is_looked_for_within_a_reach_alone() -> None:
    """A needle lies at most a twentieth of the context, or 8 tokens, before its depth."""
    for length, reach in ((400, 20), (60, 8)):
        index = length // 2
        for back, place in ((reach - 1, index - reach + 1), (reach, index), (reach + 1, index)):
            text = ["a"] * length
            text[index - back - 1] = "\u3002"  # the sentence ends `back` tokens before the depth
            placement = insert(lambda ids: "".join(map(chr, ids)), [*map(ord, text)], [ord("N")], length + 1, 50, None)
            assert placement.token == place, (length, back)


class Words:
    """A tokenizer of long words: a word that is cut has another id."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [int.from_bytes(word.encode(), "big") for word in text.split()]

    def decode(self, token_ids: list[int]) -> str:
        raise AssertionError


def test_the_last_tokens_of_a_haystack_that_was_cut_are_not_used(tmp_path: Path) -> None:
    """The text is read up to a number of characters, where a word may be cut."""
    text = "abc " + " ".join(f"number{i:09d}" for i in range(5000))
    (tmp_path / "a.txt").write_text(text)
    whole = Words().encode(text, add_special_tokens=False)
    for length in range(
        250, 265
    ):  # 8 characters a token, and 256 tokens more, are just as many words, the last one cut
        assert first_ids(Words(), Essays(tmp_path), length)[:length] == whole[:length]
