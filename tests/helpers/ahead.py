"""Requests that are answered eagerly and by steps ahead, with a recorder that imitates a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import kvbench
from kvbench.cache.ragged import RaggedCache
from kvbench.engine import graph, steps
from kvbench.engine.decode import stream
from kvbench.engine.graph import GraphedSteps
from kvbench.engine.steps import Steps
from kvbench.engine.variant import Generation, Request, Variant
from kvbench.models.load import Loaded
from kvbench.prompts import Prompt
from tests.helpers.recorder import imitate, with_small_reserve

IDS = [list(range(5, 65)), list(range(30, 120)), list(range(9, 50))]
PLAIN = [("fullkv", None), ("snapkv", 40), ("ada_snapkv", 36), ("streaming_llm", 38)]
POLICIES = [("fullkv", None), ("tova", 36), ("h2o_decode", 36), ("streaming_llm_decode", 30)]
PINS = [
    ("fastgen", None, {"recovery": 0.5, "frequent": 0.1, "local": 0.1, "ahead": 8}),
    ("corm", None, {"history": 12, "recent": 4, "interval": 8}),
]
NEW = 28


@dataclass
class Log:
    """Notes of a run.

    Attributes:
        answers: per request, what must not depend on how steps run.
        steps: seconds of each step, and whether a graph ran it.
        after: steps before each answer, in the order of the requests.
        ahead: steps that were started ahead.
    """

    answers: list[Any] = field(default_factory=list)
    steps: list[tuple[float, bool]] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    ahead: int = 0


def watch(patch: pytest.MonkeyPatch, batches: list[Steps]) -> None:
    """Note the steps of every batch."""

    class Watched(Steps):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            batches.append(self)

    patch.setattr(steps, "Steps", Watched)


def under_way(batches: Sequence[Steps]) -> bool:
    return any(batch.under_way for batch in batches)


def play(loaded: Loaded, requests: Sequence[Request], most: int, graphed: Any = None) -> Log:
    """Answer requests, at most `most` at a time.

    Args:
        graphed: the class of the recorded steps; None for eager ones.
    """
    log, queue, batches = Log(), list(reversed(requests)), list[Steps]()
    answers: dict[Request, tuple[list[Generation], int]] = {}

    def draw(in_flight: Sequence[Request]) -> Request | None:
        assert not under_way(batches), "a prompt may join while a step is under way"
        return queue.pop() if queue and len(in_flight) < most else None

    with pytest.MonkeyPatch.context() as patch:
        imitate(patch, loaded, graphed)
        watch(patch, batches)
        answered = stream(
            loaded.model, loaded.tokenizer, draw, fused="false", on_step=lambda *step: log.steps.append(step)
        )
        with closing(answered):
            for request, generations in answered:
                assert not under_way(batches), "an answer came while a step was under way"
                answers[request] = generations, len(log.steps)
    assert not under_way(batches)
    for request in requests:
        generations, after = answers[request]
        log.after.append(after)
        log.answers.append([
            (g.token_ids, g.text, g.finish_reason, g.error, g.kept, g.kept_max, g.read, g.kv_bytes, g.slack_bytes,
             g.held_bytes)
            for g in generations
        ])  # fmt: skip
    return log


def play_ahead(loaded: Loaded, requests: Sequence[Request], most: int) -> Log:
    """Answer requests by recorded steps, which may start ahead."""
    ahead = 0

    class Noted(GraphedSteps):
        def go_on(self) -> graph.Out:
            nonlocal ahead
            ahead += 1
            return super().go_on()

    log = play(loaded, requests, most, Noted)
    log.ahead = ahead
    return log


def requests(
    variants: Sequence[Any],
    stops: Sequence[Sequence[int]] = ((), (), ()),
    *,
    least: Sequence[int] = (0, 0, 0),
    new: Sequence[int] = (NEW, NEW, NEW),
) -> list[Request]:
    """Return a request per prompt. `least` and `new`: fewest and most tokens of their answers."""
    asked = [
        Variant(kvbench.load_method(name, **(dials[0] if dials else {})), budget) for name, budget, *dials in variants
    ]
    texts = [
        Prompt(tuple(ids), context_len=len(ids), stop_ids=frozenset(ends), text="", min_new_tokens=few)
        for ids, ends, few in zip(IDS, stops, least, strict=True)
    ]
    return [Request.of(text, asked, most) for text, most in zip(texts, new, strict=True)]


def free_answers(loaded: Loaded, variants: Sequence[Any]) -> list[list[list[int]]]:
    return [[answer[0] for answer in row] for row in play(loaded, requests(variants), 3).answers]


def stops_at(answers: Sequence[Sequence[Sequence[int]]], places: Sequence[int]) -> list[list[int]]:
    """Return stops for each request: its answers have them at these places or later, and none before the seventh."""
    stops = []
    for of_request in answers:
        early = {token for ids in of_request for token in ids[:6]}
        later = [[t for t in ids[place:] if t not in early] for ids, place in zip(of_request, places, strict=False)]
        stops.append([tokens[0] for tokens in later if tokens])
    return stops


@dataclass
class Case:
    """Requests whose answers must be the same, eagerly and ahead.

    Attributes:
        most: requests that decode together.
        ahead: least number of steps that start ahead.
    """

    loaded: Loaded
    requests: list[Request]
    most: int
    ahead: int


Cases = Callable[[str], tuple[Case, Log]]
NAMES = ("stops", "one row", "two rows", "least", "lengths", "policies", "buffer", "pins", "fails", "room")


def all_cases(tiny: Loaded) -> Cases:
    """Return a function that returns the case of a name, with its eager log."""
    plain = stops_at(free_answers(tiny, PLAIN), (7, 11, 14))
    evicting = stops_at(free_answers(tiny, POLICIES), (19, 8, 12, 15))
    known: dict[str, tuple[Case, Log]] = {}

    def poisoned() -> Loaded:
        loaded = kvbench.load_model("tiny", seed=1)
        answers = [ids for row in free_answers(loaded, PLAIN) for ids in row]
        early = {token for ids in [*IDS, *(answer[:9] for answer in answers)] for token in ids}
        late = [{*answer[9:-1]} - early for answer in answers]
        token = next(t for each in late for t in sorted(each) if not all(t in other for other in late))
        loaded.model.get_input_embeddings().weight.data[token] = torch.nan
        return loaded

    def case(name: str) -> Case:
        match name:
            case "stops":
                return Case(tiny, requests(PLAIN, plain), 2, 10)
            case "one row":
                return Case(tiny, requests(PLAIN[1:2], plain), 1, 10)
            case "two rows":
                return Case(tiny, requests(PLAIN[:2], plain), 1, 10)
            case "least":
                return Case(tiny, requests(PLAIN, plain, least=(0, 9, 14)), 3, 5)
            case "lengths":
                return Case(tiny, requests(PLAIN, new=(12, 19, NEW)), 3, 15)
            case "policies":
                return Case(tiny, requests(POLICIES, evicting), 2, 5)
            case "buffer":
                return Case(tiny, requests([("fullkv", None), ("h2o_decode", 36, {"buffer": 6})], plain), 3, 5)
            case "pins":
                return Case(tiny, requests(PINS, stops_at(free_answers(tiny, PINS), (9, 14, 12))), 2, 5)
            case "fails":
                return Case(poisoned(), requests(PLAIN), 3, 10)
            case "room":
                return Case(tiny, requests(PLAIN, plain), 2, 3)
        raise ValueError(name)

    def with_log(name: str) -> tuple[Case, Log]:
        if name not in known:
            known[name] = case(name), Log()
            known[name] = known[name][0], play(known[name][0].loaded, known[name][0].requests, known[name][0].most)
        return known[name]

    return with_log


def check(name: str, cases: Cases) -> None:
    """Compare a case with its eager run."""
    case, expected = cases(name)
    with pytest.MonkeyPatch.context() as patch:
        if name == "room":
            patch.setattr(RaggedCache, "add", with_small_reserve(RaggedCache.add))
            expected = play(case.loaded, case.requests, case.most)
        log = play_ahead(case.loaded, case.requests, case.most)
    assert log.answers == expected.answers
    assert log.ahead >= case.ahead
    assert all(seconds > 0 for seconds, _ in log.steps)
    for place, (after, eager) in enumerate(zip(log.after, expected.after, strict=True)):
        assert after <= eager + place + 1, "a batch that ends with stops takes one more step"
    if name == "lengths":
        assert log.after == expected.after, "no step is known to be too many"
