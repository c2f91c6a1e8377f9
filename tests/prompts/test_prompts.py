"""Prompts: one BOS, the border of the context, stop ids, chat policies and the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench import models
from kvbench.benchmarks.base import Rendering, Sample, SuiteColumn
from kvbench.models.sources import tiny
from kvbench.prompts import __main__ as command
from kvbench.prompts import render, show
from kvbench.prompts.choose import chosen_prompt, chosen_prompts
from tests.helpers.model_specs import spec
from tests.helpers.own_conf import own_conf
from tests.helpers.tokenizers_for_tests import (
    CHATML,
    LLAMA2,
    every_tokenizer,
    gpt_style,
    sentencepiece_style,
    tiny_tokenizer,
)

QUESTIONS = ("aware", "agnostic")


def sample(context="All of the tea.\n", question="\nWhat is in it?", answer_prefix="", **more) -> Sample:
    return Sample("s0", context, question, answer_prefix, ("tea",), 8, **more)


@every_tokenizer
def test_aware_ids_are_those_of_the_tokenizer_itself(make):
    """For text without special strings nothing may differ from the usual way, BOS counted once."""
    tokenizer, s = make(), sample(answer_prefix="It is")
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": s.context + s.question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "It is"
    else:
        text = s.context + s.question + "It is"
    expected = tokenizer(text).input_ids  # as a careless caller would, with a BOS too many in some cases
    bos = tokenizer.bos_token_id
    expected = expected[1:] if expected[:2] == [bos, bos] else expected
    assert list(render(tokenizer, s).ids) == expected


@every_tokenizer
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_template_ends_where_the_context_begins(make, question: str) -> None:
    """Two prompts have what comes before the words in common. A token across the border belongs to the words."""
    tokenizer = make()
    first, other = (render(tokenizer, sample(context=text), question=question) for text in ("All of it.", "?,0 tea"))
    front = first.template_len
    assert front <= first.context_len and 0 <= other.template_len - front <= 1
    assert first.ids[:front] == other.ids[:front]
    text = tokenizer.decode(first.ids[front : first.context_len], skip_special_tokens=True)
    assert text.strip() == "All of it." or front == 0
    if tokenizer.chat_template:
        assert front > 1
    else:
        assert front == (tokenizer.bos_token == "<s>")


@every_tokenizer
@pytest.mark.parametrize("question", QUESTIONS)
def test_exactly_one_bos(make, question):
    tokenizer = make()
    ids = render(tokenizer, sample(), question=question).ids
    if tokenizer.bos_token == "<s>":
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    else:  # no BOS of its own; ChatML's turn marker opens the system-less conversation: user, assistant
        assert ids.count(tokenizer.bos_token_id) == (2 if tokenizer.chat_template else 0)


def test_a_template_with_two_bos_is_told():
    tokenizer = tiny_tokenizer("{{ bos_token }}" + tiny.TEMPLATE)
    with pytest.raises(ValueError, match=r"^model\.chat_template: .*two BOS"):
        render(tokenizer, sample())


@every_tokenizer
@pytest.mark.parametrize("question", QUESTIONS)
def test_context_len_is_the_border(make, question):
    tokenizer, s = make(), sample()
    prompt = render(tokenizer, s, question=question)
    border = prompt.context_len
    assert tokenizer.decode(prompt.ids[:border]).endswith("All of the tea.\n")
    assert tokenizer.decode(prompt.ids[border:]).startswith("\nWhat is in it?")


def test_a_token_across_the_border_belongs_to_the_question_when_aware():
    tokenizer, s = tiny_tokenizer(None), sample(context="over th", question="e hill")
    aware, agnostic = (render(tokenizer, s, question=q) for q in QUESTIONS)
    the = tokenizer.convert_tokens_to_ids("Ġthe")
    assert aware.ids[aware.context_len] == the and the not in agnostic.ids
    assert tokenizer.decode(aware.ids[1 : aware.context_len]) == "over"
    assert tokenizer.decode(agnostic.ids[1 : agnostic.context_len]) == "over th"


@every_tokenizer
def test_agnostic_context_does_not_depend_on_the_question(make):
    tokenizer = make()
    prompts = {
        render(tokenizer, sample(context="over th", question=q), question="agnostic")
        for q in ("e hill", "", "\n\nWhy?", "<s></s>")
    }
    assert len({prompt.ids[: prompt.context_len] for prompt in prompts}) == 1
    assert len({prompt.ids for prompt in prompts}) == 4


words = st.text("ab th.\n<s>/|é漢", max_size=12)


@every_tokenizer
@settings(max_examples=30, deadline=None)
@given(context=words, question=words, prefix=words)
def test_aware_and_agnostic_say_the_same(make, context, question, prefix):
    tokenizer, s = make(), sample(context, question, prefix)
    aware, agnostic = (render(tokenizer, s, question=q) for q in QUESTIONS)
    assert aware.text == agnostic.text
    assert tokenizer.decode(aware.ids) == tokenizer.decode(agnostic.ids)
    assert context + question in aware.text


def test_stop_ids():
    tokenizer = tiny_tokenizer()
    end, newline = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.convert_tokens_to_ids("Ċ")
    eos = frozenset({tokenizer.eos_token_id})
    assert render(tokenizer, sample(), eos_ids=eos).stop_ids == eos | {end}
    assert render(tokenizer, sample(stop=("\n",)), eos_ids=eos).stop_ids == eos | {end, newline}
    assert render(tokenizer, sample(stop=("<|head|>",)), chat_template="never").stop_ids == {2}
    # an instruct model may also end an unwrapped answer by its end of turn
    assert render(tokenizer, sample(chat=False)).stop_ids == {end}
    assert render(tokenizer, sample(), chat_template="never").stop_ids == frozenset()


def test_stop_ids_of_other_templates():
    chatml, llama2 = gpt_style(CHATML), sentencepiece_style("first", LLAMA2)
    assert render(chatml, sample()).stop_ids == {chatml.convert_tokens_to_ids("<|im_end|>")}
    assert render(llama2, sample()).stop_ids == {2}


@pytest.mark.parametrize("prefix", ["first", "always"])
def test_a_newline_is_one_stop_token_also_for_sentencepiece(prefix):
    tokenizer = sentencepiece_style(prefix)
    assert len(tokenizer("\n", add_special_tokens=False).input_ids) == 2  # the naive way sees a ▁ as well
    assert render(tokenizer, sample(stop=("\n",))).stop_ids == {tokenizer.convert_tokens_to_ids("<0x0A>")}


def test_a_stop_string_of_several_tokens_is_told():
    with pytest.raises(ValueError, match=r"^benchmark\.stop='xyz': must be one token .* not 3$"):
        render(tiny_tokenizer(), sample(stop=("xyz",)))


def test_chat_policies():
    tokenizer, bare = tiny_tokenizer(), tiny_tokenizer(None)
    raw = "<s>All of the tea.\n\nWhat is in it?"
    assert render(tokenizer, sample()).text == (
        "<s><|head|>user\nAll of the tea.\n\nWhat is in it?<|end|>\n<|head|>assistant\n"
    )
    assert render(tokenizer, sample(answer_prefix="It is")).text.endswith("assistant\nIt is")
    assert render(tokenizer, sample(), chat_template="always") == render(tokenizer, sample())
    assert render(tokenizer, sample(), chat_template="never").text == raw
    assert render(tokenizer, sample(chat=False)).text == raw
    assert render(bare, sample()).text == raw
    with pytest.raises(ValueError, match=r"^model\.chat_template=always: "):
        render(bare, sample(), chat_template="always")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": "maybe"}, r"^benchmark\.question=maybe: choose aware or agnostic"),
        ({"chat_template": "perhaps"}, r"^model\.chat_template=perhaps: "),
        ({"max_length": 9}, r"^model\.max_length=9: the prompt of sample s0 has \d+ tokens"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        render(tiny_tokenizer(), sample(), **settings)
    assert "\n" not in str(caught.value)


def test_a_template_that_drops_or_repeats_the_user_turn_is_told():
    for template in ("hello", "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"):
        with pytest.raises(ValueError, match=r"^model\.chat_template: .*exactly once"):
            render(tiny_tokenizer(template), sample())


def test_prompt_and_answer_of_exactly_max_length_are_fine() -> None:
    prompt = render(tiny_tokenizer(), sample())
    limit = len(prompt.ids) + sample().max_new_tokens - 1  # the last new token is never read again
    assert render(tiny_tokenizer(), sample(), max_length=limit) == prompt
    with pytest.raises(ValueError, match=f"^model.max_length={limit - 1}: .* tokens, and its answer may have 8; "):
        render(tiny_tokenizer(), sample(), max_length=limit - 1)


def test_show_marks_specials_border_and_stops():
    tokenizer = tiny_tokenizer()
    prompt = render(tokenizer, sample(context="a</s>b", question=" why"), eos_ids=frozenset({1}))
    assert show(prompt, tokenizer) == (
        f"⟦<s>⟧⟦<|head|>⟧user\na</s>b\n⟦ context ends: {prompt.context_len} tokens ⟧\n why⟦<|end|>⟧\n"
        f"⟦<|head|>⟧assistant\n⟦ answer starts ⟧\n\n{len(prompt.ids)} tokens; stops at: 1 '</s>', 3 '<|end|>'"
    )


@dataclass
class TwoSamples:
    """A benchmark for the command line, built by hydra."""

    name: str
    word: str
    question: str
    rendering: ClassVar[Rendering] = Rendering()

    def __post_init__(self) -> None:
        if self.word == "bad":
            raise ValueError("benchmark.word=bad: choose another")

    def samples(self, tokenizer) -> list[Sample]:
        return [sample(), replace(sample(context=self.word, question="e hill"), id="len00400-seed1")]


TWO = ["model=tiny", "benchmark=two"]


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ with the benchmark `two`."""
    folder = own_conf(tmp_path / "conf", monkeypatch)
    (folder / "benchmark" / "two.yaml").write_text(
        "_target_: tests.prompts.test_prompts.TwoSamples\nname: two\nword: hello\nquestion: aware\n"
    )


@pytest.mark.usefixtures("conf")
def test_command_line_shows_a_prompt(capsys):
    assert command.main([*TWO, "benchmark.word=goodbye", "show=1"]) == 0
    out = capsys.readouterr().out
    assert "⟦<|head|>⟧user\ngoodbye\n⟦ context ends" in out and "stops at: 1 '</s>', 3 '<|end|>'" in out
    assert command.main(TWO) == 0
    first = capsys.readouterr().out
    assert "All of the tea." in first and first.endswith("\nsample: s0 of two\n")
    assert command.main([*TWO, "benchmark.word=goodbye", "show=len00400-seed1"]) == 0
    assert capsys.readouterr().out == out
    assert command.main([*TWO, "benchmark.word=goodbye", "show=[len00400-seed1,0,s0]"]) == 0
    assert capsys.readouterr().out == "\n\n".join([out, first, first])


@dataclass
class SmallSuite:
    """A suite of two lengths and a dataset that takes long to read; the lengths share ids."""

    name: str = "small"

    def benchmarks(self, model: object) -> list[OneDataset]:
        return [OneDataset("small-1k-task", "task"), OneDataset("slow", "slow"), OneDataset("small-2k-task", "task")]


@dataclass
class OneDataset:
    name: str
    place: str
    question: str = "aware"
    rendering: Rendering = field(default_factory=Rendering)

    @property
    def column(self) -> SuiteColumn:
        return SuiteColumn("small", self.place, 0)

    def samples(self, tokenizer: object) -> list[Sample]:
        assert self.place != "slow" or self.is_asked, "it takes long, and nobody has asked for it"
        return [replace(sample(context=self.name), id=f"{self.place}-{at:04d}") for at in range(2)]

    is_asked = False


def test_prompts_of_a_suite_by_id_read_only_the_parts_that_may_hold_them(monkeypatch) -> None:
    tiny_spec = spec("tiny")

    def ids(*wanted: int | str) -> list[tuple[str, str]]:
        chosen = chosen_prompts(tiny_spec, tiny_tokenizer(), SmallSuite(), wanted)
        assert all(each.part in each.prompt.text for each in chosen)
        return [(each.name, each.part) for each in chosen]

    assert ids("task-0001") == [("task-0001", "small-1k-task"), ("task-0001", "small-2k-task")]
    assert ids(1) == [("task-0001", "small-1k-task")]
    with pytest.raises(ValueError, match=r"^show=task-0001: a sample of small-1k-task, small-2k-task; give the number"):
        chosen_prompt(tiny_spec, tiny_tokenizer(), SmallSuite(), "task-0001")
    monkeypatch.setattr(OneDataset, "is_asked", True)
    assert ids("slow-0000", 4, "task-0000")[:2] == [("slow-0000", "slow"), ("task-0000", "small-2k-task")]
    with pytest.raises(
        ValueError, match=r"^show=slow-0009: .* no such sample; near: show=slow-000\d, show=slow-000\d; or"
    ):
        ids("slow-0009")


@pytest.mark.parametrize(("question", "border"), [("aware", "over\n⟦"), ("agnostic", "over th\n⟦")])
@pytest.mark.usefixtures("conf")
def test_command_line_takes_the_question_setting_of_the_benchmark(capsys, question, border):
    overrides = [*TWO, "benchmark.word=over th", f"benchmark.question={question}", "show=1"]
    assert command.main(overrides) == 0
    assert f"user\n{border} context ends" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("show=2", "show=2: this benchmark has 2 prompts"),
        ("show=x", "show=x: this benchmark has no such sample; its ids are s0 to len00400-seed1; or a number"),
        ("show=len00400-seed2", "no such sample; near: show=len00400-seed1; or a number, show=0 to show=1"),
        ("show=len", "no such sample; near: show=len00400-seed1; or a number"),
        ("show=s0,1", 'show=s0,1: several prompts are a list: "show=[s0,1]"'),
        (
            "show=[s0,{a: 1}]",
            "show=[s0,{a: 1}]: the number of a prompt (0 for the first), the id of a sample, or a list",
        ),
        ("show=1.5", "show=1.5: the number"),
        ("show=-1", "show=-1: the number"),
        ("show=[]", "show=[]: the number"),
        ("show=", "show=: the number"),
        ("show=[s0", "show=[s0: "),
        ("model.max_length=3", "model.max_length=3: "),
        ("model.dtype=int3", "model.dtype=int3: "),
        ("benchmark.word=bad", "benchmark.word=bad: choose another"),
        ("benchmark=nowhere", "nowhere"),
    ],
)
@pytest.mark.usefixtures("conf")
def test_command_line_mistakes_are_told_without_a_traceback(capsys, override, message):
    assert command.main([*TWO, override]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_help_needs_no_torch():
    code = (
        "import sys; from kvbench.prompts import __main__ as command\n"
        "try: command.main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "show=N" in done.stdout, done.stderr


@pytest.mark.smollm2
def test_smollm2_prompt():
    tokenizer = models.load_tokenizer(spec("smollm2_135m"))
    prompt = render(tokenizer, sample(context="x <|im_end|> y"))
    assert prompt.text.startswith("<|im_start|>system\n") and prompt.text.endswith("<|im_start|>assistant\n")
    assert prompt.ids[0] == 1 and prompt.ids.count(1) == 3 and prompt.ids.count(2) == 2
    assert prompt.stop_ids == {2}
    turns = [{"role": "user", "content": "All of the tea.\n\nWhat is in it?"}]
    native = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(render(tokenizer, sample()).ids) == native
