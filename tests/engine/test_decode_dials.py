"""The dials of decode policies, and the tokens that heads hold at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.method import Method
from kvbench.methods.scores.column_sums import ColumnSums
from kvbench.prompts import Prompt
from tests.helpers.methods import budget_for, shipped
from tests.helpers.tiny_engine import NEW, Tiny, generate, prompt, tiny_model


def is_steady(method: Method) -> bool:
    """Return True if a head's limit stays the same in long answers."""
    assert method.decode is not None
    tokens_11 = [torch.tensor([[n]]) for n in (24, 400, 800, 40)]
    early, late = (method.decode.policy.limit(tokens_11[0], steps, 0, tokens_11[3]) for steps in tokens_11[1:3])
    return early is not None and torch.equal(early, late)


POLICIES = sorted(
    name
    for name, method in shipped().items()
    if method.decode is not None and method.promises == "kept" and is_steady(method)
)
PHASED = [name for name in POLICIES if shipped()[name].feed is None]  # a prompt that is fed has no phases
SMALL: dict[str, dict[str, Any]] = {"scope": {"decode_budget": 24, "recent": 8}}  # dials that matter within few tokens


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def most(name: str, budget: int, dials: dict[str, Any]) -> int:
    """Return the tokens that a head may hold after a step, by the definition of the dials."""
    generated = SMALL[name]["decode_budget"] if name == "scope" else 0
    return budget + generated + int(dials.get("buffer", 0))


def test_heads_hold_their_limit_and_buffer_at_every_one_of_512_tokens(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, new = 24, 512
    asked = [(name, SMALL.get(name, {}) | {"buffer": buffer}) for name in POLICIES for buffer in (0, 5)]
    variants = [kvbench.Variant(kvbench.load_method(name, **dials), budget) for name, dials in asked]
    seen: list[list[int]] = [[] for _ in asked]
    real = RaggedCache.attend

    def attend(self: RaggedCache, layer: int, rows: Any, *tensors: Any) -> Tensor:
        out = real(self, layer, rows, *tensors)
        for row in rows:
            seen[row].append(max(self._arenas[layer].lengths(row)))
        return out

    generate(tiny, [prompt(40)], variants[:1], max_new_tokens=2)  # the checks of a model make caches of their own
    monkeypatch.setattr(RaggedCache, "attend", attend)
    (outs,) = generate(tiny, [prompt(40)], variants, max_new_tokens=new)
    for (name, dials), variant, out, of_row in zip(asked, variants, outs, seen, strict=True):
        bound = most(name, budget, dials)
        fed = variant.method.feed is not None  # the prompt, too, goes through the cache, in one chunk
        assert len(out.token_ids) == new and len(of_row) == (new - 1 + fed) * len(out.kept)
        assert max(of_row) == bound == out.kept_max
        assert min(of_row[-20 * len(out.kept) :]) == bound - dials["buffer"], "a full buffer is cut back to the limit"


@pytest.mark.parametrize("cache", ["ragged", "masked"])
@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("name", PHASED)
def test_phases_and_decode_budgets(tiny: Tiny, name: str, question: str, cache: str) -> None:
    text = Prompt(ids=tuple(prompt(120)), context_len=100, stop_ids=frozenset(), text="")
    span = 120 if question == "aware" else 100
    dials: list[dict[str, Any]] = [{}, {"phase": "decode"}, {"phase": "prefill"}, {"buffer": 3}]
    if name != "scope":
        dials += [{"decode_budget": 20}, {"decode_budget": 0.25}, {"phase": "decode", "decode_budget": 0.5}]
        loaded = [kvbench.load_method(name, **given) for given in dials]
    else:
        small = SMALL[name]
        whole = kvbench.load_method("fullkv+scope", **small)  # what phase=decode is for other policies
        cut, buffered = (kvbench.load_method(name, **given) for given in (small, small | {"buffer": 3}))
        loaded = [cut, whole, kvbench.load_method(name, phase="prefill"), buffered]
    asked = [kvbench.Variant(method, budget_for(method, 48)) for method in loaded]
    (outs,) = generate(tiny, [text], asked, question=question, cache=cache)
    generated = NEW - 1 + 120 - span
    grown = {"scope": min(24, generated)}.get(name, 0)
    kept = [{head for layer in out.kept for head in layer} for out in outs]
    assert kept[:4] == [{48}, {span}, {48}, {48}]
    assert [out.kept_max for out in outs[:3]] == [48 + grown, span + grown, 48 + generated]
    assert 48 + grown <= outs[3].kept_max <= 48 + grown + 3
    if name != "scope":
        assert kept[4:] == [{48}, {48}, {span}]
        assert [out.kept_max for out in outs[4:]] == [48, 48, span], "the prompt is the most that was held"
    assert len({tuple(out.token_ids) for out in outs}) > 1


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_shorter_than_the_budget_grows_up_to_it(tiny: Tiny, name: str) -> None:
    for cache in ("ragged", "masked"):
        method = kvbench.load_method(name, **SMALL.get(name, {}))
        ((out,),) = generate(tiny, [prompt(37)], [(method, 45)], max_new_tokens=40, cache=cache)
        assert out.kept_max == (45 if name != "scope" else 37 + SMALL[name]["decode_budget"])


def test_budgets_of_layers_and_heads_are_kept_while_generating(tiny: Tiny) -> None:
    """Pyramid and adaptive budgets under a policy: every head stays at its own share, or its share of another."""
    method = kvbench.load_method("ada_pyramidkv+h2o_decode")
    with kvbench.compressed(tiny[0], method, 70) as handle:
        tiny[0].generate(_tensor(prompt(200)), max_new_tokens=1, do_sample=False)
        assert handle.cache is not None
        before = handle.cache.kept
    with kvbench.compressed(tiny[0], method, 70) as handle:
        tiny[0].generate(_tensor(prompt(200)), max_new_tokens=30, do_sample=False, eos_token_id=None)
        assert handle.cache is not None
        assert handle.cache.kept == before and len({n for layer in before for n in layer}) > 2
    half = kvbench.load_method("ada_pyramidkv+h2o_decode", decode_budget=0.5)
    with kvbench.compressed(tiny[0], half, 70) as handle:
        tiny[0].generate(_tensor(prompt(200)), max_new_tokens=30, do_sample=False, eos_token_id=None)
        assert handle.cache is not None
        after = handle.cache.kept
    for old, new in zip(before, after, strict=True):
        assert sum(new) == sum(old) // 2 and all(abs(n - o / 2) <= 1 for n, o in zip(new, old, strict=True))


def _tensor(ids: list[int]) -> Tensor:
    import torch

    return torch.tensor([ids])


@pytest.mark.parametrize("name", ["scope", "snapkv+tova", "snapkv+h2o_decode", "kvzip+h2o_decode", "snapkv+corm"])
def test_a_prompt_shorter_than_the_window_decodes(tiny: Tiny, name: str) -> None:
    """The prompt keeps all of its tokens, so the method's score is not needed."""
    variants = [kvbench.Variant(kvbench.load_method(name), 64), kvbench.Variant(kvbench.load_method("fullkv"), None)]
    ((out, full),) = generate(tiny, [prompt(5)], variants)
    assert out.token_ids == full.token_ids


def test_policies_start_from_their_own_score() -> None:
    """A score that chose the tokens of the prompt is neither accumulated attention nor a position."""
    q, k, v = torch.randn(3, 4, 40, 8, generator=torch.Generator().manual_seed(0)).unbind()
    ctx = LayerContext(q, k[:2], v[:2])
    for base in ("snapkv", "streaming_llm"):
        sums, last = (kvbench.load_method(f"{base}+{name}").start_scores(ctx) for name in ("h2o_decode", "corm"))
        assert sums is not None and torch.equal(sums, ColumnSums("mean")(ctx))
        assert last is not None and torch.equal(last, DropLongMinor(256).score(ctx))
    assert kvbench.load_method("snapkv+tova").start_scores(ctx) is None


SCOPE: dict[str, Any] = {"decode_budget": 24, "recent": 8}


@pytest.mark.parametrize("question", ["aware", "agnostic"])
@pytest.mark.parametrize("cache", ["ragged", "masked"])
def test_a_schedule_follows_the_tokens_of_question_and_answer(tiny: Tiny, cache: str, question: str) -> None:
    """Its steps come from the longest answer, so that the budget is reached with its last token."""
    text = Prompt(ids=tuple(prompt(120)), context_len=100, stop_ids=frozenset(), text="")
    new = 84 if question == "aware" else 64  # 20 tokens of a question come on top
    schedules = ("slide", "adaptive", "discontinuous")
    methods = [kvbench.load_method("scope", **SCOPE, schedule=schedule) for schedule in schedules]
    methods += [kvbench.load_method("scope", **SCOPE, schedule=schedule, delta=4) for schedule in schedules[1:]]
    variants = [kvbench.Variant(method, 48) for method in methods]
    (outs,) = generate(tiny, [text], variants, question=question, cache=cache, max_new_tokens=new)
    of = [(out.kept_max, out.token_ids) for out in outs]
    assert of[0][0] == 48 + 24
    assert of[1:3] == of[3:5], "(84 - 8) // (24 - 8) = 4"
    assert len({tuple(out.token_ids) for out in outs[:3]}) == 3


def test_questions_of_other_lengths_have_steps_of_their_own(tiny: Tiny) -> None:
    """Two questions on a context, in one request, and each alone."""
    context = prompt(100)
    texts = [Prompt((*context, *prompt(asked, 1)), 100, frozenset(), "") for asked in (4, 36)]
    variants = [
        kvbench.Variant(kvbench.load_method("scope", **SCOPE, schedule=schedule), 48)
        for schedule in ("adaptive", "discontinuous")
    ]
    variants.append(kvbench.Variant(kvbench.load_method("cam_decode"), 48))  # its draws are those of the context
    settings: dict[str, Any] = {"question": "agnostic", "max_new_tokens": 48}
    together = generate(tiny, texts, variants, **settings)
    for text, outs in zip(texts, together, strict=True):
        (alone,) = generate(tiny, [text], variants, **settings)
        assert [(o.token_ids, o.kept_max) for o in outs] == [(o.token_ids, o.kept_max) for o in alone]


def test_compressed_asks_for_the_steps_of_a_schedule(tiny: Tiny) -> None:
    """`model.generate` does not say how many tokens it will generate."""
    method = kvbench.load_method("scope", schedule="adaptive")
    refused = pytest.raises(ValueError, match=r"^method\.delta=0: how many .* or use kvbench\.generate$")
    with refused, kvbench.compressed(tiny[0], method, 48):
        pass
    steps = kvbench.load_method("scope", **SCOPE, schedule="discontinuous", delta=4)
    ((out,),) = generate(tiny, [prompt(100)], [(steps, 48)], max_new_tokens=30)
    with kvbench.compressed(tiny[0], steps, 48):
        answer = tiny[0].generate(_tensor(prompt(100)), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert answer[0, 100:].tolist() == out.token_ids
