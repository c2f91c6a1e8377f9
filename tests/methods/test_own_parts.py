"""Results of parts of one's own, and tensors of a layer: a mistake in them is one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import kvbench
from kvbench.methods.base import Heads, LayerBudget, Layers, Score
from kvbench.methods.candidates import Candidates, HeadSplit
from kvbench.methods.context import LayerContext
from kvbench.methods.heads.uniform import Uniform
from kvbench.methods.select.top_k import TopK
from tests.helpers.methods import with_parts
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


@dataclass(frozen=True)
class OddHeads(Heads):
    """Heads that return what does not share out the tokens of the layer."""

    returned: str

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> Any:
        even = [total // budget.heads] * budget.heads
        odd = {"one number": even[:1], "halves": [n + 0.5 for n in even], "none": None, "a tensor": torch.tensor(even)}
        more = {"one token more": [even[0] + 1, *even[1:]], "below zero": [-1, 1 + sum(even), *even[2:]]}
        return {**odd, **more, "a split of less": HeadSplit(total - 1, "head")}[self.returned]


@dataclass(frozen=True)
class OddSelect(TopK):
    """A selection that keeps a token too many, or returns no mask."""

    returned: str = ""

    def __call__(self, *args: Any) -> Any:
        keep_UT = super().__call__(*args)
        if self.returned == "none":
            return None
        keep_UT[0, int((~keep_UT[0]).int().argmax())] = True
        return keep_UT


@dataclass(frozen=True)
class MoreLayers(Layers):
    """Layers whose tokens do not add up to the budget, or are more than there are."""

    returned: str

    def __call__(self, budget: LayerBudget) -> list[int]:
        even = budget.tokens * budget.heads
        return [even, even + 2] if self.returned == "more" else [even, budget.span * budget.heads + 2]


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
    ("returned", "shown"),
    [
        ("one number", r"returned \[12\], must be a list of 2 numbers of tokens from 0 to 56, or a HeadSplit of 24"),
        ("halves", r"returned \[12.5, 12.5\], must be a list of 2 numbers"),
        ("none", "returned None, must be a list of 2 numbers"),
        ("a tensor", r"returned \[2\] torch.int64, must be a list of 2 numbers"),
        ("below zero", r"returned \[-1, 25\], must be a list of 2 numbers"),
        ("one token more", r"returned \[13, 12\], must add up to 24"),
        ("a split of less", "returned HeadSplit.*, must be a list of 2 numbers"),
    ],
)
def test_heads_that_do_not_share_out_their_tokens_are_one_line(tmp_path: Path, returned: str, shown: str) -> None:
    """One number would serve all heads, and numbers that add up to something else give another budget."""
    text = YAML.replace("kvbench.methods.heads.adaptive.Adaptive", f"{HERE}.OddHeads")
    method = own(tmp_path, text.replace("floor: ${..beta}", f"returned: {returned}").replace("beta: 0.5\n", ""))
    tiny, x = kvbench.load_model("tiny"), torch.randn(2, 62, 8)
    with pytest.raises(ValueError, match=f"^method: the heads OddHeads {shown}") as caught:
        method.keep(x, x, x, budget=18)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^method: the heads OddHeads returned"):
        kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [(method, 18)])


def test_layers_that_add_up_to_another_budget_are_one_line(tmp_path: Path) -> None:
    method, x = kvbench.load_method("snapkv", window=4), torch.randn(2, 62, 8)
    for returned, shown in (("more", r"\[40, 42\], must add up to the budget: 80"), ("many", "from 8 to 124")):
        with pytest.raises(ValueError, match=f"^method: the layers MoreLayers returned .*{shown}"):
            with_parts(method, layers=MoreLayers(returned)).keep(x, x, x, budget=20, num_layers=2)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [("more", "kept 41 tokens of a layer, must be 40"), ("none", "returned None, must be a mask")],
)
def test_a_selection_that_keeps_another_number_is_one_line(returned: str, shown: str) -> None:
    method, x = kvbench.load_method("snapkv", window=4), torch.randn(2, 62, 8)
    with pytest.raises(ValueError, match=f"^method: the selection OddSelect {shown}"):
        with_parts(method, select=OddSelect(window=4, returned=returned)).keep(x, x, x, budget=20)


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


@dataclass(frozen=True)
class WritesScore(Score):
    """A score that works in place on what it reads of the context."""

    what: str

    def __call__(self, ctx: LayerContext) -> torch.Tensor:
        sums_HT = ctx.column_sums()
        if self.what == "nothing":
            return sums_HT[: ctx.num_kv_heads].clone().mul_(2)
        read = {"column_sums": sums_HT, "k": ctx.k, "v": ctx.v, "q": ctx.q}
        x = read[self.what] if self.what in read else getattr(ctx, self.what)(4)
        x.flatten()[:2].mul_(1.5) if x.is_contiguous() else x.mul_(1.5)
        return sums_HT[: ctx.num_kv_heads].clone()


@dataclass(frozen=True)
class WritesSelect(TopK):
    """A selection that sorts the candidates' scores in place."""

    def __call__(self, ctx: LayerContext, candidates: Any, budget: Any, protected: Any) -> torch.Tensor:
        keep_UT = super().__call__(ctx, candidates, budget, protected)
        candidates.values_UN[:] = candidates.values_UN.sort(-1).values
        return keep_UT


@dataclass(frozen=True)
class WritesHeads(Uniform):
    """Heads that change the order of the candidates."""

    def __call__(self, ctx: LayerContext, candidates: Candidates, total: int, budget: LayerBudget) -> HeadSplit:
        candidates.order_UN.zero_()
        return super().__call__(ctx, candidates, total, budget)


WRITES = ["column_sums", "window_attention", "k", "v", "q"]
CASES: list[tuple[dict[str, Any], str]] = [
    *(({"score": WritesScore(what)}, f"score WritesScore changed ctx.{what} in place") for what in WRITES),
    ({"select": WritesSelect(window=4)}, "selection WritesSelect changed candidates.values_UN in place"),
    ({"heads": WritesHeads()}, "heads WritesHeads changed ctx.order in place"),
]


@pytest.mark.parametrize(("parts", "message"), CASES)
def test_a_part_that_writes_into_shared_tensors_is_one_line(parts: dict[str, Any], message: str) -> None:
    """The other methods of the plan would read what it wrote: in the engine, and where tensors are given."""
    method, tiny = with_parts(kvbench.load_method("snapkv", window=4), **parts), kvbench.load_model("tiny")
    x = torch.randn(2, 62, 8)
    with pytest.raises(ValueError, match=f"^method: the {message}, which other methods read"):
        method.keep(x.clone(), x.clone(), x.clone(), budget=20)
    with pytest.raises(ValueError, match=f"^method: the {message}"):
        kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [("h2o", 20), (method, 20)])


def test_a_part_may_write_into_what_it_made() -> None:
    tiny = kvbench.load_model("tiny")
    method = with_parts(kvbench.load_method("snapkv", window=4), score=WritesScore("nothing"))
    kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [("h2o", 20), (method, 20)], max_new_tokens=2)
    assert len(method.keep(*torch.randn(3, 2, 62, 8).unbind(), budget=20)) == 2
