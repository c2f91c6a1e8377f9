"""Policies that act in all layers at once at the end of a step: bit for bit what they do layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.held_policies import HeldPolicies
from kvbench.methods.decoding import Decoding
from kvbench.methods.plan import Plan
from kvbench.methods.store.kivi import Kivi
from kvbench_kernels.backends import make_backend
from tests.helpers.step_end import MAY_WAIT, MUST_NOT, Run, compare, random_case

pytestmark = pytest.mark.gxx


def name_of(decoding: Decoding) -> str:
    return f"{type(decoding.policy).__name__}-{decoding.buffer}-{decoding.interval}"


def new_run(layers: int, **sizes: Any) -> Run:
    return Run(RaggedCache(layers, make_backend("cpu")), layers, **sizes)


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_random_runs(first: int) -> None:
    """Rows join, leave and are copied, steps end early, and the cache is looked at between the layers of a step."""
    acts = [random_case(seed) for seed in range(first, first + 10)]
    assert sum(map(len, acts)) >= 25 and sum(map(bool, acts)) >= 7


@pytest.mark.parametrize("decoding", MAY_WAIT, ids=name_of)
def test_a_policy_acts_in_all_layers_at_once_from_the_second_step(decoding: Decoding) -> None:
    def play(run: Run) -> None:
        run.add([decoding, decoding])
        for _ in range(9):
            run.step()
            run.look()

    acts = compare(play, 3, reserve=20)
    assert set(acts) == {3}
    assert 4 <= len(acts) < 8 if decoding.buffer else len(acts) == 8, "where several tokens leave, layers act alone"


@pytest.mark.parametrize("decoding", MUST_NOT, ids=name_of)
def test_policies_that_cannot_wait_act_beside_those_that_do(decoding: Decoding) -> None:
    def play(run: Run) -> None:
        run.add([MAY_WAIT[0], decoding, MAY_WAIT[1], decoding])
        for new in (1, 1, 1, 4, 1, 1):
            run.step(new)
            run.look()

    assert compare(play, 3) == [3] * 3, "the first step, and those of a question and after it, are done layer by layer"

    def alone(run: Run) -> None:
        run.add([decoding, decoding])
        for _ in range(4):
            run.step()
        run.look()

    assert compare(alone, 3) == []


def test_rows_with_plans_act_beside_those_that_wait() -> None:
    numbers_UX = torch.tensor([[2, 3], [0, 0]], dtype=torch.int32)
    pinned_UT = torch.zeros(2, 18, dtype=torch.bool)
    pinned_UT[:, -2:] = True
    plan = Plan(numbers_UX, torch.tensor([6, 7]), pinned_UT, torch.tensor([True, False]), torch.tensor([1, 3]))

    def play(run: Run) -> None:
        run.add([MAY_WAIT[0]])
        run.add([Decoding(HeldPolicies())], first=1, plan=plan)
        for new in (1, 1, 3, 1, 1, 1, 1):
            run.step(new)
            run.look()

    assert compare(play, 3, reserve=20) == [3] * 4


@pytest.mark.parametrize("decoding", [None, MAY_WAIT[0]])
def test_rows_with_a_storage_part_act_beside_those_that_wait(decoding: Decoding | None) -> None:
    def play(run: Run) -> None:
        run.add([MAY_WAIT[0], MAY_WAIT[3]])
        run.add([decoding], first=5, store=Kivi(8, group_size=4, residual=8))
        run.rows = {0: run.rows[0], 5: decoding, 1: run.rows[1]}
        for new in (1, 1, 1, 3, 1):
            run.step(new)
        run.release(5)
        for _ in range(3):
            run.step()
            run.look()

    assert compare(play, 3) == [3] * 5


FIRST = Decoding(AccumulateAndEvict(window=2))
AFTER: dict[str, Callable[[Run, int], object]] = {
    "lengths": lambda run, layer: run.notes.append([run.cache.lengths(row) for row in run.rows]),
    "bytes": lambda run, layer: [run.cache.bytes(), *map(run.cache.slack_bytes, run.rows)],
    "peak": lambda run, layer: run.notes.append([run.cache.peak(row) for row in run.rows]),
    "look": lambda run, layer: run.look(),
    "fork": lambda run, layer: run.fork(0, 9),
    "release": lambda run, layer: run.release(0),
    "compact": lambda run, layer: run.cache.compact(),
    "join": lambda run, layer: run.add([FIRST], first=9),
    "question": lambda run, layer: run.step(3),
    "long question": lambda run, layer: run.step(40),
    "step": lambda run, layer: run.step(),
    "other rows": lambda run, layer: run.rows.pop(0),
    "same layer": lambda run, layer: [run.attend(layer) for _ in range(3)],
    "first layer": lambda run, layer: [run.attend(0), run.attend(0)],
    "later layer": lambda run, layer: run.attend(run.layers - 1),
    "twice": lambda run, layer: run.step(upto=layer + 1),
}


@pytest.mark.parametrize("after", AFTER)
def test_a_step_that_ends_early_is_done_before_anything_else(after: str) -> None:
    def play(run: Run, layer: int, between: bool) -> None:
        run.add([FIRST, MAY_WAIT[2], None, MAY_WAIT[3], FIRST])
        for _ in range(3):
            run.step()
        if between:  # in the middle of a step that goes on
            rows = dict(run.rows)
            run.step(upto=layer + 1)
            AFTER[after](run, layer)
            run.rows = {row: run.rows.get(row, rows.get(row)) for row in run.rows}
            for later in range(layer + 1, run.layers):
                run.attend(later)
        else:
            run.step(upto=layer + 1)
            AFTER[after](run, layer)
        for _ in range(4):
            run.step()
        run.look()
        run.release(*run.rows)

    for layer in (0, 1, 2):
        for between in (False, True):
            looked = compare(partial(play, layer=layer, between=between), 4, masked=False)
            assert len(looked) >= 3
    compare(partial(play, layer=1, between=False), 4)
