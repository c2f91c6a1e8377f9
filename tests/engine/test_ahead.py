"""Steps that start before the tokens of the step before are known: the same answers and counts as of eager steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from omegaconf import OmegaConf

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.common.paths import conf_dir
from kvbench.engine import graph
from kvbench.engine.decode import stream
from kvbench.engine.graph import GraphedSteps
from kvbench.engine.steps import Steps
from kvbench.engine.variant import Generation, Request
from kvbench.models.load import Loaded
from tests.helpers.ahead import (
    NAMES,
    NEW,
    PLAIN,
    POLICIES,
    Cases,
    all_cases,
    check,
    play,
    play_ahead,
    requests,
    stops_at,
    under_way,
    watch,
)
from tests.helpers.recorder import imitate


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return kvbench.load_model("tiny")


@pytest.fixture(scope="module")
def cases(tiny: Loaded) -> Cases:
    return all_cases(tiny)


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_counts_are_those_of_eager_steps(name: str, cases: Cases) -> None:
    check(name, cases)


@pytest.mark.parametrize(
    "variant", [("corm", None), ("kivi", None), ("quest", 36, {"page": 8}), ("snapkv+kivi+h2o_decode", 36)]
)
def test_no_step_starts_ahead_of_work_of_the_host(tiny: Loaded, variant: Any) -> None:
    asked = requests([("fullkv", None), variant], new=(12, 12, 12))
    log = play_ahead(tiny, asked, 3)
    assert log.ahead == 0 and any(replayed for _, replayed in log.steps)
    assert log.answers == play(tiny, asked, 3).answers


def test_the_seconds_of_steps_are_those_of_the_rows(tiny: Loaded) -> None:
    """A step that was started ahead lasts from the end of the one before."""
    seconds: list[float] = []
    begin = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        imitate(patch, tiny)
        queue = requests(PLAIN)[:1]
        answers = stream(
            tiny.model, tiny.tokenizer, lambda _: queue.pop() if queue else None, on_step=lambda s, _: seconds.append(s)
        )
        ((_, generations),) = answers
    assert sum(seconds) < time.perf_counter() - begin
    for g in generations:
        assert g.timings.tpot_s == pytest.approx(sum(seconds) / (NEW - 1))


def interrupted(tiny: Loaded, batches: list[Steps], act: Callable[[RaggedCache], None], at: int) -> None:
    """Answer a request; `act` is called after step `at`, while the next one is under way."""
    calls = 0
    with pytest.MonkeyPatch.context() as patch:
        cache = imitate(patch, tiny)
        watch(patch, batches)

        def on_step(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                assert under_way(batches)
                act(cache)

        queue = requests(PLAIN)[:1]
        list(stream(tiny.model, tiny.tokenizer, lambda _: queue.pop() if queue else None, on_step=on_step))


def test_a_batch_that_is_interrupted_leaves_no_step_under_way(tiny: Loaded) -> None:
    batches: list[Steps] = []

    def interrupt(_: RaggedCache) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tiny, batches, interrupt, 9)
    assert len(batches) == 1 and not under_way(batches)


def test_a_step_without_room_is_an_error(tiny: Loaded) -> None:
    """The device's status is looked at when rows leave."""
    with pytest.raises(RuntimeError, match="segment 2 of a ragged cache had no room"):
        interrupted(tiny, [], lambda cache: cache._arenas[1]._arenas.first.buffers.status.fill_(3), 9)


def test_an_error_of_the_device_does_not_hide_the_one_that_ended_the_batch(tiny: Loaded) -> None:
    batches: list[Steps] = []

    def lost() -> list[int]:
        raise RuntimeError("CUDA error: an illegal memory access")

    def interrupt(_: RaggedCache) -> None:
        batches[0]._ahead = lost
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(tiny, batches, interrupt, 9)
    assert not under_way(batches)


def test_the_rows_of_a_step_under_way_stay(tiny: Loaded) -> None:
    """The cache refuses to count a step after it has moved."""
    with pytest.raises(AssertionError, match="the batch changed although a step was under way"):
        interrupted(tiny, [], lambda cache: [layer._rebuild() for layer in cache._arenas] and None, 9)


@pytest.mark.cuda
@pytest.mark.parametrize("kernel", ["cuda", "flash_attn"])
@pytest.mark.parametrize("variants", [PLAIN, POLICIES])
def test_steps_ahead_on_the_gpu(kernel: str, variants: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stop while the next step is under way, and prompts join."""
    dims = dict(OmegaConf.load(conf_dir() / "model" / "tiny.yaml").dims)
    dims |= dict.fromkeys(("hidden_size", "intermediate_size"), 256) | {"head_dim": 64}
    loaded = kvbench.load_model("tiny", device="cuda", dtype="bfloat16", dims=dims)
    ahead = 0
    real = GraphedSteps.go_on

    def go_on(self: GraphedSteps) -> graph.Out:
        nonlocal ahead
        ahead += 1
        return real(self)

    monkeypatch.setattr(GraphedSteps, "go_on", go_on)

    def answers(asked: Sequence[Request], most: int, graph: str) -> list[list[Generation]]:
        queue = list(reversed(asked))
        draw = lambda in_flight: queue.pop() if queue and len(in_flight) < most else None  # noqa: E731
        outs = dict(stream(loaded.model, loaded.tokenizer, draw, kernel=kernel, graph=graph))
        return [outs[each] for each in asked]

    def counts(outs: Sequence[Sequence[Generation]]) -> list[Any]:
        return [(g.token_ids, g.finish_reason, g.kept_max, g.kv_bytes) for row in outs for g in row]

    for variant in variants:  # one row at a time: products of other numbers of rows may round otherwise
        free = [[g.token_ids for g in row] for row in answers(requests([variant]), 1, "false")]
        asked = requests([variant], stops_at(free, (7, 11, 14)))
        eager, before = counts(answers(asked, 1, "false")), ahead
        assert counts(answers(asked, 1, "true")) == eager and ahead > before
        assert "stop" in {reason for _, reason, *_ in eager}
    free = [[g.token_ids for g in row] for row in answers(requests(variants), 2, "true")]
    asked = requests(variants, stops_at(free, (7, 11, 14)))
    outs = answers(asked, 2, "true")  # checks the lengths of policies on the device whenever a row leaves
    for each, row in zip(asked, outs, strict=True):
        stops = each.prompts[0].stop_ids
        assert [g.finish_reason for g in row] == ["stop" if stops & {*g.token_ids} else "length" for g in row]
        assert all(not stops & {*g.token_ids[:-1]} and len(g.token_ids) <= NEW for g in row)
        plain = row if variants is PLAIN else row[:1]
        assert all(g.kept_max == max(map(max, g.kept)) + len(g.token_ids) - 1 for g in plain)
    assert len({len(g.token_ids) for row in outs for g in row}) > 2
