"""Parts that raise exceptions or write into shared tensors: one line says which, and other methods go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvbench.common.command import is_mistake
from kvbench.methods.context import LayerContext
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.heads.adaptive import Adaptive
from kvbench.methods.merge.nearest import ToNearest
from kvbench.methods.part_call import PartError
from kvbench.methods.probe.repeat import Repeat
from kvbench.methods.scores.window_attention import WindowAttention
from kvbench.methods.select.top_k import TopK
from kvbench.run import runner
from kvbench.run.jobs import Job
from tests.helpers.runs import answers, records, status

Jobs = Callable[..., list[Job]]
SNAP, H2O = ["method=snapkv", "budget=100"], ["method=h2o", "budget=100"]
CALM = "paths.outputs=${oc.env:KVBENCH_CALM}"
TWO = [[*method, "limit=2"] for method in (["method=fullkv"], SNAP, H2O)]


def break_part(monkeypatch: pytest.MonkeyPatch, broken: Callable[[LayerContext], None]) -> None:
    """Let the score of snapkv do something first in layer 2, as if a user had edited it."""
    real = WindowAttention.__call__

    def call(self: WindowAttention, ctx: LayerContext) -> torch.Tensor:
        if ctx.layer == 2:
            broken(ctx)
        return real(self, ctx)

    monkeypatch.setattr(WindowAttention, "__call__", call)


def no_key(ctx: LayerContext) -> None:
    raise KeyError("no_such_fact")


def no_pair(ctx: LayerContext) -> None:
    _heads, _tokens = ctx.k.shape


def no_text(ctx: LayerContext) -> None:
    raise NotImplementedError


def test_an_exception_of_a_part_is_a_traceback_and_one_line(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line says which part, method, layer and sample. The other methods of the sweep go on."""
    calm = runner.run_jobs(jobs(*[[*overrides, CALM] for overrides in TWO]))
    break_part(monkeypatch, no_key)
    full, snap, h2o = runner.run_jobs(jobs(*TWO))
    assert [answers(full), answers(h2o)] == [answers(calm[0]), answers(calm[2])]
    assert status(snap)["status"] == "failed" and records(snap) == []
    text, first = str(snap.error), records(h2o)[0]["id"]
    assert text.startswith("method: the score WindowAttention failed in layer 2: KeyError: 'no_such_fact' (")
    assert f" (method snapkv, sample {first}; its traceback is above); " in text
    assert text.endswith("issue the same command again")
    assert isinstance(snap.error, PartError) and is_mistake(snap.error)
    assert snap.error.__cause__ is None and snap.error.__traceback__ is None, "their frames hold tensors"
    assert caplog.text.count("Traceback") == 1, "once, when the run is tried by itself"
    monkeypatch.undo()
    assert answers(runner.run_jobs(jobs(TWO[1]))[0]) == answers(calm[1])


@pytest.mark.parametrize(
    ("broken", "shown"),
    [
        (no_pair, "the score WindowAttention failed in layer 2: ValueError: too many values to unpack (expected 2"),
        (no_text, "the score WindowAttention failed in layer 2: NotImplementedError (method snapkv, sample "),
        (lambda ctx: ctx.generator(WindowAttention(window=4)), "WindowAttention draws random numbers; write draws = "),
    ],
)
def test_whatever_a_part_raises_is_one_line(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, broken: Any, shown: str
) -> None:
    break_part(monkeypatch, broken)
    (outcome,) = runner.run_jobs(jobs([*SNAP, "limit=1"]))
    assert isinstance(outcome.error, ValueError) and "\n" not in str(outcome.error)
    assert str(outcome.error).startswith(f"method: {shown}")


def test_an_exception_of_a_decode_policy_names_it(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(self: SlidingWindow, slots: Any) -> torch.Tensor:
        raise IndexError("too far")

    monkeypatch.setattr(SlidingWindow, "drop", drop)
    monkeypatch.setattr(SlidingWindow, "oldest_first", False, raising=False)
    (outcome,) = runner.run_jobs(jobs(["method=streaming_llm_decode", "budget=100", "limit=2"]))
    text = str(outcome.error)
    assert text.startswith("method: the decode policy SlidingWindow.drop failed: IndexError: too far")
    assert "method streaming_llm_decode, " in text


def test_a_part_of_the_package_that_writes_in_place_spoils_no_other_method(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/adding.md puts new parts into the package, where they are not compared one by one."""
    calm = runner.run_jobs(jobs(*[[*overrides, CALM] for overrides in TWO]))
    break_part(monkeypatch, lambda ctx: ctx.v.mul_(2))
    full, snap, h2o = runner.run_jobs(jobs(*TWO))
    assert str(snap.error).startswith("method: a part of snapkv changed ctx.v in place, which other methods read")
    assert records(snap) == []
    assert [answers(full), answers(h2o)] == [answers(calm[0]), answers(calm[2])]


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("ctx.k", lambda ctx: ctx.k.data.add_(1)),
        ("ctx.q", lambda ctx: ctx.q.numpy().__imul__(2)),
        ("ctx.column_sums", lambda ctx: ctx.column_sums().zero_()),
    ],
)
def test_every_way_to_write_in_place_is_seen(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, name: str, writes: Any
) -> None:
    """Torch counts neither writes to `data` nor those of numpy."""
    break_part(monkeypatch, writes)
    (outcome,) = runner.run_jobs(jobs([*SNAP, "limit=1"]))
    assert str(outcome.error).startswith(f"method: a part of snapkv changed {name} in place")


@pytest.mark.parametrize("place", ["heads", "selection", "merge", "probe", "late score"])
def test_every_part_of_the_package_is_compared(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Also where it waits for other layers, or reads what candidates share."""
    kind, name, method, writes = {
        "heads": (Adaptive, "__call__", "ada_snapkv", lambda ctx, candidates: candidates.values_UN.mul_(2)),
        "selection": (TopK, "__call__", "snapkv", lambda ctx, candidates: candidates.order_UN.zero_()),
        "merge": (ToNearest, "__call__", "elastic_cache", lambda ctx, keep_UT: ctx.v.mul_(2)),
        "probe": (Repeat, "observe", "kvzip", lambda before, ctx: ctx.k.mul_(2)),
        "late score": (TopK, "__call__", "prefixkv", lambda ctx, candidates: ctx.k.mul_(2)),
    }[place]
    real = getattr(kind, name)

    def call(self: Any, first: Any, second: Any, *more: Any) -> Any:
        result = real(self, first, second, *more)
        writes(first, second)
        return result

    monkeypatch.setattr(kind, name, call)
    (outcome,) = runner.run_jobs(jobs([f"method={method}", "budget=100", "limit=1"]))
    assert re.match(r"method: (a part of|the probe) \w+ changed (candidates|ctx)[.]\w+ in place", str(outcome.error))
