"""Several questions on one context: one prefill and one compression, and the answers of separate runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import kvbench
from kvbench.engine.decode import stream
from kvbench.engine.model_view import view_of
from kvbench.engine.variant import Request
from kvbench.prompts import Prompt
from tests.helpers.methods import shipped
from tests.helpers.tiny_engine import METHODS, NEW, Tiny, generate, prompt, tiny_model, variants

LENGTHS = (5, 9, 1, 12, 5, 9, 5, 5)  # tokens of the questions: some equal, some not, one of a single token


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return tiny_model()


def questions(context: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Prompt]:
    """Return different questions on one context of random ids."""
    shared = prompt(context, seed)
    asked = [[*shared, *prompt(length, seed=100 + index)] for index, length in enumerate(lengths)]
    return [Prompt(tuple(ids), context_len=context, stop_ids=frozenset(), text="") for ids in asked]


@contextmanager
def calls(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Yield the shapes (rows, tokens) of the model's forward calls inside the block."""
    shapes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


@pytest.mark.parametrize("cache", ["ragged", "masked"])
@pytest.mark.parametrize("name", METHODS)
def test_questions_on_one_context_are_answered_as_alone(tiny: Tiny, name: str, cache: str) -> None:
    asked, settings = questions(150), {"question": "agnostic", "cache": cache}
    generate(tiny, asked[:1], variants((name,), (70,)), **settings)  # what runs once per process is not counted
    with calls(tiny[0]) as shapes:
        together = generate(tiny, asked, variants((name,)), **settings)
    rows = len(asked) * len(variants((name,)))
    fed = shipped()[name].feed is not None  # such a prompt goes through the decode path, once for every budget
    assert [shape for shape in shapes if shape[1] == 150] == [(len(variants((name,))) if fed else 1, 150)], (
        "one prefill"
    )
    assert shapes[-(NEW - 1) :] == [(rows, 1)] * (NEW - 1), "all rows step together"
    for question, of_question in zip(asked, together, strict=True):
        (alone,) = generate(tiny, [question], variants((name,)), **settings)
        for here, there in zip(of_question, alone, strict=True):
            assert (here.token_ids, here.kept, here.kept_max) == (there.token_ids, there.kept, there.kept_max)
            assert (here.prompt_tokens, here.span, here.kv_bytes) == (there.prompt_tokens, 150, there.kv_bytes)


@pytest.mark.parametrize("name", METHODS)
def test_eight_questions_on_a_long_context_cost_one_prefill(tiny: Tiny, name: str) -> None:
    """A forward call over the context has one row. After it come one call per question's length, and the steps."""
    asked = questions(2048)
    (variant,) = variants((name,), (70,))
    probe = variant.method.probe
    passes = [] if probe is None else [len(ids) for ids, _ in probe.passes(asked[0].ids[:2048], view_of(*tiny))]
    with calls(tiny[0]) as shapes:
        together = generate(tiny, asked, [variant], question="agnostic")
    first, *rest = [shape for shape in shapes if shape[1] > 1]
    assert first == (1, 2048)
    assert [tokens for _, tokens in rest] == [*passes, 5, 9, 12]
    assert shapes[-(NEW - 1) :] == [(8, 1)] * (NEW - 1)
    assert len(shapes) == 1 + len(passes) + len(set(LENGTHS)) + NEW - 1
    (alone,) = generate(tiny, asked[3:4], [variant], question="agnostic")
    assert together[3][0].token_ids == alone[0].token_ids


def test_eight_questions_and_all_methods_share_a_prefill(tiny: Tiny) -> None:
    """After the prefill come the methods' own passes, one call per question's length, and the steps."""
    asked = questions(2048)
    probes = {method.probe for method in shipped().values() if method.probe is not None}
    feeds = {method.feed for method in shipped().values() if method.feed is not None}
    passes = [len(ids) for probe in probes for ids, _ in probe.passes(asked[0].ids[:2048], view_of(*tiny))]
    own = passes.count(2048)
    passes += [2048] * len(feeds)
    fed = [variant for variant in variants(budgets=(70,)) if variant.method.feed is not None]
    with calls(tiny[0]) as shapes:
        together = generate(tiny, asked, variants(budgets=(70,)), question="agnostic", max_rows=1000)
    assert [tokens for _, tokens in shapes if tokens > 1] == [2048, *passes, 5, 9, 12]
    assert sum(rows for rows, tokens in shapes if tokens == 2048) == 1 + len(fed) + own, "each feeds the context once"
    assert len(shapes) == 1 + len(passes) + len(set(LENGTHS)) + NEW - 1
    assert all(len(generations) == len(METHODS) for generations in together)


def test_other_contexts_and_aware_questions_share_nothing(tiny: Tiny) -> None:
    here, there = questions(150, (5, 5)), questions(150, (5, 5), seed=1)
    snapkv = variants(("snapkv",), (70,))
    for question, asked, prefills in (("agnostic", [*here, *there], 2), ("aware", here, 2)):
        with calls(tiny[0]) as shapes:
            generate(tiny, asked, snapkv, question=question, max_prompts=4)
        assert len([tokens for _, tokens in shapes if tokens >= 150]) == prefills


def test_rows_beyond_the_limit_are_prefilled_again(tiny: Tiny) -> None:
    """No more than `max_rows` decode together. Those of one variant stay together where they fit."""
    asked, both = questions(150), variants(("snapkv", "h2o"), (70,))
    whole = generate(tiny, asked, both, question="agnostic")
    with calls(tiny[0]) as shapes:
        parts = generate(tiny, asked, both, question="agnostic", max_rows=8)
    assert [shape for shape in shapes if shape[1] == 150] == [(1, 150)] * 2
    assert max(rows for rows, _ in shapes) == 8
    assert [[g.token_ids for g in row] for row in parts] == [[g.token_ids for g in row] for row in whole]


def test_a_question_that_is_too_long_fails_alone(tiny: Tiny) -> None:
    """The other questions on its context get their answers, and the order stays that of the request."""
    asked, both = questions(150, (5, 40, 9)), variants(("snapkv", "fullkv"), (70,))
    queue = [Request([(p, v) for v in both for p in asked], NEW)]
    settings: dict[str, Any] = {"question": "agnostic", "max_length": 150 + 9 + NEW - 1}
    ((_, answers),) = stream(*tiny, lambda _: queue.pop() if queue else None, **settings)
    expected = generate(tiny, [asked[0], asked[2]], both, question="agnostic")
    assert [a.error is None for a in answers] == [True, False, True] * 2
    assert "shorten the prompt" in str(answers[1].error) and answers[1].prompt_tokens == 190
    assert [a.token_ids for a in answers if a.error is None] == [
        expected[p][v].token_ids for v in (0, 1) for p in (0, 1)
    ]


def test_a_row_that_stops_early_leaves_the_others_alone(tiny: Tiny) -> None:
    """Questions have stop ids of their own, also for their first token."""
    asked, full = questions(150), [kvbench.Variant(kvbench.load_method("fullkv"))]
    whole = generate(tiny, asked, full, question="agnostic")
    stops = [frozenset([whole[i][0].token_ids[i % 4]]) for i in range(len(asked))]
    stopping = [Prompt(p.ids, p.context_len, stop, "") for p, stop in zip(asked, stops, strict=True)]
    outs = generate(tiny, stopping, full, question="agnostic")
    for (out,), (before,), stop in zip(outs, whole, stops, strict=True):
        end = next(i for i, token in enumerate(before.token_ids) if token in stop) + 1
        assert (out.token_ids, out.finish_reason) == (before.token_ids[:end], "stop")


def test_contexts_of_one_request_must_be_equal(tiny: Tiny) -> None:
    asked = [*questions(150, (5,)), *questions(150, (5,), seed=1)]
    queue = [Request([(p, kvbench.Variant(kvbench.load_method("fullkv"))) for p in asked], NEW)]
    with pytest.raises(ValueError, match="same context"):
        list(stream(*tiny, lambda _: queue.pop() if queue else None, question="agnostic"))


def test_shared_times_are_counted_for_every_question(tiny: Tiny) -> None:
    """Prefill and compression are those of the context, once for each row; a longer question takes its own pass."""
    asked = questions(150, (5, 5, 60))
    outs = generate(tiny, asked, variants(("snapkv",), (70,)), question="agnostic")
    (a,), (b,), (c,) = ([generation.timings for generation in row] for row in outs)
    assert a.prefill_s == b.prefill_s == c.prefill_s > 0
    assert a.compress_s == b.compress_s == c.compress_s > 0
    assert a.ttft_s == b.ttft_s > a.prefill_s + a.compress_s
