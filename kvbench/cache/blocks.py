"""The keys, or the values, of all rows of one layer that share a storage part.

Shape suffixes: U KV heads, S segments (row x KV head), L segments of a call, N blocks, B tokens of a block, R slots,
M tokens, T new tokens, W the longest segment of a call, D head dimension.

The tokens of a segment are counted by age, the oldest first. As many as the part says are encoded, in blocks that lie
one after the other in flat buffers. The newest are plain: token `age` lies in slot `age mod slots` of the segment's
ring. Attention does not depend on the order of tokens, so a ring is read as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from kvbench.cache.rows import empty_blocks
from kvbench.methods import store_answers
from kvbench.methods.storage import Encoded, Half, Side

_CHUNK = {"cpu": 2**18}  # elements that are encoded or decoded at a time: on a CPU they should stay in its cache
_CHUNK_ON_GPU = 2**25


@dataclass(frozen=True)
class PlainHalf(Half):
    """The form of keys or values that no part encodes."""

    @property
    def kind(self) -> str:
        """The name of the layout without encoded tokens."""
        return "plain"

    def encoded(self, n: int, kept: int) -> int:
        """Return 0: no token is encoded."""
        return 0

    def encode(self, x_NBD: Tensor, head_N: Tensor | None, token_NB: Tensor | None) -> Encoded:
        """Return no tensors: there is nothing to encode."""
        return ()

    def decode(self, encoded: Encoded, head_N: Tensor | None, dim: int) -> Tensor:
        """Return no blocks: there is nothing to decode."""
        return torch.empty(0, 1, dim)


def plain_if_none(halves: tuple[Half | None, Half | None]) -> tuple[Half, Half]:
    """Return the forms of keys and values, plain ones where there is none."""
    keys, values = halves
    return keys or PlainHalf(), values or PlainHalf()


@dataclass
class BlockSegment:
    """The tokens of one row in one KV head.

    Attributes:
        kept: tokens of the prompt.
        length: tokens now.
        most: tokens that there is room for.
    """

    row: int
    head: int
    kept: int
    length: int
    most: int


@lru_cache(2**16)
def room(half: Half, kept: int, most: int) -> tuple[int, int]:
    """Return the blocks and the plain slots that a segment needs on its way from `kept` to `most` tokens."""
    plain = max(n - store_answers.encoded(half, n, kept) for n in range(kept, most + 1))
    return store_answers.encoded(half, most, kept) // half.block, plain


class SegmentPool:
    """The encoded blocks and the plain tokens of some segments, in flat buffers.

    Args:
        half: how tokens are encoded.
        segments: whose tokens they are. Their lengths are counted by the caller, after `append`.
        like: a tensor of the dtype and device of the tokens, whose last dimension is theirs.
        side: what the part's `prepare` returned, with the segment in the place of the KV head. Of what it says of
            tokens, only the shape and dtype matter here.
    """

    def __init__(self, half: Half, segments: Sequence[BlockSegment], like: Tensor, side: Side) -> None:
        self.half, self.segments, self.head_S = half, segments, side.head
        self._dim, device = like.shape[-1], like.device
        self.count = lru_cache(2**14)(partial(store_answers.encoded, half))
        rooms = [room(half, s.kept, s.most) for s in segments]
        self.blocks, self.slots = [blocks for blocks, _ in rooms], [slots for _, slots in rooms]
        self.first_block, total_blocks = _starts(self.blocks)
        self.first_slot, total_slots = _starts(self.slots)
        self.block_S, self.slot_S, self.slots_S = (
            torch.tensor(x, dtype=torch.long, device=device) for x in (self.first_block, self.first_slot, self.slots)
        )
        self.plain_RD = like.new_zeros(total_slots, self._dim)
        token = side.token
        self.token_R = None if token is None else token.new_zeros(total_slots, *token.shape[2:])
        self.buffers = empty_blocks(half, like, side.head, self.token_R, total_blocks)

    def places(self, index: int) -> tuple[int, int, int]:
        """Return the first block of a segment, its first plain slot, and its plain slots."""
        return self.first_block[index], self.first_slot[index], self.slots[index]

    def done(self, index: int) -> int:
        """Return how many tokens of a segment are encoded."""
        segment = self.segments[index]
        return self.count(segment.length, segment.kept)

    def fill(self, x_UTD: Tensor, keep_ST: Tensor, from_S: Tensor, token_ST: Tensor | None) -> None:
        """Store the tokens of a prompt that the segments keep; segment s reads KV head `from_S[s]`."""
        lengths = [s.length for s in self.segments]
        device, size = x_UTD.device, self.half.block
        segment_M, token_M = keep_ST.nonzero().unbind(1)
        _, age_M = spread(lengths, device)
        done_S = torch.tensor([self.done(i) for i in range(len(lengths))], dtype=torch.long, device=device)
        old_M = age_M < done_S[segment_M]
        segment_N, block_N = segment_M[old_M][::size], age_M[old_M][::size] // size
        token_NB = token_M[old_M].view(-1, size)
        chunk = self._chunk(1)
        for begin in range(0, len(block_N), chunk):
            part = slice(begin, begin + chunk)
            owner, tokens = segment_N[part], token_NB[part]
            x_NBD = x_UTD[from_S[owner][:, None], tokens]
            side = None if token_ST is None else token_ST[owner[:, None], tokens]
            self._write(owner, block_N[part], x_NBD, side)
        owner, age, tokens = segment_M[~old_M], age_M[~old_M], token_M[~old_M]
        slot_M = self._slots_of(owner, age)
        self.plain_RD[slot_M] = x_UTD[from_S[owner], tokens]
        if self.token_R is not None and token_ST is not None:
            self.token_R[slot_M] = token_ST[owner, tokens]

    def append(self, indices: Sequence[int], index_L: Tensor, x_LTD: Tensor) -> None:
        """Append T tokens to each of some segments, and encode those whose turn has come."""
        tokens, size = x_LTD.shape[1], self.half.block
        before = [self.segments[i].length for i in indices]
        after = [self.count(n + tokens, self.segments[i].kept) for i, n in zip(indices, before, strict=True)]
        due = [
            (lane, block)
            for lane, (i, end) in enumerate(zip(indices, after, strict=True))
            for block in range(self.done(i) // size, end // size)
        ]
        device = x_LTD.device
        length_L = torch.tensor(before, dtype=torch.long, device=device)
        if due:
            lane_N, block_N = torch.tensor(due, dtype=torch.long, device=device).unbind(1)
            self._encode_due(index_L, length_L, lane_N, block_N, x_LTD)
        if tokens == 1 and all(end <= n for n, end in zip(before, after, strict=True)):
            self._keep_plain(index_L, length_L, x_LTD[:, 0])
            return
        lane_M, age_M = spread([n + tokens - max(n, end) for n, end in zip(before, after, strict=True)], device)
        age_M = age_M + torch.maximum(length_L, torch.tensor(after, dtype=torch.long, device=device))[lane_M]
        self._keep_plain(index_L[lane_M], age_M, x_LTD[lane_M, age_M - length_L[lane_M]])

    def read(self, indices: Sequence[int], index_L: Tensor, width: int) -> Tensor:
        """Return the tokens of some segments, decoded, by age: [L, W, D], 0 after a segment's length."""
        out_LWD = self.plain_RD.new_zeros(len(indices), width, self._dim)
        flat, device, size = out_LWD.flatten(0, 1), out_LWD.device, self.half.block
        done = [self.done(i) for i in indices]
        if any(done):
            lane_N, block_N = spread([n // size for n in done], device)
            owner_N = index_L[lane_N]
            at_N = self.block_S[owner_N] + block_N
            head_N = None if self.head_S is None else self.head_S[owner_N]
            blocks = tuple(x[at_N] for x in self.buffers)
            x_NBD = store_answers.decode(self.half, blocks, head_N, len(at_N), self._dim)
            to_NB = (lane_N * width + block_N * size)[:, None] + torch.arange(size, device=device)
            flat.index_copy_(0, to_NB.flatten(), x_NBD.flatten(0, 1).to(flat.dtype))
        lane_M, age_M = spread([self.segments[i].length - n for i, n in zip(indices, done, strict=True)], device)
        age_M = age_M + torch.tensor(done, dtype=torch.long, device=device)[lane_M]
        flat[lane_M * width + age_M] = self.plain_RD[self._slots_of(index_L[lane_M], age_M)]
        return out_LWD

    def used_bytes(self, index: int) -> int:
        """Return the bytes of a segment's tokens: of encoded ones as published, and of what encoding needs to know."""
        done, first = self.done(index), self.first_block[index]
        blocks = tuple(x[first : first + done // self.half.block] for x in self.buffers)
        return self.half.nbytes(blocks) + (self.segments[index].length - done) * self._slot_bytes() + self._side_bytes()

    def segment_bytes(self, index: int) -> int:
        """Return the bytes that are allocated for a segment."""
        first, last = self.first_block[index], self.first_block[index] + self.blocks[index]
        block_bytes = sum(x[first:last].nbytes for x in self.buffers)
        return block_bytes + self.slots[index] * self._slot_bytes() + self._side_bytes()

    def copy_from(self, other: SegmentPool, sources: Sequence[int], first: int) -> None:
        """Copy segments of another pool, the first of them to segment `first` of this one."""
        if not sources:
            return
        size, device = self.half.block, self.plain_RD.device
        done = [other.done(i) for i in sources]
        source_L = torch.tensor(sources, device=device)
        lane_N, block_N = spread([n // size for n in done], device)
        from_N, to_N = other.block_S[source_L[lane_N]] + block_N, self.block_S[first + lane_N] + block_N
        for new, old in zip(self.buffers, other.buffers, strict=True):
            new[to_N] = old[from_N]  # type: ignore[assignment]  # both are of one kind
        lengths = [other.segments[i].length for i in sources]
        lane_M, age_M = spread([n - e for n, e in zip(lengths, done, strict=True)], device)
        age_M = age_M + torch.tensor(done, device=device)[lane_M]
        from_M, to_M = other._slots_of(source_L[lane_M], age_M), self._slots_of(first + lane_M, age_M)
        self.plain_RD.index_copy_(0, to_M, other.plain_RD[from_M])
        if self.token_R is not None and other.token_R is not None:
            self.token_R.index_copy_(0, to_M, other.token_R[from_M])

    def chunks(self, indices: Sequence[int]) -> list[slice]:
        """Return parts of a call's segments whose tokens suit the device when they are decoded together."""
        longest = max((self.segments[i].length for i in indices), default=0)
        step = max(1, self._chunk(longest))
        return [slice(begin, begin + step) for begin in range(0, len(indices), step)]

    def _chunk(self, tokens: int) -> int:
        """Return how many pieces of that many tokens suit the device; of blocks if `tokens` is 1."""
        elements = max(tokens, self.half.block) * self._dim
        return max(1, _CHUNK.get(self.plain_RD.device.type, _CHUNK_ON_GPU) // elements)

    def _encode_due(self, index_L: Tensor, length_L: Tensor, lane_N: Tensor, block_N: Tensor, x_LTD: Tensor) -> None:
        """Encode blocks of plain and new tokens."""
        size, owner_N = self.half.block, index_L[lane_N]
        age_NB = block_N[:, None] * size + torch.arange(size, device=x_LTD.device)
        new_NB = age_NB - length_L[lane_N][:, None]
        slot_NB = self._slots_of(owner_N[:, None], age_NB)
        x_NBD = x_LTD[lane_N[:, None], new_NB.clamp(0, x_LTD.shape[1] - 1)]
        token_NB = None
        if len(self.plain_RD):
            is_new_NB = new_NB >= 0
            slot_NB = slot_NB.clamp(max=len(self.plain_RD) - 1)  # a segment without slots has new tokens alone
            x_NBD = torch.where(is_new_NB[..., None], x_NBD, self.plain_RD[slot_NB])
            if self.token_R is not None:
                token_NB = self.token_R[slot_NB]
                token_NB[is_new_NB] = 0
        if token_NB is None and self.token_R is not None:
            token_NB = self.token_R.new_zeros(*age_NB.shape, *self.token_R.shape[1:])
        self._write(owner_N, block_N, x_NBD, token_NB)

    def _write(self, owner_N: Tensor, block_N: Tensor, x_NBD: Tensor, token_NB: Tensor | None) -> None:
        head_N = None if self.head_S is None else self.head_S[owner_N]
        at_N = self.block_S[owner_N] + block_N
        encoded = store_answers.encode(self.half, x_NBD, head_N, token_NB)
        for buffer, x in zip(self.buffers, store_answers.alike(self.half, encoded, self.buffers), strict=True):
            buffer[at_N] = x  # type: ignore[assignment]  # rows go to rows

    def _keep_plain(self, owner_M: Tensor, age_M: Tensor, x_MD: Tensor) -> None:
        slot_M = self._slots_of(owner_M, age_M)
        self.plain_RD[slot_M] = x_MD
        if self.token_R is not None:
            self.token_R[slot_M] = 0

    def _slots_of(self, owner: Tensor, age: Tensor) -> Tensor:
        return self.slot_S[owner] + age % self.slots_S[owner].clamp_min(1)

    def _slot_bytes(self) -> int:
        token = 0 if self.token_R is None else self.token_R[:1].nbytes
        return self._dim * self.plain_RD.itemsize + token

    def _side_bytes(self) -> int:
        return 0 if self.head_S is None else self.head_S[:1].nbytes


def _starts(counts: Sequence[int]) -> tuple[list[int], int]:
    """Return where each of several ranges begins if they lie one after the other, and where the last ends."""
    starts, total = [], 0
    for count in counts:
        starts.append(total)
        total += count
    return starts, total


def spread(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the owner of each of sum(counts) items, and its place among the items of that owner."""
    count_L = torch.tensor(counts, dtype=torch.long, device=device)
    total = sum(counts)
    owner = torch.arange(len(counts), device=device).repeat_interleave(count_L, output_size=total)
    return owner, torch.arange(total, device=device) - (count_L.cumsum(0) - count_L)[owner]
