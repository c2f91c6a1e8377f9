"""A buffer of rows of bytes that differ in length, which is used like a tensor with a leading row per block.

Shape suffixes: N rows, S segments, R tokens, B tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.methods import store_answers
from kvbench.methods.storage import Half, Rows

_MORE = 8  # a full buffer grows by 1 / 8


class RowBuffer:
    """Rows of bytes in the order in which they were written. The bytes of rows written again are taken back.

    Args:
        count: rows, empty at first.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._start_N = torch.zeros(count, dtype=torch.int32, device=device)
        self._length_N = torch.zeros(count, dtype=torch.int16, device=device)
        self._data = torch.zeros(0, dtype=torch.uint8, device=device)
        self._end = 0

    def __len__(self) -> int:
        return len(self._start_N)

    def __getitem__(self, at: Tensor | slice) -> Rows:
        return Rows(self._data, self._length_N[at].long(), self._start_N[at].long())

    def __setitem__(self, at: Tensor, rows: Rows) -> None:
        rows = _joined(rows)
        self._length_N[at] = 0
        if self._end + len(rows.data) > len(self._data):
            self._make_room(len(rows.data))
        self._start_N[at] = (self._end + rows.start_N).int()
        self._length_N[at] = rows.length_N.to(torch.int16)
        self._data[self._end : self._end + len(rows.data)] = rows.data
        self._end += len(rows.data)

    def grown(self, count: int) -> RowBuffer:
        """Return a buffer with at least `count` rows, the first of which are those of this one."""
        more = max(0, count - len(self))
        self._start_N, self._length_N = (torch.nn.functional.pad(x, (0, more)) for x in (self._start_N, self._length_N))
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return self._data.nbytes + self._start_N.nbytes + self._length_N.nbytes

    def _make_room(self, more: int) -> None:
        """Move all rows to the front of a larger buffer."""
        everything = _joined(self[:])
        self._start_N = everything.start_N.int()
        self._end = len(everything.data)
        # the first rows, those of a prompt, come in few pieces; further ones come one by one
        spare = 0 if self._end == 0 else (self._end + more) // _MORE
        if self._end + more + spare >= 2**31:
            raise MemoryError("the encoded tokens of a layer exceed 2 GiB")
        self._data = torch.nn.functional.pad(everything.data, (0, more + spare))


def _joined(rows: Rows) -> Rows:
    """Return a copy of rows that lie one after the other."""
    total, first_N = int(rows.length_N.sum()), rows.length_N.cumsum(0) - rows.length_N
    at = (rows.start_N - first_N).repeat_interleave(rows.length_N, output_size=total)
    return Rows(rows.data[at + torch.arange(total, device=at.device)], rows.length_N, first_N)


def empty_blocks(
    half: Half, like: Tensor, head_S: Tensor | None, token_R: Tensor | None, count: int
) -> tuple[Tensor | RowBuffer, ...]:
    """Return empty buffers for `count` encoded blocks. A block of zeros is encoded to see what they look like.

    Args:
        like: a tensor of the dtype and device of the tokens, whose last dimension is theirs.
        head_S, token_R: what encoding needs to know of segments and of tokens; of the latter, only the shape and dtype
            matter here.
    """
    head_1 = None if head_S is None else head_S[:1]
    token_1B = None if token_R is None else token_R.new_zeros(1, half.block, *token_R.shape[1:])
    encoded = store_answers.encode(half, like.new_zeros(1, half.block, like.shape[-1]), head_1, token_1B)
    return tuple(
        RowBuffer(count, x.data.device) if isinstance(x, Rows) else x.new_zeros(count, *x.shape[1:]) for x in encoded
    )
