"""`kvbench inspect`: tables, the log of heads and maps agree with what the engine keeps, for every kind of method."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kvbench
from kvbench.engine.observe import PIXELS, observe
from kvbench.engine.variant import Variant
from kvbench.profile.inspect_command import main, settings
from kvbench.profile.inspect_figure import _columns
from kvbench.profile.inspect_text import short
from kvbench.prompts import Prompt
from tests.helpers.methods import budget_for, load
from tests.helpers.tiny_engine import generate, prompt, tiny_model

KINDS = [
    "fullkv",
    "snapkv",
    "ada_pyramidkv",
    "fastgen",
    "fastgen_element",
    "kivi",
    "kvzip",
    "quest",
    "streaming_llm_true",
]
TEXT = "prompt=The code, of the safe, is 7305."


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_shows_what_generate_keeps(name: str) -> None:
    method = load(name)
    variant = Variant(method, budget_for(method, 40))
    model, tokenizer = tiny_model()
    ids = prompt(70)
    seen = observe(model, tokenizer, Prompt(tuple(ids), len(ids), frozenset(), ""), len(ids), variant, maps=[1])
    ((answer,),) = generate((model, tokenizer), [ids], [variant], max_new_tokens=1)
    assert [layer.kept_UT.sum(1).tolist() for layer in seen] == answer.kept
    assert sum(layer.bytes for layer in seen) == answer.kv_bytes
    assert sum(layer.full_bytes for layer in seen) == answer.kv_bytes_full
    assert [layer.layer for layer in seen if layer.attention_HPP is not None] == [1]
    assert all((layer.policies is None) == (not name.startswith("fastgen")) for layer in seen)


def test_a_map_is_the_attention_of_the_model() -> None:
    model, tokenizer = tiny_model()
    ids = prompt(30)
    variant = Variant(kvbench.load_method("fullkv"))
    seen = observe(model, tokenizer, Prompt(tuple(ids), 30, frozenset(), ""), 30, variant, maps=[0, 3])
    model.set_attn_implementation("eager")
    try:
        expected = model(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    for layer in (0, 3):
        torch.testing.assert_close(seen[layer].attention_HPP, expected[layer][0].float(), atol=1e-5, rtol=1e-4)


def test_long_prompts_have_several_tokens_in_a_pixel() -> None:
    model, tokenizer = tiny_model()
    tokens = 2 * PIXELS + 5
    ids = [5 + i % 200 for i in range(tokens)]
    whole = Prompt(tuple(ids), tokens, frozenset(), "")
    (layer, *_) = observe(model, tokenizer, whole, tokens, Variant(kvbench.load_method("fullkv")), maps=[0])
    assert layer.attention_HPP is not None
    pixels = -(-tokens // 3)
    assert layer.attention_HPP.shape[1:] == (pixels, pixels) and layer.attention_HPP.triu(1).abs().sum() == 0
    assert 0 < layer.attention_HPP.max() <= 1


def test_the_command_writes_tables_the_log_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=tiny", "method=fastgen", "method.recovery=0.6", TEXT, "layers=[0,2]", f"paths.outputs={tmp_path}"]
    assert main(words) == 0
    text = capsys.readouterr().out
    (folder,) = (tmp_path / "inspect").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"attention_layer0{layer}.{form}" for layer in (0, 2) for form in ("pdf", "png")),
        "heads.csv",
        *(f"kept_{what}.{form}" for what in ("heads", "text") for form in ("pdf", "png")),
        "layers.csv", "layers.json", "layers.md",
    ]  # fmt: skip
    assert str(folder) in text and "| layer | KV head 0 |" in text and "saved %" in text
    content: dict[str, Any] = json.loads((folder / "layers.json").read_text())
    with (folder / "heads.csv").open() as file:
        heads = list(csv.DictReader(file))
    assert len(heads) == 4 * 2 and all(head["policy"] in kvbench_policies() for head in heads)
    for layer in content["layers"][1:]:
        kept = [int(head["kept"]) for head in heads if head["layer"] == str(layer["layer"])]
        assert sum(kept) / len(kept) == layer["tokens_per_head"]
        assert layer["saved_percent"] == pytest.approx(100 * (1 - sum(kept) / len(kept) / len(content["tokens"])))
        assert sum(layer.get(name, 0) for name in kvbench_policies()) == 2
    assert all(len(head["positions"].split()) == int(head["kept"]) for head in heads)
    assert main([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == content


def kvbench_policies() -> list[str]:
    eviction = kvbench.load_method("fastgen").eviction
    assert eviction is not None
    return list(eviction.select.policies)


def test_a_prompt_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needle = ["benchmark=needle", "benchmark.lengths=[200]", "benchmark.depths=[50]"]
    words = ["model=tiny", "method=snapkv", "budget=0.25", *needle, "layers=[]", f"paths.outputs={tmp_path}"]
    assert main(words) == 0
    assert "saved %" in capsys.readouterr().out
    (folder,) = (tmp_path / "inspect").iterdir()
    assert not list(folder.glob("attention*.png"))
    mean = json.loads((folder / "layers.json").read_text())["layers"][0]
    assert mean["layer"] == "mean" and mean["saved_percent"] == pytest.approx(75, abs=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt="], "prompt=: give a text"),
        ([TEXT, "show=1"], "show=1: chooses a prompt of a benchmark"),
        ([TEXT, "benchmark=needle"], "prompt=: takes the place of a benchmark's prompt"),
        (["model=tiny", "method=snapkv", "budget=40", "show=x"], "show=x: this benchmark has no such sample"),
        (["show=[0,1]"], "show=[0,1]: this command looks at one prompt, as in show=0"),
        ([TEXT, "layers=[1,x]"], "layers=[1,x]: give numbers of layers"),
        (["model=tiny", "method=fastgen", TEXT, "layers=[9]"], "layers=9: tiny has layers 0 to 3"),
        (["model=tiny", TEXT, "method=snapkv,h2o"], "method=snapkv,h2o: takes one value"),
        (["model=tiny", TEXT, "method=snapky"], "method=snapky: no such method. Did you mean 'snapkv'?"),
        (["model=tiny", TEXT, "limit=3"], "limit=3: kvbench inspect does not read it"),
        (["model=tiny", TEXT, "seed=3"], "seed=3: nothing of method=ada_pyramidkv draws by it"),
        (["model=tiny", "benchmark=needle_classic", "seed=3"], "seed=3: neither benchmark=needle_classic nor method="),
        (["model=tiny", TEXT, "method.recovry=1"], "method.recovry=1"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_text_may_hold_what_hydra_would_read() -> None:
    asked = settings(["prompt=a=b, [c] 'd' ${e}", "model=tiny"])
    assert asked.text == "a=b, [c] 'd' ${e}" and asked.others == ["model=tiny"]


def test_panels_of_a_group_stand_together() -> None:
    columns = {(9, 3): 3, (32, 4): 8, (32, 1): 7, (8, 8): 8, (14, 7): 7, (64, 8): 8, (4, 2): 2}
    assert {shape: _columns(*shape) for shape in columns} == columns
    assert [short(name) for name in ("special", "special+punctuation", "full")] == ["special", "SP", "full"]
