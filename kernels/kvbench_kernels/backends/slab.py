"""Slabs: runs of segments of nearly equal size, with the same capacity, so that one call attends to all of them.

Shape suffixes: R slots of the flat buffer, D head dimension. A segment (row x KV head) has `capacity` slots; the
first of them are live.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Slab:
    """Segments [begin, end) of equal `capacity`, which start at slot `first`."""

    first: int
    capacity: int
    begin: int
    end: int

    def view(self, buffer_RD: Tensor, longest: int) -> Tensor:
        """Return the first `longest` slots of each segment as a view: [segments, 1, longest, D]."""
        dim = buffer_RD.shape[1]
        stride = self.capacity * dim
        first = buffer_RD.storage_offset() + self.first * dim
        return buffer_RD.as_strided((self.end - self.begin, 1, longest, dim), (stride, stride, dim, 1), first)

    def bias(self, bias_R: Tensor, longest: int) -> Tensor:
        """Return the matching view of the bias: [segments, 1, 1, longest]."""
        stride = self.capacity
        first = bias_R.storage_offset() + self.first
        return bias_R.as_strided((self.end - self.begin, 1, 1, longest), (stride, stride, stride, 1), first)
