"""The lengths on the host of rows with a decode policy: planned steps ahead, against each step by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from kvbench.cache.quota import AHEAD, Ints, Quota
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.slots import Slots

BASE = np.array([5, 9, 30])


class Jumps(DecodePolicy):
    """A policy whose limit falls to the share at every eleventh step, and rises by many tokens at once."""

    reads: ClassVar[str] = "nothing"

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        return base_BU + torch.where(steps_B1 % 11 > 4, 6, 0)

    def drop(self, slots: Slots) -> Tensor:
        return slots.pos_BUC.float()


@dataclass
class Row:
    """The fields of a row that a quota reads."""

    decoding: Decoding
    base_U: Ints
    span: int = 40
    seen: int = 40
    peak: int = 0
    pins: None = None


def quota() -> Quota:
    return Quota([Row(Decoding(Jumps()), BASE), Row(Decoding(Jumps()), BASE + 2, 50, 50)], np.full((2, 3), 9), 0)


def by_hand(length_U: Ints, base_U: Ints, steps: range) -> tuple[Ints, int]:
    """Return the lengths after some steps of one token, and the most that a head held after one."""
    peak = 0
    for step in steps:
        length_U = np.minimum(length_U + 1, base_U + (6 if step % 11 > 4 else 0))
        peak = max(peak, int(length_U.max()))
    return length_U, peak


@pytest.mark.parametrize("steps", [1, 10, 11, AHEAD, AHEAD + 1, 3 * AHEAD - 1])
def test_planned_lengths_and_peaks_are_those_of_each_step(steps: int) -> None:
    rows, lengths = quota(), np.full((2, 3), 9)
    for _ in range(steps):
        before = rows.lengths_BU
        rows.grow(1)
        cut = rows.cut()
        assert (rows.lengths_BU == before + 1 - cut.counts_BU).all() and (cut.counts_BU >= 0).all()
        assert (cut.leaves, cut.steady) == (bool(cut.counts_BU.any()), bool((cut.counts_BU <= 1).all()))
    for row, base_U in enumerate((BASE, BASE + 2)):
        length_U, peak = by_hand(lengths[row], base_U, range(1, steps + 1))
        assert (rows.lengths_BU[row] == length_U).all() and rows.peak_B[row] == peak


@pytest.mark.parametrize("planned", [1, 7, 20])
def test_steps_of_several_tokens_and_restored_counts_end_a_plan(planned: int) -> None:
    """The plan for the steps after them is of no use any more."""

    def go(rows: Quota, *tokens: int) -> None:
        for new in tokens:
            rows.grow(new)
            rows.cut()

    for interrupt in ("question", "reset"):
        rows, fresh = quota(), quota()
        go(rows, *[1] * planned)
        go(fresh, *[1] * planned)
        if interrupt == "question":
            go(rows, 4)
            fresh.grow(4)
            fresh._plans = False  # every step by itself
            fresh.cut()
        else:
            counts = rows.counts()
            go(rows, 1, 1, 1)
            rows.reset_counts(counts)
            fresh._plans = False
        for _ in range(9):
            go(rows, 1)
            go(fresh, 1)
            assert (rows.lengths_BU == fresh.lengths_BU).all(), interrupt
            assert (rows.peak_B == fresh.peak_B).all() and (rows.seen_B1 == fresh.seen_B1).all()
