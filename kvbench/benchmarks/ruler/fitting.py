"""The size of samples: RULER's two ways to find the number of haystack units for a length.

Both measure trial samples, and every trial takes numbers from the random stream of the task. So the order of trials
is part of the data: these functions follow upstream step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

# Redraws at the smallest size before a smaller one is tried. Upstream redraws for ever, so a row that it finds after
# fewer draws than this is found here as well.
PATIENCE = 1000
# The same text this many times in a row: nothing in it is random.
_SAME = 20


@dataclass(frozen=True)
class Draft:
    """One drawn sample. length: its tokens and those of the answer to come, as upstream counts them."""

    text: str
    answers: Sequence[str]
    length: int


class Family(Protocol):
    """The samples of one task, drawn with a given number of units.

    step: units that are added or taken away at once. reserve: tokens to keep free for answer and example.
    most: the largest number of units there is, or None.
    """

    step: int
    reserve: int
    most: int | None

    def trial(self, size: int) -> int:
        """Return the tokens of a sample with that many units, drawn only to be measured, without the reserve."""
        ...

    def draw(self, size: int, row: int) -> Draft:
        """Return the sample of a row with that many units."""
        ...

    def floor(self, row: int) -> int:
        """Return the fewest units that this row can have."""
        ...


def head_size(
    family: Family, length: int, first: int | None = None, slack: Callable[[float], int] | None = None
) -> int:
    """Return the size that NVIDIA/RULER c3f5e3b4 finds by binary search, between one step and three estimates.

    first: the size of the sample that the estimate comes from (one step). slack: tokens per unit -> largest size.
    One trial decides for each size, so the largest size whose trial was small enough need not fit every row.
    """
    first = first or family.step
    per_unit = family.trial(first) / first
    if per_unit <= 0:
        raise ValueError("tokenizer: it counts no tokens in a text; lengths need one that does")
    low = family.step
    high = max(slack(per_unit) if slack else int(length / per_unit * 3), family.step * 2)
    best = None
    while low <= high:
        middle = (low + high) // 2
        possible = family.most is None or middle <= family.most
        if possible and family.trial(middle) + family.reserve <= length:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return family.step if best is None else best


def linear_size(family: Family, length: int) -> int:
    """Return the size that the generator of 2024 finds: step by step up, and one step back after the first overflow.

    A trial that ends exactly on the length lets the size grow once more, as upstream.
    """
    size, total = family.step, 0
    while total + family.reserve < length:
        total = family.trial(size)
        if total + family.reserve > length:
            return size - family.step
        size += family.step
        if family.most is not None and size > family.most:
            return family.most
        if size > 8 * length + family.step:
            raise ValueError("tokenizer: its counts do not grow with the text; lengths need one whose counts do")
    return size


class Fitter:
    """Rows that fit. A row that is too long is drawn again with one step less, as upstream.

    Upstream redraws for ever once no further step can be taken away. Here smaller sizes follow after PATIENCE draws,
    down to the family's floor, and then a ValueError.
    """

    def __init__(self, family: Family, size: int, length: int, name: str):
        self.family, self.size, self.length, self.name = family, size, length, name
        self.patience = PATIENCE

    def row(self, row: int) -> Draft:
        """Return the sample of a row. Raises ValueError if it does not fit at any size."""
        draft = self.attempt(row)
        if draft.length > self.length:
            raise does_not_fit(self.name, self.length, f"row {row} needs {draft.length} tokens at its smallest")
        return draft

    def attempt(self, row: int) -> Draft:
        """Return the same as `row`, but at the floor the last draft even if it is too long."""
        family, floor = self.family, self.family.floor(row)
        size = max(self.size, floor)
        draws = same = 0
        before = ""
        while True:
            draft = family.draw(size, row)
            if draft.length <= self.length:
                return draft
            if size > family.step and size > floor:
                size = max(size - family.step, floor)
                continue
            draws, same = draws + 1, same + 1 if draft.text == before else 0
            before = draft.text
            if draws < self.patience and same < _SAME:
                continue
            if size <= floor:
                return draft
            # from here on upstream has no row to be equal to, neither for this row nor for later ones
            size, self.patience = max(size * 3 // 4, floor), 3
            draws = same = 0


def does_not_fit(name: str, length: int, reason: str) -> ValueError:
    """Return the error for a length that is too short for a task."""
    return ValueError(f"benchmark.lengths=[{length}]: {name} does not fit this length ({reason}); take a longer one")
