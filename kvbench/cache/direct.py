"""Attention to keys that are multiplied as they are stored, without a decoded copy; values are plain.

Segments that lie one after the other and are of the same size are multiplied together.

Shape suffixes: L segments of the call, n segments of a run, G query heads per KV head, T new tokens, Q = G * T,
S plain slots, M tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvbench.cache.blocks import PlainHalf, SegmentPool
from kvbench.methods.storage import tensors


def supports(keys: SegmentPool, values: SegmentPool) -> bool:
    """Return True if `attend` can read these keys and values.

    On a GPU, many small products would be slower. Products of 16-bit types would round the logits to 16 bits.
    """
    stored = keys.plain_RD
    is_exact = stored.dtype in (torch.float32, torch.float64)
    is_plain = isinstance(values.half, PlainHalf)
    return keys.half.multiplies and keys.half.block == 1 and is_plain and is_exact and stored.device.type == "cpu"


def attend(
    keys: SegmentPool,
    values: SegmentPool,
    indices: Sequence[int],
    q_LGTD: Tensor,
    k_LTD: Tensor,
    v_LTD: Tensor,
    scaling: float,
) -> Tensor:
    """Attend to the stored tokens of some segments and, causally, to their new ones: [L, G, T, D]."""
    outs = []
    for run in _runs(keys, values, indices):
        of_run = [indices[lane] for lane in run]
        at = slice(run[0], run[-1] + 1)
        outs.append(_attend_run(keys, values, of_run, q_LGTD[at], k_LTD[at], v_LTD[at], scaling))
    return torch.cat(outs)


def _runs(keys: SegmentPool, values: SegmentPool, indices: Sequence[int]) -> Iterator[list[int]]:
    """Yield places of the call whose segments lie next to each other and are alike."""
    run: list[int] = []
    for lane, i in enumerate(indices):
        last = indices[lane - 1] if run else i
        sizes = [
            (keys.segments[j].length, keys.done(j), keys.blocks[j], keys.slots[j], values.slots[j]) for j in (last, i)
        ]
        if run and (i != last + 1 or sizes[0] != sizes[1]):
            yield run
            run = []
        run.append(lane)
    if run:
        yield run


def _attend_run(
    keys: SegmentPool,
    values: SegmentPool,
    indices: Sequence[int],
    q_nGTD: Tensor,
    k_nTD: Tensor,
    v_nTD: Tensor,
    scaling: float,
) -> Tensor:
    first, count, length, done = indices[0], len(indices), keys.segments[indices[0]].length, keys.done(indices[0])
    q_nQD = q_nGTD.flatten(1, 2)
    own = slice(first, first + count)
    encoded = [_run_of(x, keys.first_block[first], keys.blocks[first], count)[:, :done] for x in tensors(keys.buffers)]
    plain_nSD = _run_of(keys.plain_RD, keys.first_slot[first], keys.slots[first], count)
    logits = [keys.half.multiply(q_nQD, encoded, None if keys.head_S is None else keys.head_S[own])] if done else []
    if done < length:
        slot_M = torch.arange(done, length) % keys.slots[first]
        logits.append((q_nQD @ plain_nSD.transpose(1, 2))[:, :, slot_M])
    tokens = k_nTD.shape[1]
    new_nQT = q_nQD @ k_nTD.transpose(1, 2)
    if tokens > 1:
        later_TT = torch.ones(tokens, tokens, dtype=torch.bool).triu_(1)
        new_nQT = new_nQT.masked_fill(later_TT.repeat(q_nGTD.shape[1], 1), -torch.inf)
    logits_nQM = torch.cat([*logits, new_nQT], 2)
    weights_nQM = (logits_nQM * scaling).softmax(2)
    stored_nMD = _run_of(values.plain_RD, values.first_slot[first], values.slots[first], count)[:, :length]
    out_nQD: Tensor = weights_nQM[:, :, :length] @ stored_nMD + weights_nQM[:, :, length:] @ v_nTD
    return out_nQD.view(q_nGTD.shape)


def _run_of(x: Tensor, first: int, each: int, count: int) -> Tensor:
    """Return the rows of `count` segments with `each` rows, which lie one after the other."""
    return x[first : first + each * count].view(count, each, *x.shape[1:])
