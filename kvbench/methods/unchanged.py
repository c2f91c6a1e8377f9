"""The check that a part does not write into tensors which the other methods of a job group read as well."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from kvbench.methods.memo import Memo

_OURS = "kvbench.methods."  # parts of this package are checked by its tests
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def unchanged(kind: str, part: object, memos: Iterable[Memo], more: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """Check that a part changes no shared tensor in place, those included that are computed because it asks for them.

    Torch counts the writes to a tensor, but not in inference mode, in which models run. There the tensors are compared
    with copies: on a CPU, and for parts from outside of this package alone.

    Args:
        kind: what the part is, such as "score".
        memos: where shared results lie.
        more: further tensors, each with its name.

    Raises:
        ValueError: a tensor has changed.
    """
    copies = not type(part).__module__.startswith(_OURS)
    if torch.is_inference_mode_enabled() and not copies:
        yield  # nothing would be compared
        return
    marks = [(name, x, _mark(x, copies)) for name, x in more]

    def note(key: Hashable, result: object) -> None:
        name = f"ctx.{key[0] if isinstance(key, tuple) else key}"
        results = result if isinstance(result, tuple) else (result,)
        marks.extend((name, x, _mark(x, copies)) for x in results if isinstance(x, Tensor))

    with ExitStack() as notes:
        for memo in memos:
            notes.enter_context(memo.noting(note))
        yield
    for name, x, mark in marks:
        if not torch.equal(_bits(x), mark) if isinstance(mark, Tensor) else mark != _mark(x, False):
            raise ValueError(
                f"method: the {kind} {type(part).__name__} changed {name} in place, which other methods read; let it "
                "work on a copy"
            )


def _mark(x: Tensor, copies: bool) -> int | Tensor | None:
    """Return what tells whether a tensor has changed: its writes, or a copy; None if that is not known."""
    if not x.is_inference():
        return x._version
    return _bits(x).clone() if copies and x.device.type == "cpu" else None


def _bits(x: Tensor) -> Tensor:
    """Return the numbers of a tensor as integers, so that NaN equals NaN."""
    return x.detach().contiguous().view(_INTEGERS[x.itemsize])
