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
def unchanged(who: str, memo: Memo, more: Iterable[tuple[str, Tensor]], copies: bool = True) -> Iterator[None]:
    """Check that a block changes no shared tensor in place, those included that are computed in it.

    Torch counts the writes to a tensor, but not in inference mode, in which models run. There the tensors are compared
    with copies, on a CPU alone.

    Args:
        who: what the block runs, such as "the score KeyNorm".
        memo: where shared results lie.
        more: further tensors, each with its name.
        copies: compare with copies where writes are not counted.

    Raises:
        ValueError: a tensor has changed.
    """
    if torch.is_inference_mode_enabled() and not copies:
        yield  # nothing would be compared
        return
    marks = [(name, x, _mark(x, copies)) for name, x in more]

    def note(key: Hashable, result: object) -> None:
        name = f"ctx.{key[0] if isinstance(key, tuple) else key}"
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, Candidates):
                marks.append(("candidates.values_UN", x.values_UN, _mark(x.values_UN, copies)))
                notes.enter_context(x.memo.noting(note))
            elif isinstance(x, Tensor):
                marks.append((name, x, _mark(x, copies)))

    with ExitStack() as notes:
        notes.enter_context(memo.noting(note))
        yield
    for name, x, mark in marks:
        if not torch.equal(_bits(x), mark) if isinstance(mark, Tensor) else mark != _mark(x, False):
            raise ValueError(f"method: {who} changed {name} in place, which other methods read; let it work on a copy")


def _mark(x: Tensor, copies: bool) -> int | Tensor | None:
    """Return what tells whether a tensor has changed: its writes, or a copy; None if that is not known."""
    if not x.is_inference():
        return x._version
    return _bits(x).clone() if copies and x.device.type == "cpu" else None


def _bits(x: Tensor) -> Tensor:
    """Return the numbers of a tensor as integers, so that NaN equals NaN."""
    return x.detach().view(_INTEGERS[x.itemsize])
