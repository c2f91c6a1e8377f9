"""A method from a YAML of one's own: its dials have any name and meaning, its mistakes are one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.methods.base import Merge, Protected, Score, Select
from kvbench.methods.candidates import Candidates, HeadBudget
from kvbench.methods.context import LayerContext
from kvbench.methods.fields import check_between
from kvbench.methods.load import load, method_identity
from kvbench.methods.method import Method
from kvbench.methods.read import read_method
from kvbench.methods.scores.window_attention import WindowAttention
from tests.helpers.methods import with_parts

HERE = "tests.methods.test_own_methods"


@dataclass(frozen=True)
class Blend(Score):
    """Attention and position, mixed by `beta` in [0, 1]."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        check_between(self, "beta", 0, 1)

    def __call__(self, ctx: LayerContext) -> Tensor:
        recency = torch.arange(ctx.num_tokens, dtype=torch.float32) / ctx.num_tokens
        return self.beta * ctx.column_sums().mean(0).expand(ctx.num_kv_heads, -1) + (1 - self.beta) * recency


@dataclass(frozen=True)
class Tail(Select):
    """The last `tail` tokens and the best others; not a subclass of TopK."""

    tail: int = 4

    def protected(self, tokens: int) -> Protected:
        return Protected(0, self.tail)

    def __call__(self, ctx: LayerContext, candidates: Candidates, budget: HeadBudget, protected: Protected) -> Tensor:
        keep_UT = torch.ones(ctx.num_kv_heads, ctx.num_tokens, dtype=torch.bool)
        keep_UT[:, : ctx.num_tokens - protected.window] = candidates.best(budget)
        return keep_UT


@dataclass(frozen=True)
class Listed(Score):
    """A score with a list and an optional number."""

    kept: Any = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(self.kept))

    def __call__(self, ctx: LayerContext) -> Tensor:
        return ctx.k.norm(dim=-1)


class Undeclared:
    """A score that inherits nothing and is called nothing."""


class Hidden(WindowAttention):
    """A score with a setting that is not a field: two of them would count as equal."""

    def __init__(self, window: int, power: float) -> None:
        super().__init__(window)
        object.__setattr__(self, "power", power)


@dataclass
class Mutable(Score):
    """A score that cannot be hashed."""

    def __call__(self, ctx: LayerContext) -> Tensor:
        return ctx.k.norm(dim=-1)


YAML = """
name: own
recent: 6
beta: 0.5
width: 3
score:
  _target_: kvbench.methods.scores.window_attention.WindowAttention
  window: ${..recent}
  kernel_size: ${..width}
layers:
  _target_: kvbench.methods.layers.uniform.Uniform
heads:
  _target_: kvbench.methods.heads.adaptive.Adaptive
  floor: ${..beta}
select:
  _target_: kvbench.methods.select.top_k.TopK
  window: ${..recent}
"""
TAIL = "select:\n  _target_: kvbench.methods.select.top_k.TopK\n  window: ${..recent}\n"
SCORE = YAML[YAML.index("score:") : YAML.index("layers:")]


def own(folder: Path, text: str = YAML, /, **dials: Any) -> Method:
    (folder / "own.yaml").write_text(text)
    return load(folder, "own", **dials)


def message(folder: Path, text: str = YAML, /, **dials: Any) -> str:
    with pytest.raises(ValueError) as caught:
        own(folder, text, **dials)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_score(lines: str) -> str:
    return YAML.replace(SCORE, f"score:\n{lines}").replace("width: 3\n", "")


@pytest.mark.parametrize(
    ("dials", "expected"),
    [
        ({"recent": -1}, "method.recent=-1: must be at least 1"),
        ({"width": 4}, "method.width=4: must be odd, so that pooling keeps the length"),
        ({"beta": 1.5}, "method.beta=1.5: must be at most 1"),
        ({"beta": "steep"}, "method.beta=steep: must be a number (default 0.5)"),
        ({"window": 3}, "method.window=3: own has no dial 'window'."),
    ],
)
def test_a_mistake_names_the_dial_of_the_yaml(tmp_path: Path, dials: dict[str, Any], expected: str) -> None:
    assert message(tmp_path, **dials).startswith(expected)


def test_a_dial_has_the_meaning_of_the_part_it_feeds(tmp_path: Path) -> None:
    """`beta` is PyramidKV's steepness, an integer from 1 on; here it is a share."""
    text = with_score(f"  _target_: {HERE}.Blend\n  beta: ${{..beta}}\n")
    assert "score=Blend(beta=0.25)" in repr(own(tmp_path, text, beta=0.25))
    assert message(tmp_path, text, beta=-0.5) == "method.beta=-0.5: must be at least 0"


@pytest.mark.parametrize("select", [TAIL, f"select:\n  _target_: {HERE}.Tail\n  tail: ${{..recent}}\n"])
def test_room_is_checked_whatever_the_dial_is_called(tmp_path: Path, select: str) -> None:
    method = own(tmp_path, YAML.replace(TAIL, select), recent=20)
    x = torch.randn(2, 64, 8)
    for budget, given in ((20, "budget=20"), (0.3, "budget=0.3 (of 64 tokens: 19)")):
        with pytest.raises(ValueError) as caught:
            method.keep(x, x, x, budget=budget)
        text = f"{given}: own always keeps 20 tokens (method.recent=20); the budget must be larger, or these smaller"
        assert str(caught.value) == text
    assert sum(len(head) for head in method.keep(x, x, x, budget=21)) == 42


@pytest.mark.parametrize("window", ["8", "0.2"])
def test_tokens_without_a_score_must_be_protected(tmp_path: Path, window: str) -> None:
    """A score over the last 20 queries says nothing of their tokens; a smaller selection window would drop them."""
    method = own(tmp_path, YAML.replace(TAIL, TAIL.replace("${..recent}", window)), recent=20)
    x = torch.randn(2, 64, 8)
    with pytest.raises(ValueError, match="ranks none of the last 20 tokens.*keeps only the last 8"):
        method.keep(x, x, x, budget=40)
    wide = own(tmp_path, YAML.replace(TAIL, TAIL.replace("${..recent}", "30")), recent=20)
    assert sum(len(head) for head in wide.keep(x, x, x, budget=40)) == 80


@pytest.mark.parametrize("shape", [(1, 64), (4, 64), (2, 60)])
def test_a_score_of_another_shape_is_one_line(shape: tuple[int, int]) -> None:
    @dataclass(frozen=True)
    class Misshapen(Score):
        def __call__(self, ctx: LayerContext) -> Tensor:
            return torch.zeros(shape)

    q, k = torch.randn(4, 64, 8), torch.randn(2, 64, 8)
    method = with_parts(kvbench.load_method("h2o"), score=Misshapen())
    with pytest.raises(ValueError, match="Misshapen returned") as caught:
        method.keep(q, k, k, budget=40)
    assert "\n" not in str(caught.value)


def test_a_part_that_inherits_nothing_is_one_line() -> None:
    """Such a class has `__call__` alone, not what its protocol adds, such as `unscored`."""
    method = kvbench.load_method("h2o")
    for part in ("score", "layers", "heads", "select"):
        with pytest.raises(ValueError, match=f"^{part}=function: must inherit from kvbench.methods.base.*$"):
            with_parts(method, **{part: lambda ctx: ctx.k.norm(dim=-1)})


def test_a_part_whose_file_cannot_be_imported_is_one_line_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_part.py").write_text("from kvbench.methods.base import Nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = message(tmp_path, with_score("  _target_: broken_part.X\n"))
    assert text.startswith("method.score: Error loading 'broken_part.X': ") and "'Nothing'" in text


def test_the_memory_estimate_asks_the_score(tmp_path: Path) -> None:
    assert own(tmp_path, recent=30).queries == 30
    assert own(tmp_path, with_score(f"  _target_: {HERE}.Blend\n  beta: 0.5\n")).queries == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_score(f"  _target_: {HERE}.Undeclared\n"), "must inherit from kvbench.methods.base.Score"),
        (with_score(f"  _target_: {HERE}.Tail\n"), "must inherit from kvbench.methods.base.Score"),
        (with_score(f"  _target_: {HERE}.Hidden\n  window: 4\n  power: 2\n"), "power must be a field"),
        (with_score(f"  _target_: {HERE}.Mutable\n"), "must be hashable"),
        (with_score(f"  _target_: {HERE}.Nowhere\n"), "method.score: "),
        (YAML.replace("width}", "width}\n  depth: 3"), "depth"),
        (YAML.replace("beta: 0.5", "beta: 0.5\ndepth: 3"), "method.depth: no part of own reads it; write ${..depth}"),
        (YAML.replace("${..width}", "wide"), "method.score: "),
        (YAML.replace("${..width}", "4"), "method.score.kernel_size=4: must be odd"),
        (YAML.replace(TAIL, ""), "also needs select"),
        (f"name: own\ndecode:\n  _target_: {HERE}.Blend\n", "must inherit from kvbench.methods.decoding.DecodePolicy"),
    ],
)
def test_a_mistake_in_the_yaml_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


def test_a_mistake_in_a_field_names_the_other_dial(tmp_path: Path) -> None:
    text = (
        "name: own\ngroup: 32\nkeep: 128\nstore:\n  _target_: kvbench.methods.store.kivi.Kivi\n"
        "  group_size: ${..group}\n  residual: ${..keep}\n"
    )
    assert message(tmp_path, text, keep=100) == "method.keep=100: must be a multiple of method.group=32"
    with pytest.raises(ValueError, match="method.group=32: must divide the head dimension 80"):
        own(tmp_path, text).check_head_dim(80)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    method = own(tmp_path, recent=np.int64(8), beta=np.float32(0.5))
    assert method == own(tmp_path, recent=8, beta=0.5)
    assert method.tokens(np.int32(20), 100) == 20 and method.tokens(np.float64(0.25), 100) == 25
    for budget in (np.True_, np.float32("nan"), np.int64(0)):
        with pytest.raises(ValueError, match="budget="):
            method.tokens(budget, 100)


@pytest.mark.parametrize("value", [object(), {1: 2}, [3], b"x", 1j])
def test_a_dial_of_no_known_type_is_one_line(tmp_path: Path, value: Any) -> None:
    assert message(tmp_path, recent=value).startswith("method.recent=")


def test_a_dial_may_be_a_list_or_null(tmp_path: Path) -> None:
    text = YAML.replace("width: 3", "width: 3\nlayers_kept: [1, 2]\nlimit: null")
    text = text.replace(
        SCORE, f"score:\n  _target_: {HERE}.Listed\n  kept: ${{..layers_kept}}\n  limit: ${{..limit}}\n"
    )
    text = text.replace("width: 3\n", "")
    assert own(tmp_path, text).dials["layers_kept"] == [1, 2]
    assert own(tmp_path, text, layers_kept=[7], limit=3).dials["layers_kept"] == [7]
    assert message(tmp_path, text, layers_kept=3) == "method.layers_kept=3: must be a list (default [1, 2])"


def test_the_identity_does_not_depend_on_where_our_files_lie(tmp_path: Path) -> None:
    method = own(tmp_path, with_score(f"  _target_: {HERE}.Blend\n  beta: 0.5\n"))
    identity = method_identity(read_method(tmp_path, "own"), method)
    assert identity["select"] == {"_target_": "TopK", "window": 6}
    assert identity["score"]["_target_"] == f"{HERE}.Blend", "a class from elsewhere keeps its path"
    assert kvbench.load_method("snapkv").name == "snapkv"


@dataclass(frozen=True)
class Curious(Blend):
    """A score that asks for something that no context has."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"modle"})


@dataclass(frozen=True)
class Free(Select):
    """A selection that decides by itself, and returns what it is told to."""

    returned: str = "mask"

    @property
    def counted(self) -> bool:
        return False

    def __call__(
        self, ctx: LayerContext, candidates: Candidates | None, budget: HeadBudget | None, protected: Protected
    ) -> Tensor:
        assert candidates is None and budget is None and protected == (0, 0)
        keep_UT = ctx.k[..., 0] > 0
        return {"mask": keep_UT, "numbers": keep_UT.long(), "one head": keep_UT[:1]}[self.returned]


@dataclass(frozen=True)
class Halved(Merge):
    """A merge that halves everything, or returns other shapes."""

    right: bool = True

    def __call__(self, ctx: LayerContext, keep_UT: Tensor) -> tuple[Tensor, Tensor]:
        return (ctx.k.double() / 2, ctx.v / 2) if self.right else (ctx.k[:, :3], ctx.v)


def test_a_selection_needs_no_score_and_no_budget(tmp_path: Path) -> None:
    """Its mask is taken as it is, on prompts of any length."""
    method = own(tmp_path, f"name: own\nselect:\n  _target_: {HERE}.Free\n")
    assert method.promises is None and method.evicts and len(method.parts) == 1
    x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    for budget in (None, 5, 0.5):
        kept = method.keep(x, x, x, budget=budget)
        assert [head.tolist() for head in kept] == [row.nonzero().flatten().tolist() for row in x[..., 0] > 0]
    with pytest.raises(ValueError, match="^budget=5: own decides by itself how many tokens stay, give None$"):
        kvbench.api.as_variant((method, 5))
    with pytest.raises(ValueError, match="^budget=5: own decides by itself how many tokens stay, give None$"):
        kvbench.api.as_variant(kvbench.Variant(method, 5))
    tiny = kvbench.load_model("tiny")
    outs = [
        kvbench.generate(tiny.model, tiny.tokenizer, [list(range(5, 65))], [(method, None)], cache=cache)[0][0]
        for cache in ("ragged", "masked")
    ]
    assert outs[0].kept == outs[1].kept and outs[0].token_ids == outs[1].token_ids
    assert 0 < outs[0].kept_total < 60 * 8 and outs[0].budget_tokens is None


@pytest.mark.parametrize("returned", ["numbers", "one head"])
def test_a_mask_that_is_none_is_one_line(tmp_path: Path, returned: str) -> None:
    method = own(tmp_path, f"name: own\nselect:\n  _target_: {HERE}.Free\n  returned: {returned}\n")
    x = torch.randn(2, 64, 8)
    with pytest.raises(ValueError, match=r"^method: the selection Free returned .*must be a mask of") as caught:
        method.keep(x, x, x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (with_score(f"  _target_: {HERE}.Curious\n  beta: 0.5\n"), "needs modle, which is none of hidden, model"),
        (YAML.replace(TAIL, f"select:\n  _target_: {HERE}.Free\n"), "decides how many tokens stay; leave out layers"),
        (f"name: own\nmerge:\n  _target_: {HERE}.Halved\n", "merge needs score, layers, heads and select"),
        (f"name: own\nmerge:\n  _target_: {HERE}.Blend\n", "must inherit from kvbench.methods.base.Merge"),
        (f"name: own\nselect:\n  _target_: {HERE}.Tail\n", "also needs score, layers, heads"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


def test_a_merge_of_other_shapes_is_one_line(tmp_path: Path) -> None:
    tiny, x = kvbench.load_model("tiny"), torch.randn(2, 64, 8)
    text = YAML + f"merge:\n  _target_: {HERE}.Halved\n  right: "
    halved = own(tmp_path, text + "true\n")
    k, v = halved.merged(LayerContext(x, x, x), torch.ones(2, 64, dtype=torch.bool))
    assert k.dtype == v.dtype == x.dtype and torch.equal(k, x / 2) and torch.equal(v, x / 2)
    prompts = [list(range(5, 65))]
    with pytest.raises(ValueError, match=r"^method=own: the merge Halved returned \[2, 3, 32\], must be") as caught:
        kvbench.generate(tiny.model, tiny.tokenizer, prompts, [(own(tmp_path, text + "false\n"), 30)])
    assert "\n" not in str(caught.value)
    for cache in ("ragged", "masked"):  # halved values give another answer, and only where tokens are dropped
        plain, merged, whole, full = kvbench.generate(
            tiny.model,
            tiny.tokenizer,
            prompts,
            [(own(tmp_path), 30), (halved, 30), (halved, 60), ("fullkv", None)],
            max_new_tokens=12,
            stop_ids=[],
            cache=cache,
        )[0]
        assert plain.token_ids != merged.token_ids and plain.kept == merged.kept
        assert whole.token_ids == full.token_ids


def test_a_message_about_room_names_the_dials_that_protect(tmp_path: Path) -> None:
    method = kvbench.load_method("critical", window=20)
    with pytest.raises(ValueError, match=r"^budget=20: critical always keeps 20 tokens \(method\.window=20\);"):
        method.check_room(20)
