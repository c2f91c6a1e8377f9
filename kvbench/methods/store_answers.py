"""The answers of a storage part, checked before a cache relies on them.

A wrong shape might pass by broadcasting: a scale of a whole call, for example, would become the scale of every block of
the call, and the answer to one row would depend on the others. The checks read shapes and dtypes, for which no device
has to wait.

Shape suffixes: N blocks, B tokens of a block, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.common.kinds import is_integer
from kvbench.methods.part_call import part_call
from kvbench.methods.storage import Encoded, Half, Rows


def encoded(half: Half, n: int, kept: int) -> int:
    """Return how many of a head's `n` tokens are encoded, `kept` of which are of the prompt.

    Raises:
        ValueError: it is no number of whole blocks, or more tokens than there are.
    """
    with _calling(half, "encoded"):
        count, block = half.encoded(n, kept), half.block
    if not is_integer(count) or not 0 <= count <= n or count % block:
        must = f"a multiple of {block} (its block) from 0 to {n}"
        raise ValueError(f"method: {type(half).__name__}.encoded({n}, {kept}) returned {count}, must be {must}")
    return count


def encode(half: Half, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
    """Return encoded blocks.

    Raises:
        ValueError: they are no tuple of tensors, or a tensor has not one leading row for each block.
    """
    with _calling(half, "encode"):
        blocks = half.encode(x_NBD, head_N, token_NB)
    if not isinstance(blocks, tuple):
        raise _refused(half, "encode", type(blocks).__name__, "a tuple of tensors")
    for x in blocks:
        rows = len(x.length_N) if isinstance(x, Rows) else len(x) if isinstance(x, Tensor) and x.dim() else None
        if rows != len(x_NBD):
            raise _refused(half, "encode", _shown(x), f"tensors with {len(x_NBD)} leading rows, one for each block")
    return blocks


def alike(half: Half, blocks: Encoded, buffers: Sequence[object]) -> Encoded:
    """Return encoded blocks, which go to the rows of `buffers`.

    Raises:
        ValueError: a tensor has another dtype, or rows of another shape.
    """
    for x, buffer in zip(blocks, buffers, strict=False):
        is_tensor = isinstance(buffer, Tensor)
        if is_tensor != isinstance(x, Tensor) or (is_tensor and _row(x) != _row(buffer)):
            raise _refused(half, "encode", _shown(x), f"like the first block: {_shown(buffer)}, but for its rows")
    if len(blocks) != len(buffers):
        raise _refused(half, "encode", f"{len(blocks)} tensors", f"{len(buffers)}, as for the first block")
    return blocks


def decode(half: Half, blocks: Encoded, head_N: Tensor | None, count: int, dim: int) -> Tensor:
    """Return `count` decoded blocks, [N, B, D].

    Raises:
        ValueError: they have another shape.
    """
    with _calling(half, "decode"):
        x_NBD = half.decode(blocks, head_N, dim)
    shape = [count, half.block, dim]
    if not isinstance(x_NBD, Tensor) or list(x_NBD.shape) != shape:
        raise _refused(half, "decode", _shown(x_NBD), f"[blocks, tokens of a block, head dimension] = {shape}")
    return x_NBD


def _calling(half: Half, name: str) -> part_call:
    return part_call(f"the store {type(half).__name__}.{name}")


def _row(x: object) -> tuple[torch.dtype, torch.Size]:
    assert isinstance(x, Tensor)
    return x.dtype, x.shape[1:]


def _shown(x: object) -> str:
    return f"{x.dtype}, {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def _refused(half: Half, name: str, got: str, must: str) -> ValueError:
    return ValueError(f"method: {type(half).__name__}.{name} returned {got}, must be {must}")
