"""Results of parts of one's own, and tensors of a layer: a mistake in them is one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import kvbench
from kvbench.methods.base import LayerBudget, Layers, Score
from kvbench.methods.context import LayerContext
from tests.methods.test_own_methods import YAML, own, with_score

HERE = "tests.methods.test_own_parts"


@dataclass(frozen=True)
class Odd(Score):
    """A score that returns NaN for a token, or no tensor."""

    returned: str = "nan"

    def __call__(self, ctx: LayerContext) -> Any:
        score_UT = ctx.v.norm(dim=-1)
        score_UT[1, 3] = torch.nan
        return score_UT if self.returned == "nan" else score_UT.tolist()


@dataclass(frozen=True)
class OddLayers(Layers):
    """Layers that return what is no number of tokens for each of them."""

    returned: str

    def __call__(self, budget: LayerBudget) -> Any:
        even = [budget.tokens * budget.heads] * budget.layers
        odd = {"one more": [*even, 5], "one less": even[1:], "floats": [float(n) for n in even], "none": None}
        return {**odd, "a tensor": torch.tensor(even), "below zero": [-1, *even[1:]]}[self.returned]


@pytest.mark.parametrize(
    ("returned", "shown"), [("nan", "NaN, which ranks no token"), ("list", "list, must be a tensor")]
)
def test_a_score_that_ranks_nothing_is_one_line(tmp_path: Path, returned: str, shown: str) -> None:
    """NaN would rank first: the tokens that it is the score of would stay."""
    method = own(tmp_path, with_score(f"  _target_: {HERE}.Odd\n  returned: {returned}\n"))
    x = torch.randn(2, 64, 8)
    with pytest.raises(ValueError, match=f"^method: the score Odd returned {shown}") as caught:
        method.keep(x, x, x, budget=20)
    assert "\n" not in str(caught.value)
    if returned == "nan":  # of a model that computes no numbers, the engine says so
        assert len(method.keep(x, x * torch.nan, x, budget=20)) == 2


@pytest.mark.parametrize("returned", ["one more", "one less", "floats", "none", "a tensor", "below zero"])
def test_layers_without_a_number_for_each_are_one_line(tmp_path: Path, returned: str) -> None:
    text = YAML.replace("kvbench.methods.layers.uniform.Uniform", f"{HERE}.OddLayers\n  returned: {returned}")
    assert text != YAML
    tiny, x = kvbench.load_model("tiny"), torch.randn(2, 64, 8)
    with pytest.raises(
        ValueError, match=r"^method: the layers OddLayers returned .*must be a list of 2 numbers"
    ) as caught:
        own(tmp_path, text).keep(x, x, x, budget=20, num_layers=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^method: the layers OddLayers returned .*must be a list of 4 numbers"):
        kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [(own(tmp_path, text), 20)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.ones(4, 69, 8)}, "must have the same tokens"),
        ({"q": torch.ones(4, 59, 8)}, "must have the same tokens"),
        ({"q": torch.ones(4, 64, 9)}, "must have the same tokens, q and k the same dim"),
        ({"v": torch.ones(2, 61, 8)}, "must have the same tokens"),
        ({"v": torch.ones(3, 64, 8)}, "and k and v the same heads"),
        ({"q": torch.ones(4, 64, 8).int()}, "must be of floating numbers"),
        ({"q": torch.ones(3, 64, 8)}, "query heads a multiple of KV heads"),
        ({"k": torch.ones(2, 0, 8)}, "must be .heads, tokens, dim"),
        ({"k": torch.ones(2, 2, 64, 8)}, "must be .heads, tokens, dim"),
        ({"v": torch.ones(2, 64, 8).numpy()}, "q, k and v must be tensors, not ndarray"),
    ],
)
@pytest.mark.parametrize("name", ["streaming_llm", "snapkv"])
def test_tensors_of_a_layer_that_do_not_fit_are_one_line(name: str, changed: dict[str, Any], message: str) -> None:
    layer: dict[str, Any] = {"q": torch.ones(4, 64, 8), "k": torch.ones(2, 64, 8), "v": torch.ones(2, 64, 8)}
    with pytest.raises(ValueError, match=message) as caught:
        kvbench.load_method(name).keep(**{**layer, **changed}, budget=40)
    assert "\n" not in str(caught.value)
