"""Policies that act in all layers at once at the end of a step: bit for bit what they do layer by layer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.cache import step_end
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.held_policies import HeldPolicies
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.plan import Plan
from kvbench.methods.slots import Slots
from kvbench.methods.store.kivi import Kivi
from kvbench_kernels.backends import make_backend
from tests.helpers.step_end import MAY_WAIT, MUST_NOT, ByLayer, Run, compare, counting, random_case

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


def at_once(decodings: Sequence[Decoding]) -> list[int]:
    def play(run: Run) -> None:
        run.add(decodings)
        for _ in range(9):
            run.step()
            run.look()

    acts = compare(play, 3, reserve=20)
    assert set(acts) == {3}
    return acts


@pytest.mark.parametrize("decoding", MAY_WAIT, ids=name_of)
def test_a_policy_acts_in_all_layers_at_once_from_the_second_step(decoding: Decoding) -> None:
    acts = at_once([decoding, decoding])
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
    ends_early(after)


def ends_early(after: str) -> None:
    def play(run: Run, layer: int, between: bool) -> None:
        run.add([FIRST, MAY_WAIT[2], None, MAY_WAIT[3], FIRST])
        for _ in range(3):
            run.step()
        if between:  # in the middle of a step that goes on
            run.step(upto=layer + 1)
            AFTER[after](run, layer)
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


def test_layers_that_need_room_in_the_middle_of_a_step() -> None:
    """Limits grow faster in the first layers, and a layer that is laid out again makes all layers act alone."""
    moved: list[list[int]] = []

    def play(run: Run) -> None:
        run.add([Decoding(ByLayer()), Decoding(ByLayer())])
        for _ in range(40):
            run.step()
            run.look()
            if isinstance(run.cache, RaggedCache):
                moved.append([layer.moves for layer in run.cache._arenas])

    acts = compare(play, 4, reserve=1)
    assert len(acts) >= 10
    later = [a for a, b in pairwise(moved[:40]) if any(x == y for x, y in zip(a, b, strict=True)) and a != b]
    assert later, "no layer grew while others did not"


def test_a_prompt_that_is_fed_layer_by_layer_in_chunks() -> None:
    """Each layer takes all chunks before the next one. Its steps wait for no other layer."""

    def play(run: Run) -> None:
        run.add([FIRST, MAY_WAIT[1]])
        for layer in range(run.layers):
            for _ in range(5):
                run.attend(layer)
        run.look()
        for _ in range(3):
            run.step()
            run.look()

    assert compare(play, 3) == [3] * 3


def test_layers_whose_steps_do_not_fit_together_act_alone() -> None:
    def play(run: Run) -> None:
        run.add([MAY_WAIT[0], MAY_WAIT[3]])
        for _ in range(4):
            run.step()
        run.look()

    assert compare(play, 3) == [3] * 3
    assert compare(play, 1) == []
    assert compare(play, 3, heads=[2, 3, 2]) == []
    assert compare(play, 3, groups=[2, 2, 1]) == []
    for name, value in (("AT_ONCE", 1), ("PADDED", 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step_end, name, value)
            assert compare(play, 3) == []


def test_caches_in_turn() -> None:
    """Two caches at a time, of which each answers as it does alone; in half precision, too."""
    for dtype in (torch.float32, torch.bfloat16):
        runs = [new_run(3, seed=i, dtype=dtype) for i in (1, 2, 1, 2)]
        for run in runs:
            run.add([*MAY_WAIT[:4]])
        with counting() as acts:
            for new in (1, 1, 1, 3, 1, 1, 1):
                for layer in range(3):
                    for run in runs[:2]:
                        run.attend(layer, new)
            for run in runs[2:]:
                for new in (1, 1, 1, 3, 1, 1, 1):
                    run.step(new)
        assert len(acts) >= 8
        for in_turn, alone in zip(runs[:2], runs[2:], strict=True):
            assert all(map(torch.equal, in_turn.outs, alone.outs))


def test_a_question_after_which_nothing_leaves() -> None:
    def play(run: Run) -> None:
        run.add([Decoding(AccumulateAndEvict(), buffer=9)] * 2)
        for new in (1, 1, 3, 1):
            run.step(new)
            run.look()

    assert set(compare(play, 3, reserve=20)) == {3}


def test_half_precision() -> None:
    def play(run: Run) -> None:
        run.add([d for d in MAY_WAIT for _ in range(2)])
        for new in (1, 1, 1, 3, 1, 1, 1):
            run.step(new)
            run.look()

    assert compare(play, 3, reserve=30, dtype=torch.bfloat16, masked=False)


def test_rows_that_leave_take_their_memory_with_them() -> None:
    run = new_run(3)
    run.add([*MAY_WAIT[:3]])
    with counting() as acts:
        for _ in range(3):
            run.step()
        run.step(upto=2)
    assert len(acts) == 2
    layers = run.cache._arenas  # type: ignore[union-attr]
    seen = [weakref.ref(x) for layer in layers for group in layer._groups for x in (group, group.slots.state_BUC)]
    arenas = [weakref.ref(layer._arenas.first.buffers.k_RD) for layer in layers]
    run.release(*run.rows)
    run.cache.compact()
    gc.collect()
    assert run.cache.bytes() == 0
    assert all(ref() is None for ref in [*seen, *arenas])


class WithAPoint(DecodePolicy):
    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        return base_BU * 0.5

    def drop(self, slots: Slots) -> Tensor:
        return slots.pos_BUC.float()


def test_a_limit_that_is_no_integer_is_an_error() -> None:
    with pytest.raises(ValueError, match="method: WithAPoint.limit returned torch.float32, .* a tensor of integers"):
        new_run(2).add([Decoding(WithAPoint())])
