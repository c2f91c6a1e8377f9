"""Lengths on the host of rows with a decode policy, from the policy's `limit` alone.

Shape suffixes: B rows of one policy, U KV heads, N steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kvbench.methods import policy_answers
from kvbench.methods.decoding import Decoding

Ints = NDArray[np.int64]
AHEAD = 32  # steps for which the limits are computed at once
Counts = tuple[Ints, Ints, Ints, Ints]
"""Lengths, tokens seen, peaks and pinned tokens of a group."""


class QuotaPins(Protocol):
    """The heads of a row that pin generated tokens of certain ids, and how many there are."""

    @property
    def pins_U(self) -> torch.Tensor: ...
    @property
    def count(self) -> int: ...


class QuotaRow(Protocol):
    """A row as its quota sees it."""

    @property
    def decoding(self) -> Decoding: ...
    @property
    def base_U(self) -> Ints: ...
    @property
    def span(self) -> int: ...
    @property
    def seen(self) -> int: ...
    @property
    def peak(self) -> int: ...
    @property
    def pins(self) -> QuotaPins | None: ...


@dataclass(frozen=True)
class Cut:
    """The tokens that leave after a step.

    Attributes:
        counts_BU: tokens that leave each head.
        steady: True if the device can do the cut without knowing `counts_BU`: at most one token leaves a head, where
            a head is above its limit and its buffer.
        leaves: True if a token leaves a head.
        may_drop: False if no row of the group can drop a token in a steady step, because all have a buffer.
        limit_BU: tokens that each head may hold; None without limits.
    """

    counts_BU: Ints
    steady: bool
    leaves: bool
    may_drop: bool
    limit_BU: Ints | None = None


class Quota:
    """The limits and lengths of the rows of one policy in one layer.

    Attributes:
        has_limit: False for a policy that says with a mask which tokens leave; lengths then come from the device.
        masks_every_step: True if such a policy is asked in every step.
        lengths_BU: tokens that each head holds.
        seen_B1: tokens of the sequence.
        peak_B: most tokens that a head held after a step.
        pinned_B1: generated tokens of the ids that heads pin. They add to the limits of heads that do.
    """

    def __init__(self, rows: Sequence[QuotaRow], lengths_BU: Ints, layer: int) -> None:
        self._policy, self._layer = rows[0].decoding.policy, layer
        self.lengths_BU = lengths_BU
        self.base_BU = np.stack([row.base_U for row in rows])
        self.buffer_B1 = np.array([[row.decoding.buffer] for row in rows])
        self.seen_B1 = np.array([[row.seen] for row in rows])
        self.peak_B = np.array([row.peak for row in rows])
        self._span_B1 = np.array([[row.span] for row in rows])
        pins = [row.pins for row in rows]
        self.pinned_B1 = np.array([[0 if p is None else p.count] for p in pins])
        self._pins_BU = np.zeros_like(self.base_BU)
        for of_row, p in zip(self._pins_BU, pins, strict=True):
            of_row[:] = 0 if p is None else p.pins_U.cpu().numpy()
        self._ahead_NBU, self._ahead_from = self._limits(self.seen_B1), self.seen_B1
        self.has_limit = self._ahead_NBU is not None
        self._interval_B1 = np.array([[row.decoding.interval or int(not self.has_limit)] for row in rows])
        self.masks_every_step = not self.has_limit and bool((self._interval_B1 == 1).any())
        self._has_intervals = bool((self._interval_B1 > 1).any())
        self._at_once_B1 = (self.buffer_B1 == 0).astype(np.int64)  # tokens that the device can drop of a head
        self._may_drop = bool(self._at_once_B1.any())
        self._new = 0  # tokens of the step under way
        cuts_at_limit = self.has_limit and not self._has_intervals and not self.buffer_B1.any()
        self._plans = cuts_at_limit and all(p is None for p in pins)
        self._planned: Iterator[tuple[Cut, Ints, Ints]] = iter(())  # the next steps of one token

    def grow(self, tokens: int, pinned_B1: Ints | None = None) -> None:
        """Count the tokens of a step, and how many of them have an id that heads pin; `cut` follows."""
        if pinned_B1 is not None:
            self.pinned_B1 = self.pinned_B1 + pinned_B1
        self.lengths_BU = self.lengths_BU + tokens
        self.seen_B1 = self.seen_B1 + tokens
        self._new = tokens

    def cut(self) -> Cut:
        """Count and return the tokens that leave after a step."""
        if self._plans and self._new == 1:
            step = next(self._planned, None)
            if step is None:
                self._planned = self._plan()
                step = next(self._planned)
            cut, self.lengths_BU, self.peak_B = step
            return cut
        cut = self._next_cut(self.lengths_BU, self.seen_B1, self._new)
        self.settle(self.lengths_BU - cut.counts_BU)
        return cut

    def _plan(self) -> Iterator[tuple[Cut, Ints, Ints]]:
        """Return the cut, the lengths and the peaks of this step and those that follow, one token each.

        Without a buffer, a head holds as many tokens as its limit and the tokens so far allow.
        """
        limit_NBU, self._ahead_from = self._limits(self.seen_B1), self.seen_B1
        assert limit_NBU is not None
        self._ahead_NBU = limit_NBU
        ahead_N11 = np.arange(AHEAD)[:, None, None]
        before_BU = self.lengths_BU - 1
        lengths_NBU = np.minimum(np.minimum.accumulate(limit_NBU - ahead_N11), before_BU + 1) + ahead_N11
        counts_NBU = np.concatenate([before_BU[None], lengths_NBU[:-1]]) + 1 - lengths_NBU
        peaks_NB = np.maximum(np.maximum.accumulate(lengths_NBU.max(2)), self.peak_B)
        most_N: list[int] = counts_NBU.max((1, 2)).tolist()
        cuts = (
            Cut(counts_BU, most <= 1, most > 0, self._may_drop, limit_BU)
            for counts_BU, most, limit_BU in zip(counts_NBU, most_N, limit_NBU, strict=True)
        )
        return zip(cuts, lengths_NBU, peaks_NB, strict=True)

    def settle(self, lengths_BU: Ints) -> None:
        """Set the lengths after a step."""
        self._planned = iter(())
        self.lengths_BU = lengths_BU
        self.peak_B = np.maximum(self.peak_B, lengths_BU.max(1))

    def scheduled(self) -> Ints:
        """Return [B, 1]: True for rows whose policy cuts after this step whatever it holds."""
        return self._scheduled(self.seen_B1, self._new)

    def next_is_steady(self) -> bool:
        """Return True if the device can do the next step of one token alone, whether or not it is pinned."""
        if not self.has_limit:
            return not self._scheduled(self.seen_B1 + 1, 1).any()
        return self._next_cut(self.lengths_BU + 1, self.seen_B1 + 1, 1).steady

    def is_pure(self) -> bool:
        """Return True if the policy returns the same limits again for the same arguments, as it must."""
        again_NBU = self._limits(self._ahead_from)
        if again_NBU is None or self._ahead_NBU is None:
            return again_NBU is self._ahead_NBU
        return bool((again_NBU == self._ahead_NBU).all())

    def counts(self) -> Counts:
        """Return the counts, for `reset_counts` after a recording that failed."""
        return self.lengths_BU, self.seen_B1, self.peak_B, self.pinned_B1

    def reset_counts(self, counts: Counts) -> None:
        """Restore the counts."""
        self._planned = iter(())
        self.lengths_BU, self.seen_B1, self.peak_B, self.pinned_B1 = counts

    def _next_cut(self, lengths_BU: Ints, seen_B1: Ints, new: int) -> Cut:
        limit_BU = self._limit(seen_B1)
        if limit_BU is None:
            return Cut(np.zeros_like(lengths_BU), steady=True, leaves=False, may_drop=False)
        over_BU = np.maximum(lengths_BU - limit_BU, 0)
        due_BU = over_BU > self.buffer_B1
        if self._has_intervals:
            due_BU = due_BU | self._scheduled(seen_B1, new)
        counts_BU = np.where(due_BU, over_BU, 0)
        steady = bool((counts_BU <= self._at_once_B1).all())
        return Cut(counts_BU, steady, bool(counts_BU.any()), self._may_drop, limit_BU)

    def _limit(self, seen_B1: Ints) -> Ints | None:
        """Return the limits [B, U] after a step; all rows have made equally many steps since the group began."""
        if self._ahead_NBU is None:
            return None
        step = int(seen_B1[0, 0] - self._ahead_from[0, 0])
        if not 0 <= step < AHEAD:
            self._ahead_NBU, self._ahead_from, step = self._limits(seen_B1), seen_B1, 0
            assert self._ahead_NBU is not None
        limit_BU: Ints = self._ahead_NBU[step] + self.pinned_B1 * self._pins_BU
        return limit_BU

    def _limits(self, seen_B1: Ints) -> Ints | None:
        """Return the limits of this step and those that follow: [N, B, U]; None without limits."""
        of_step = (self.base_BU, seen_B1 - self._span_B1, self._span_B1)
        base, steps, span = (torch.from_numpy(x).repeat(AHEAD, 1) for x in of_step)  # the rows of each step in turn
        steps += torch.arange(AHEAD).repeat_interleave(len(self.base_BU))[:, None]
        limit = policy_answers.limits(self._policy, base, steps, self._layer, span)
        if limit is None:
            return None
        return limit.long().reshape(AHEAD, *self.base_BU.shape).numpy()

    def _scheduled(self, seen_B1: Ints, new: int) -> Ints:
        """Return [B, 1]: True where a multiple of the interval lies among the last `new` steps."""
        steps_B1, interval_B1 = seen_B1 - self._span_B1, np.maximum(self._interval_B1, 1)
        passed_B1: Ints = steps_B1 // interval_B1 > (steps_B1 - new) // interval_B1
        return passed_B1 & (self._interval_B1 > 0)
