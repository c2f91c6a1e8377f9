"""Sums and reductions over the query heads of a KV group, in an order that does not depend on the position."""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("mean", "max", "sum")


def reduce_group(x: Tensor, how: str, dim: int) -> Tensor:
    """Reduce over the query heads of a KV group: mean, max or sum."""
    if how == "max":
        return x.amax(dim)
    return add_up(x, dim) / (x.shape[dim] if how == "mean" else 1)


def add_up(x: Tensor, dim: int) -> Tensor:
    """Sum over `dim` in the same order for every element.

    `x.sum` adds the columns at a vector's end in another order. Tokens that tie exactly would then differ by position.
    """
    first, *rest = x.unbind(dim)
    total = first.clone()
    for part in rest:
        total += part
    return total
