"""Impossible settings: one line, and the override to change is in it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import kvbench
from kvbench.config import options
from tests.helpers.methods import evicting, facts, load, with_dial

TOKENS = 64


def message(method: str, budget: Any = 40, tokens: int = TOKENS, **dials: Any) -> str:
    """Return the error of loading a method and applying it to a small prompt."""
    x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError) as caught:
        loaded = load(method, 1, 2, **dials) if method in options("method") else kvbench.load_method(method, **dials)
        loaded.keep(x, x, x, budget=budget, **facts(loaded, x, x))
    text = str(caught.value)
    assert text.strip() and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("dial", "meant"),
    [("windw", "window"), ("kernel", "kernel_size"), ("kernelsize", "kernel_size"), ("sink", "sinks")],
)
def test_unknown_dial_names_the_nearest(dial: str, meant: str) -> None:
    text = message("snapkv", **{dial: 3})
    assert re.search(rf"\b{dial}\b", text) and re.search(rf"\b{meant}\b", text)


@pytest.mark.parametrize(("method", "dial"), [("snapkv", "beta"), ("h2o", "pooling"), ("fullkv", "window")])
def test_a_dial_of_another_method_is_refused(method: str, dial: str) -> None:
    assert re.search(rf"\b{dial}\b", message(method, **{dial: 8}))


@pytest.mark.parametrize(
    ("method", "meant"),
    [("snapvk", "snapkv"), ("pyramid_kv", "pyramidkv"), ("streamingllm", "streaming_llm")],
)
def test_unknown_method_names_the_nearest(method: str, meant: str) -> None:
    text = message(method)
    assert method in text and meant in text and "method" in text


def test_a_method_name_is_not_a_path() -> None:
    assert "method" in message("../method/snapkv")


@pytest.mark.parametrize("method", with_dial("window"))
@pytest.mark.parametrize("window", [40, 41, 1000])
def test_window_must_be_smaller_than_the_budget(method: str, window: int) -> None:
    text = message(method, budget=40, window=window)
    assert "window" in text and "budget" in text and str(window) in text and "40" in text


def test_sinks_and_window_together_must_be_smaller_than_the_budget() -> None:
    text = message("snapkv", budget=40, window=30, sinks=10)
    assert "sinks" in text and "window" in text and "budget" in text
    assert "sinks" in message("streaming_llm", budget=4, sinks=4)


@pytest.mark.parametrize("method", ["snapkv", "ada_pyramidkv"])
def test_a_fraction_must_cover_the_window_of_this_prompt(method: str) -> None:
    text = message(method, budget=0.25, window=16)
    assert "budget" in text and "0.25" in text and "16" in text
    x = torch.zeros(1, TOKENS, 4)  # one token more and it works
    assert len(kvbench.load_method(method, window=15).keep(x, x, x, budget=0.25)[0]) == 16


def test_a_fraction_of_a_very_short_prompt_may_cover_nothing() -> None:
    assert "budget" in message("streaming_llm", budget=0.5, tokens=1, sinks=0)


BAD_DIALS = [
    ("kernel_size", 4),
    ("kernel_size", 0),
    ("kernel_size", -1),
    ("kernel_size", "big"),
    ("kernel_size", 7.0),
    ("pooling", "foo"),
    ("pooling", None),
    ("pooling", 3),
    ("reduce", "foo"),
    ("reduce", "median"),
    ("window", "x"),
    ("window", 3.5),
    ("window", 0.5),
    ("window", 0),
    ("window", -1),
    ("window", True),
    ("window", None),
    ("sinks", -1),
    ("sinks", 1.5),
    ("sinks", "many"),
    ("floor", 2),
    ("floor", -0.1),
    ("floor", "low"),
    ("floor", float("nan")),
    ("floor", True),
    ("beta", 0),
    ("beta", -20),
    ("beta", "steep"),
    ("normalize", "maybe"),
    ("normalize", 1),
    ("allocation", "foo"),
    ("allocation", True),
]


@pytest.mark.parametrize(("dial", "value"), BAD_DIALS, ids=str)
def test_impossible_dial(dial: str, value: Any) -> None:
    text = message("ada_pyramidkv", **{dial: value})
    assert re.search(rf"\b{dial}\b", text), text


def test_h2o_decode_takes_its_window_as_a_share_below_one() -> None:
    for window in (1.0, 3.5, -0.5):
        assert "window" in message("h2o_decode", window=window)
    x = torch.randn(2, TOKENS, 8)
    by_share = kvbench.load_method("h2o_decode", window=0.5).keep(x, x, x, budget=20)
    by_tokens = kvbench.load_method("h2o_decode", window=10).keep(x, x, x, budget=20)
    assert all(torch.equal(a, b) for a, b in zip(by_share, by_tokens, strict=True))


BAD_BUDGETS = [0, -3, 1.5, 0.0, -0.2, True, False, "abc", "128", None, float("nan"), float("inf"), [128], 2.0]


@pytest.mark.parametrize("budget", BAD_BUDGETS, ids=str)
@pytest.mark.parametrize("method", evicting())
def test_impossible_budget(method: str, budget: Any) -> None:
    assert "budget" in message(method, budget=budget)


@pytest.mark.parametrize("tokens", [1, 3, TOKENS])
def test_an_impossible_budget_is_refused_on_short_prompts_too(tokens: int) -> None:
    # Otherwise the mistake would show only at the first long sample.
    assert "budget" in message("snapkv", budget=8, window=8, tokens=tokens)


def test_prefixkv_asks_for_the_statistics_of_all_layers() -> None:
    x = torch.randn(2, TOKENS, 8)
    method = kvbench.load_method("prefixkv")
    with pytest.raises(ValueError, match="need all 3 layers; use keep_layers") as caught:
        method.keep(x, x, x, budget=20, layer=0, num_layers=3)
    assert "\n" not in str(caught.value)
    assert len(method.keep(x, x, x, budget=20)[0]) == 20


@pytest.mark.parametrize(("layer", "num_layers"), [(3, 3), (-1, 3), (0, 0)])
def test_a_layer_outside_the_model_is_refused(layer: int, num_layers: int) -> None:
    x = torch.randn(2, TOKENS, 8)
    with pytest.raises(ValueError, match="layer"):
        kvbench.load_method("pyramidkv").keep(x, x, x, budget=40, layer=layer, num_layers=num_layers)


def test_heads_that_do_not_form_groups_are_refused() -> None:
    q, k = torch.randn(5, TOKENS, 8), torch.randn(2, TOKENS, 8)
    with pytest.raises(ValueError) as caught:
        kvbench.load_method("snapkv").keep(q, k, k, budget=40)
    assert "\n" not in str(caught.value)
