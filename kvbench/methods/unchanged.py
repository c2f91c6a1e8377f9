"""The check that a part does not write into tensors which the other methods of a job group read as well."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from kvbench.methods.candidates import Candidates
from kvbench.methods.memo import Memo

_OURS = "kvbench.methods."  # here parts are compared once per layer, those from elsewhere one by one
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_checked_alone(part: object) -> bool:
    """Return True if `unchanged` looks at this part by itself where models run, in inference mode."""
    return not type(part).__module__.startswith(_OURS)


@contextmanager
def unchanged(who: str, memo: Memo, more: Iterable[tuple[str, Tensor]], looks: bool = True) -> Iterator[None]:
    """Check that a block changes no shared tensor in place, those included that are computed in it.

    Torch counts the writes to a tensor, but not in inference mode, in which models run. There, and on a CPU alone, the
    check looks at the numbers.

    Args:
        who: what the block runs, such as "the score KeyNorm".
        memo: where shared results lie.
        more: further tensors, each with its name.
        looks: look at the numbers where writes are not counted.

    Raises:
        ValueError: a tensor has changed.
    """
    if torch.is_inference_mode_enabled() and not looks:
        yield  # nothing would be compared
        return
    marks = [_Mark(name, x, looks, is_large=True) for name, x in more]

    def note(key: Hashable, result: object) -> None:
        name = f"ctx.{key[0] if isinstance(key, tuple) else key}"
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, Candidates):
                marks.append(_Mark("candidates.values_UN", x.values_UN, looks))
                notes.enter_context(x.memo.noting(note))
            elif isinstance(x, Tensor):
                marks.append(_Mark(name, x, looks))

    with ExitStack() as notes:
        notes.enter_context(memo.noting(note))
        yield
    for mark in marks:
        if mark.has_changed():
            raise ValueError(
                f"method: {who} changed {mark.name} in place, which other methods read; let it work on a copy"
            )


class _Mark:
    """A tensor with its writes or numbers at one time, by which a change shows.

    Args:
        looks: keep something of the numbers if writes are not counted.
        is_large: keep a sum of each row in place of a copy. It takes a fifth of the time.
    """

    def __init__(self, name: str, x: Tensor, looks: bool, is_large: bool = False) -> None:
        self.name, self._x, self._sums = name, x, is_large
        self._writes = None if x.is_inference() else x._version
        self._numbers = self._look().clone() if self._writes is None and looks and x.device.type == "cpu" else None

    def has_changed(self) -> bool:
        """Return True if the tensor is known to have changed."""
        if self._writes is not None:
            return self._x._version != self._writes
        return self._numbers is not None and not torch.equal(self._look(), self._numbers)

    def _look(self) -> Tensor:
        """Return the numbers as integers, so that NaN equals NaN; or their sums."""
        bits = self._x.detach().view(_INTEGERS[self._x.itemsize])
        if not self._sums:
            return bits
        together = 8 // bits.itemsize  # torch sums the fewer, the faster
        places = (bits.storage_offset(), bits.shape[-1], *bits.stride()[:-1])
        is_even = bits.stride(-1) == 1 and all(place % together == 0 for place in places)
        return (bits.view(torch.int64) if is_even else bits.long()).sum(-1)
