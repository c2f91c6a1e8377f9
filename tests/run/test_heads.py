"""`kvbench heads`: scores of heads equal a naive computation, prompts count by their answers, nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kvbench
from kvbench.benchmarks.base import Sample
from kvbench.benchmarks.head_probes import PROBES, HeadProbe, token_span
from kvbench.engine.observed import observed_steps
from kvbench.methods.files import read_file
from kvbench.run.heads import compute
from kvbench.run.heads.command import main
from kvbench.run.heads.rules import RULES
from tests.engine.test_architectures import EXACT, SIZES
from tests.helpers.tiny_engine import own_answer, prompt, tiny_model
from tests.reference.head_probes import naive_scores

NEEDLE = (20, 27)


def own_attention(model: Any, ids: list[int], new: int) -> tuple[list[int], list[list[list[list[float]]]]]:
    """Return the answer of transformers' own eager attention and, per step, layer and head, the weights of all keys."""
    before, tokens, steps = model.config._attn_implementation, list(ids), []
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for _ in range(new):
            out = model(torch.tensor([tokens]), output_attentions=True, use_cache=False)
            steps.append([layer[0, :, -1].tolist() for layer in out.attentions])
            tokens.append(int(out.logits[0, -1].argmax()))
    model.set_attn_implementation(before)
    return tokens[len(ids) :], steps


def drawn(name: str) -> Any:
    """Return a small random model of an architecture."""
    model_class, config_class, config, _ = EXACT[name]
    torch.manual_seed(1)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**SIZES | config)).eval()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_naive_ones(probe: str, seed: int) -> None:
    """The prompt repeats, so that heads find tokens again; the needle lies in its first half."""
    model, _ = tiny_model()
    ids = prompt(40, seed) * 2
    expected_tokens, steps = own_attention(model, ids, 12)
    expected = naive_scores(probe, steps, expected_tokens, ids, NEEDLE)
    got, tokens = torch.zeros(4, 4), []
    for token, weight_LHS in observed_steps(model, ids, 12, ()):
        got = got + RULES[probe](weight_LHS, token, ids, NEEDLE)
        tokens.append(token)
    assert tokens == expected_tokens
    torch.testing.assert_close(got.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)
    assert probe == "retrieval" or got.max() > 0


def test_the_retrieval_rule_counts_hits_of_equal_tokens_alone() -> None:
    weight_LHS = torch.zeros(1, 4, 9)
    for head, place in enumerate([3, 4, 7, 3]):  # in the needle; in the needle, another token; outside; in the needle
        weight_LHS[0, head, place] = 1
    ids = [5, 5, 5, 8, 9, 8, 1, 8]
    assert RULES["retrieval"](weight_LHS, 8, ids, (3, 6)).tolist() == [[1 / 3, 0, 0, 1 / 3]]
    assert naive_scores("retrieval", [weight_LHS.tolist()], [8], ids, (3, 6)) == [[1 / 3, 0, 0, 1 / 3]]


@pytest.mark.parametrize("name", ["qwen2, upper layers slide", "gemma3", "llama4, chunks", "gpt2, learned positions"])
def test_layers_with_a_window_attend_as_the_model_itself(name: str) -> None:
    """Only layers that see the whole prompt have scores, as only these are compressed."""
    model, ids = drawn(name), prompt(60)
    steps = list(observed_steps(model, ids, 8, ()))
    assert [token for token, _ in steps] == own_answer(model, ids, 8)
    full, heads = EXACT[name][3], 4
    assert [weights.shape for _, weights in steps] == [(full, heads, 60 + step) for step in range(8)]
    assert all(torch.allclose(weights.sum(-1), torch.ones(full, heads), atol=1e-5) for _, weights in steps)


def test_the_token_that_ends_an_answer_is_the_last_one() -> None:
    model, _ = tiny_model()
    answer = own_answer(model, prompt(40), 6)
    place = answer.index(answer[3])
    steps = list(observed_steps(model, prompt(40), 6, {answer[3]}))
    assert [token for token, _ in steps] == answer[: place + 1]


def test_a_prompt_that_the_model_cannot_take_is_one_line() -> None:
    model, _ = tiny_model()
    with pytest.raises(ValueError, match=r"^model: a prompt of 8190 tokens and max_new_tokens=50 need 8239 positions"):
        list(observed_steps(model, prompt(8190), 50, ()))


@pytest.mark.parametrize("probe", PROBES)
def test_every_prompt_holds_its_needle_once_and_the_span_is_the_smallest(probe: str) -> None:
    _, tokenizer = tiny_model()
    samples = HeadProbe(probe, [300, 400], [0, 50, 100], 2, 50, 0.5).samples(tokenizer)
    assert len({sample.id for sample in samples}) == 12 and len({sample.answers for sample in samples}) == 12
    for sample in samples:
        needle = str(sample.meta["needle"])
        text = sample.context + sample.question + sample.answer_prefix
        assert text.count(needle) == 1 and (needle,) == sample.answers
        ids = tokenizer.encode(text, add_special_tokens=False)
        span = token_span(tokenizer, ids, needle)
        assert span is not None
        assert needle in tokenizer.decode(ids[span[0] : span[1]])
        assert needle not in tokenizer.decode(ids[span[0] + 1 : span[1]])
        assert needle not in tokenizer.decode(ids[span[0] : span[1] - 1])
    assert token_span(tokenizer, ids, "absent") is None


def test_the_reasoning_probe_asks_for_the_right_one_of_two() -> None:
    _, tokenizer = tiny_model()
    samples = HeadProbe("reasoning", [300], list(range(0, 100, 10)), 2, 50, 0.5).samples(tokenizer)
    asked = set()
    for sample in samples:
        word = "older" if "older" in sample.question else "younger"
        asked.add(word)
        lines = re.findall(r"for the (\w+), (\d+) years old, is: (\d+)\.", sample.context)
        trade, _, number = (max if word == "older" else min)(lines, key=lambda line: int(line[1]))
        assert len(lines) == 2 and sample.answers == (number,) and trade in sample.question
        assert sample.max_new_tokens == min(
            50, len(tokenizer.encode(f" {sample.answers[0]}", add_special_tokens=False))
        )
    assert asked == {"older", "younger"}


@pytest.mark.parametrize(
    ("probe", "prediction", "score"),
    [
        ("retrieval", "keen otter vivid kayak", 1.0),
        ("retrieval", "The password is: keen otters, and so on.", 0.5),  # stemmed; precision does not count
        ("retrieval", "", 0.0),
        ("reasoning", "keen otter vivid kayak", 1.0),
        ("reasoning", "keen otter", 2 / 3),
        ("reasoning", "keen otter is not what it says", 4 / 11),
    ],
)
def test_answers_are_scored_as_in_the_reference(probe: str, prediction: str, score: float) -> None:
    answer = "keen otter vivid kayak"
    sample = Sample("a", "", "", "", (answer,), 5)
    assert HeadProbe(probe, [300], [0], 1, 50, 0.5).score(sample, prediction) == pytest.approx(score, abs=1e-9)


def command(outputs: Path, *words: str) -> int:
    settings = ["heads.lengths=[300]", "heads.depths=[0,30,60,90]", "heads.max_new_tokens=3"]
    return main(["model=tiny", f"paths.outputs={outputs}", "progress=false", *settings, *words])


def table_of(outputs: Path, name: str = "tiny_retrieval.json") -> Path:
    (table,) = outputs.glob(f"heads/*/{name}")
    return table


@pytest.fixture
def every_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model answers nonsense. Its repeated needle makes heads score."""
    monkeypatch.setattr(HeadProbe, "score", lambda self, sample, prediction: 0.75)


@pytest.mark.usefixtures("every_answer_counts")
def test_the_table_goes_through_the_dial_of_headkv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "probe=reasoning") == 0
    table = table_of(tmp_path, "tiny_reasoning.json")
    assert f"method.table={table}" in capsys.readouterr().out
    scores = json.loads(table.read_text())
    assert list(scores) == [f"{layer}-{head}" for layer in range(4) for head in range(4)]
    assert {len(values) for values in scores.values()} == {4}
    about = json.loads(table.with_suffix(".about.json").read_text())
    assert about["prompts"] == len(about["counted"]) == 4 and about["model"]["name"] == "tiny"
    method = kvbench.load_method("headkv", table=table)
    method.check_model(layers=4, heads=2, query_heads=4)
    assert f"sha256:{about['sha256']}" == read_file("table", table).digest
    table.write_text(table.read_text().replace("0.", "1.", 1))
    with pytest.raises(ValueError, match=r"is not the file that .*about.json describes"):
        kvbench.load_method("headkv", table=table)


@pytest.mark.usefixtures("every_answer_counts")
def test_a_command_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "whole", "probe=reasoning") == 0
    answered: list[int] = []
    real = observed_steps

    def counted(*arguments: Any) -> Iterator[Any]:
        answered.append(1)
        if len(answered) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(compute, "observed_steps", counted)
    assert command(tmp_path / "parts", "probe=reasoning") == 130
    assert "issue the same command again" in capsys.readouterr().err
    (lines,) = (tmp_path / "parts").glob("heads/*/samples.jsonl")
    with lines.open("a") as file:
        file.write('{"id": "len003')  # as a killed process leaves it
    assert command(tmp_path / "parts", "probe=reasoning") == 0
    assert len(answered) == 3 + 2
    names = "tiny_reasoning.json"
    assert table_of(tmp_path / "parts", names).read_bytes() == table_of(tmp_path / "whole", names).read_bytes()
    assert command(tmp_path / "parts", "probe=reasoning") == 0 and len(answered) == 5


def test_a_model_that_answers_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        "kvbench: model=tiny: none of 4 prompts of probe=retrieval counts, the best answer scores 0"
    )
    assert "try shorter heads.lengths" in error and not list(tmp_path.glob("heads/*/tiny*"))


@pytest.mark.usefixtures("every_answer_counts")
def test_few_prompts_that_count_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert command(tmp_path, "probe=reasoning") == 0
    assert "only 4 of 4 prompts count" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe=both"], "probe=both: choose retrieval or reasoning"),
        (["probe=3"], "heads.probe=3: must be text"),
        (["heads.length=3"], "heads.length=3: no such setting. Did you mean 'lengths'?"),
        (["heads.lengths=[]"], "heads.lengths=[]: give at least one number, and each once"),
        (["heads.lengths=[50]"], "heads.lengths=50: must be from 100 to 1000000"),
        (["heads.depths=[0,101]"], "heads.depths=101: must be from 0 to 100"),
        (["heads.depths=50,60"], "heads.depths=50,60: give one value, as in heads.depths=VALUE, and a list as [1,2]"),
        (["heads.bar=1.0"], "heads.bar=1.0: must be at least 0 and below 1"),
        (["heads.num_seeds=0"], "heads.num_seeds=0: must be from 1 to 2000"),
        (["heads.max_new_tokens=two"], "heads.max_new_tokens=two: must be an integer"),
        (["method=snapkv"], "method=snapkv: kvbench heads does not read it; leave it out"),
        (["benchmark.seed=1"], "benchmark.seed=1: kvbench heads does not read it; leave it out"),
        (["model=tiny,local"], "model=tiny,local: takes one value; lists are for kvbench -m"),
        (["model=tyny"], "model=tyny: no such model. Did you mean 'tiny'?"),
        (["model=shape/llama31_8b"], "model=shape/llama31_8b: random weights answer nothing"),
        (["model=tiny", "heads.lengths=[9000]"], "model.max_length=8192: the prompt of sample len09000"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, f"paths.outputs={tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"kvbench: {message}") and "\n" not in error


def test_help_lists_settings_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "lengths: [" in text and "method.table=FILE" in text
