"""Faults that are planted into steps ahead, and into the choice on the device: some case of the tests shows each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import pytest

import kvbench
from kvbench.engine import graph, steps
from kvbench.engine.decode import _Batch
from kvbench.engine.graph import GraphedSteps
from kvbench.engine.row import Row
from kvbench.engine.steps import Outbox, Steps
from kvbench.models.load import Loaded
from tests.helpers.ahead import (
    Cases,
    all_cases,
    check,
)


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return kvbench.load_model("tiny")


@pytest.fixture(scope="module")
def cases(tiny: Loaded) -> Cases:
    return all_cases(tiny)


# where, what is there, what stands there instead, and the case that shows it
FAULTS: list[tuple[Any, str, str, str, str]] = [
    (_Batch, "_take", "strict=True) if row.finish is None]", "strict=True)]", "stops"),  # the token too many is taken
    (_Batch, "_take", "if done and not self._under_way", "if done", "stops"),  # rows leave before the step is done
    (_Batch, "half_empty", "not self._under_way and ", "", "stops"),  # prompts join before the step is done
    (_Batch, "step", "[] if self._under_way else ", "", "one row"),
    (Steps, "_may_go_on", "row.finish is None and ", "", "two rows"),
    (Steps, "_may_go_on", "len(row.ids) + 1 < row.max_new_tokens", "True", "lengths"),
    (Steps, "_start", "self._graphed.chosen_on_host()", "pass", "least"),
    (Steps, "_start", "self._graphed.chosen_on_host()", "pass", "buffer"),
    (Steps, "_start", "and all(map(is_free, rows))", "", "least"),
    (Steps, "_counted", "self._graphed.count(", "(lambda *_: None)(", "stops"),
    (Steps, "_counted", "row.seen += 1", "pass", "buffer"),
    (Outbox, "send", "range(2)", "range(1)", "stops"),
    (GraphedSteps, "go_on", "return", "self.count(self._key[:-1], [[0]] * (len(self._key) - 1)); return", "stops"),
    (GraphedSteps, "can_go_on", " and self._cache.room(rows) >= 1", "", "room"),
    (GraphedSteps, "can_go_on", "self._holds_input and ", "", "least"),
    (graph, "_write_next", "min=0", "min=-1", "fails"),
    (graph, "_write_next", "position_B1.add_(1)", "pass", "lengths"),
]  # fmt: skip


def not_counted(self: Steps, rows: Sequence[Row], read: steps.Read) -> steps.Read:
    for row in rows:
        row.seen += 1
    return read


@pytest.mark.parametrize(("owner", "name", "there", "instead", "case"), FAULTS)
def test_planted_faults_show(
    owner: Any, name: str, there: str, instead: str, case: str, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases(case)
    function = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(function.fget if isinstance(function, property) else function))
    assert source.count(there) == 1
    if name == "go_on":  # counted when it starts, and not when its turn comes
        monkeypatch.setattr(Steps, "_counted", not_counted)
    names: dict[str, Any] = {}
    code = compile(f"from __future__ import annotations\n{source.replace(there, instead)}", name, "exec")
    module = owner if inspect.ismodule(owner) else sys.modules[owner.__module__]
    exec(code, vars(module), names)
    monkeypatch.setattr(owner, name, names[name])
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check(case, cases)
