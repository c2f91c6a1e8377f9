"""Faults that are planted into steps whose policies act in all layers at once: some case of the tests shows each."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvbench.cache import step_end
from kvbench.cache.arena_layer import ArenaLayer
from kvbench.cache.policy_group import PolicyGroup
from kvbench.cache.shared_slots import SharedSlots
from kvbench.cache.step_end import JoinedLayers, StepEnd, _Joined, _Owed
from kvbench.methods.decode.cam import MergeIntoNext
from kvbench.methods.decoding import Decoding
from kvbench_kernels.backends.cpu import CpuBackend
from tests.cache import test_step_end as cases
from tests.helpers.step_end import MAY_WAIT

pytestmark = pytest.mark.gxx
MERGES = [Decoding(MergeIntoNext(window=1, merge_budget=3), buffer=buffer) for buffer in (0, 9)]

CASES: dict[str, Callable[[], object]] = {
    "merges": partial(cases.at_once, MERGES),
    "by layer": partial(cases.at_once, [MAY_WAIT[3]] * 2),
    "heavy": partial(cases.at_once, [MAY_WAIT[0]] * 2),
    "buffer": partial(cases.at_once, [MAY_WAIT[5]] * 2),
    "single rows": partial(cases.at_once, [MAY_WAIT[0], MAY_WAIT[3]]),
    "fed": cases.test_a_prompt_that_is_fed_layer_by_layer_in_chunks,
    "unlike": cases.test_layers_whose_steps_do_not_fit_together_act_alone,
    "room": cases.test_layers_that_need_room_in_the_middle_of_a_step,
    "half": cases.test_half_precision,
    **{after: partial(cases.ends_early, after) for after in ("look", "release", "step")},
}

# where, what is there, what stands there instead, and the case that shows it
FAULTS: list[tuple[Any, str, str, str, str]] = [
    (StepEnd, "__call__", "layer == min(self._acted, default=None)", "layer in self._acted", "fed"),
    (StepEnd, "__call__", "new, cuts, weights)", "new, cuts[::-1], weights)", "single rows"),
    (StepEnd, "finish", " and all(map(_is_steady, owed.values()))", "", "buffer"),  # one token leaves, not several
    (StepEnd, "finish", "owed.keys() == joined.layers.keys() and ", "", "step"),
    (StepEnd, "forget", "self.finish()", "self._owed = {}", "room"),  # the step is lost
    (_Owed, "act", ", self.new, self.cuts)", ", self.new)", "step"),  # what leaves is counted twice
    (ArenaLayer, "attend", "self._step_end.finish_layer(self._layer)", "pass", "step"),  # the next token comes first
    (ArenaLayer, "_count", "self._step_end.finish_layer(self._layer)", "pass", "look"),
    (ArenaLayer, "release", "self._step_end.finish()", "pass", "release"),
    (JoinedLayers, "act", "self._host.append(self._places, 1)", "pass", "heavy"),
    (JoinedLayers, "act", "limits.append(limit_LBU)", "limits.append(limit_LBU.flip(0))", "by layer"),
    (JoinedLayers, "act", "column_LYU[i]", "column_LYU[0]", "heavy"),
    (_Joined, "act", "self._all(weights, owed)", "self._all(weights, owed)[::-1]", "heavy"),
    (_Joined, "act", "s.seen_B = seen_LB.flatten()", "pass", "heavy"),  # the recent tokens stay those of the first step
    (_Joined, "__init__", "for s in each if s.draws", "for s in each[::-1] if s.draws", "merges"),
    (JoinedLayers, "__init__", "torch.zeros(sum(sizes)", "torch.ones(sum(sizes)", "half"),  # empty columns live
    (_Joined, "_hand_on", "self._start_LBU[i]", "self._start_LBU[0]", "merges"),
    (_Joined, "_hand_on", "slice(i * rows, (i + 1) * rows)", "slice(0, rows)", "merges"),
    (_Joined, "_hand_on", " + self._buffer_B1", "", "merges"),  # tokens within the buffer are handed on
    (PolicyGroup, "move_to", "seen_B.copy_(s.seen_B)", "seen_B.zero_()", "heavy"),
    (PolicyGroup, "move_to", "to_BUC[..., :columns] = x_BUC", "to_BUC[..., 1:columns] = x_BUC[..., 1:]", "heavy"),
    (SharedSlots, "move_to", "self._places = places", "pass", "half"),  # layers that act alone write to the old ones
    (SharedSlots, "drop", "column_YU=column_YU", "column_YU=column_YU * 0", "heavy"),
    (step_end, "join_layers", "any(kind != kinds[0] for kind in kinds)", "False", "unlike"),
    (CpuBackend, "least", "(x.contiguous() for x in", "(x for x in", "single rows"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "there", "instead", "case"), FAULTS)
def test_planted_faults_show(
    owner: Any, name: str, there: str, instead: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, name)))
    assert source.count(there) == 1
    names: dict[str, Any] = {}
    code = compile(f"from __future__ import annotations\n{source.replace(there, instead)}", name, "exec")
    exec(code, vars(owner if inspect.ismodule(owner) else sys.modules[owner.__module__]), names)
    monkeypatch.setattr(owner, name, names[name])
    with pytest.raises((AssertionError, RuntimeError, IndexError, KeyError, ValueError)):
        CASES[case]()


@pytest.mark.parametrize("case", CASES)
def test_the_cases_pass_without_a_fault(case: str) -> None:
    CASES[case]()
