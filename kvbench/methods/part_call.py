"""The call of a part: an exception of its own names the part, so that a traceback is not all that a user gets."""

from __future__ import annotations

from types import TracebackType

import torch

from kvbench.methods.fields import InvalidField


class PartError(ValueError):
    """An exception that a part raised by itself; its traceback is that of the cause.

    Attributes:
        request: what the engine was computing, if it is known.
    """

    request: object = None


class part_call:
    """A block that calls a part. It is a class because a decode step enters many.

    Args:
        what: the part and its role, such as "the score KeyNorm".
        layer: the compressed layer, if it is known.

    Raises:
        PartError: the part raised an exception that is no message of ours and not about memory.
    """

    def __init__(self, what: str, layer: int | None = None) -> None:
        self._what, self._layer = what, layer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not _is_ours(error):
            where = "" if self._layer is None else f" in layer {self._layer}"
            text = (str(error).splitlines() or [""])[0]
            shown = f"{type(error).__name__}: {text}" if text else type(error).__name__
            raise PartError(f"method: {self._what} failed{where}: {shown}") from error


def _is_ours(error: Exception) -> bool:
    """Return True for memory that ran out, which is recorded, and for a message that names a setting."""
    if isinstance(error, ValueError):
        return isinstance(error, PartError | InvalidField) or str(error).startswith("method")
    return isinstance(error, MemoryError | torch.OutOfMemoryError)
