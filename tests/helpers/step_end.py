"""Runs of a cache over several layers, in which policies act at the end of a step, and notes of all that it holds.

Shape suffixes: U KV heads, T tokens, C slots, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kvbench.cache import step_end
from kvbench.cache.base import Entry, NewTokens
from kvbench.cache.masked import MaskedCache
from kvbench.cache.ragged import RaggedCache
from kvbench.methods.decode.accumulate import AccumulateAndEvict
from kvbench.methods.decode.cam import MergeIntoNext
from kvbench.methods.decode.fixed_place import DropAtPlace
from kvbench.methods.decode.long_minor import DropLongMinor
from kvbench.methods.decode.rolling import RollingHeavyHitters
from kvbench.methods.decode.slide import SlidingWindow
from kvbench.methods.decode.tova import DropLeastAttended
from kvbench.methods.decoding import DecodePolicy, Decoding
from kvbench.methods.slots import Slots
from kvbench_kernels.backends import make_backend

DIM = 16
Cache = RaggedCache | MaskedCache


class ByLayer(DecodePolicy):
    """A policy whose limits grow in steps, differ by layer, and come as int32; its worth is float64."""

    reads: ClassVar[str] = "last"

    def limit(self, base_BU: Tensor, steps_B1: Tensor, layer: int, span_B1: Tensor) -> Tensor:
        return (base_BU + layer + steps_B1 // (2 + layer)).int()

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        slots.state_BUC = slots.state_BUC * 0.9 + weights_BUGTC[:, :, :, -1].mean(2)  # not in place

    def drop(self, slots: Slots) -> Tensor:
        return slots.state_BUC.double()


class OverHeads(DecodePolicy):
    """A policy that weighs a token by the attention of all heads, and lets another token leave in each head."""

    reads: ClassVar[str] = "all"

    def observe(self, slots: Slots, weights_BUGTC: Tensor) -> None:
        slots.state_BUC += slots.over_heads(weights_BUGTC.sum((2, 3)))

    def drop(self, slots: Slots) -> Tensor:
        head_U1 = torch.arange(slots.pos_BUC.shape[1])[:, None]
        return torch.where(slots.pos_BUC % (2 + head_U1) == 0, 0.0, slots.state_BUC)


MAY_WAIT: list[Decoding] = [
    Decoding(AccumulateAndEvict(window=0.5)),
    Decoding(DropLeastAttended()),
    Decoding(MergeIntoNext(window=1, merge_budget=3)),
    Decoding(ByLayer()),
    Decoding(SlidingWindow(sinks=2)),
    Decoding(AccumulateAndEvict(window=2, reduce="max"), buffer=2),
    Decoding(AccumulateAndEvict(window=0.5), buffer=3, interval=3),
    Decoding(DropAtPlace(distance=-3)),
    Decoding(OverHeads()),
]
MUST_NOT: list[Decoding] = [
    Decoding(DropLongMinor(history=3, recent=2), interval=2),
    Decoding(DropLongMinor(history=4, recent=3)),
    Decoding(RollingHeavyHitters(window=0.5)),
]


def rotate(k_ND: Tensor, by_N: Tensor) -> Tensor:
    """Rotate pairs of numbers of keys, as rotary embeddings do."""
    angle_NF = by_N[:, None] * 10000.0 ** (-torch.arange(DIM // 2) * 2 / DIM)
    a_NF, b_NF = k_ND.chunk(2, -1)
    cos_NF, sin_NF = angle_NF.cos(), angle_NF.sin()
    return torch.cat([a_NF * cos_NF - b_NF * sin_NF, b_NF * cos_NF + a_NF * sin_NF], -1)


@dataclass
class Run:
    """A cache in use, and what was seen of it.

    Args:
        rows: the decoding of each row; None for plain ones.
        heads, groups: KV heads of each layer, and query heads of each of them.

    Attributes:
        outs: the outputs of all attention calls.
        looks: what the cache held at each look.
        notes: other answers of the cache.
    """

    cache: Cache
    layers: int
    seed: int = 0
    heads: Sequence[int] = ()
    groups: Sequence[int] = ()
    dtype: torch.dtype = torch.float32
    tokens: int = 18
    reserve: int = 6
    rows: dict[int, Decoding | None] = field(default_factory=dict)
    outs: list[Tensor] = field(default_factory=list)
    looks: list[Any] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = torch.Generator().manual_seed(self.seed)
        self.heads, self.groups = (x or [2] * self.layers for x in (self.heads, self.groups))

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random).to(self.dtype)

    def add(self, decodings: Sequence[Decoding | None], first: int = 0, whole: bool = False, **more: Any) -> None:
        """Add the rows of a prompt: each layer and head keeps another number of tokens, or the whole prompt."""
        for layer, heads in enumerate(self.heads):
            entries = []
            for row, decoding in enumerate(decodings, first):
                share_U = torch.randint(6, self.tokens, (heads,), generator=self._random)
                keep_UT = torch.arange(self.tokens) >= self.tokens - share_U[:, None]
                score_UT = torch.rand(heads, self.tokens, generator=self._random)
                kept_UT = torch.ones_like(keep_UT) if whole else keep_UT
                entry = Entry(row, kept_UT, self.reserve, seed=self.seed + row, rotate=rotate, **more)
                if decoding is not None:
                    adds = whole and decoding.policy.adds_to_prompt  # to what a head kept of the prompt: all of it
                    base_U = [self.tokens] * heads if adds else share_U.tolist()
                    entry = replace(entry, decoding=decoding, score_UT=score_UT, base_U=base_U)
                entries.append(entry)
            self.cache.add(layer, entries, self.randn(heads, self.tokens, DIM), self.randn(heads, self.tokens, DIM))
        self.rows |= dict(enumerate(decodings, first))

    def step(self, new: int = 1, upto: int | None = None, between: Callable[[int], object] | None = None) -> None:
        """Take a step with all rows, or its first layers alone, as a step does that fails."""
        for layer in range(self.layers if upto is None else upto):
            self.attend(layer, new)
            if between is not None:
                between(layer)

    def attend(self, layer: int, new: int = 1) -> None:
        rows, heads = [*self.rows], self.heads[layer]
        q, k, v = (self.randn(len(rows), n, new, DIM) for n in (heads * self.groups[layer], heads, heads))
        ids_BT = torch.randint(6, (len(rows), new), generator=self._random)
        self.outs.append(self.cache.attend(layer, rows, q, k, v, 0.3, NewTokens(ids_BT.tolist(), ids_BT)))

    def fork(self, row: int, copy: int) -> None:
        for layer in range(self.layers):
            self.cache.fork(layer, row, [copy])
        self.rows[copy] = self.rows[row]

    def release(self, *rows: int) -> None:
        self.cache.release(rows)
        for row in rows:
            del self.rows[row]

    def look(self) -> None:
        """Note what the cache holds of every row."""
        self.looks.append({row: self._of(row) for row in self.rows})

    def _of(self, row: int) -> Any:
        lengths, peak = self.cache.lengths(row), self.cache.peak(row)
        if isinstance(self.cache, MaskedCache):
            kept = [[of_head.nonzero().flatten().tolist() for of_head in of_layer] for of_layer in self.cache.kept(row)]
            return lengths, peak, kept
        used, held, slack = self.cache.used_bytes(row), self.cache.held_bytes(row), self.cache.slack_bytes(row)
        assert used <= held and used + slack <= self.cache.bytes()
        return lengths, peak, (used, held), [_tokens(layer, row) for layer in self.cache._arenas]


def _tokens(layer: Any, row: int) -> list[tuple[Tensor, ...]]:
    """Return the keys and values of a row's heads, and what its policy knows of them, slot by slot."""
    if not layer.of(row):
        return []
    buffers, heads = layer._arenas.first.buffers, []
    for head, segment in enumerate(layer.of(row)):
        assert layer._arenas.settled
        at = slice(segment.start, segment.start + segment.length)
        of_head: tuple[Tensor, ...] = (buffers.k_RD[at].clone(), buffers.v_RD[at].clone())
        assert int(buffers.length_S[layer._arenas.first.segments.index(segment)]) == segment.length
        for group in layer._groups:
            if row in group.rows:
                i, s = group.rows.index(row), group.slots
                assert s.live_BUC[i, head, : segment.length].all()
                assert not s.live_BUC[i, head, segment.length :].any()
                assert int(group.length_BU[i, head]) == segment.length
                assert int(s.seen_B[i]) == group.quota.seen_B1[i, 0]
                of_head += (s.pos_BUC[i, head, : segment.length].clone(),)
                if group.policy.remembers:
                    of_head += (s.state_BUC[i, head, : segment.length].clone(),)
        heads.append(of_head)
    return heads


@contextmanager
def counting(joins: bool = True) -> Iterator[list[int]]:
    """Count the layers of each step whose policies act together; or never join layers."""
    acts: list[int] = []
    act = step_end.JoinedLayers.act

    def noted(self: step_end.JoinedLayers, owed: Any) -> None:
        acts.append(len(owed))
        act(self, owed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_end.JoinedLayers, "act", noted)
        if not joins:
            patch.setattr(step_end, "join_layers", lambda *_: None)
        yield acts


Play = Callable[[Run], None]


def compare(play: Play, layers: int, *, masked: bool = True, close: float = 1e-5, **sizes: Any) -> list[int]:
    """Play the same in caches whose layers act together, and alone: bit for bit. Tokens are those of the masked cache.

    Returns:
        The number of layers of each step whose policies acted together.
    """
    with counting() as acts:
        play(joined := Run(RaggedCache(layers, make_backend("cpu")), layers, **sizes))
    with counting(joins=False) as none:
        play(alone := Run(RaggedCache(layers, make_backend("cpu")), layers, **sizes))
    assert not none
    assert all(map(torch.equal, joined.outs, alone.outs)), "outputs"
    assert joined.notes == alone.notes
    assert len(joined.outs) == len(alone.outs) and len(joined.looks) == len(alone.looks) > 0
    for ours, theirs in zip(joined.looks, alone.looks, strict=True):
        assert ours.keys() == theirs.keys()
        for row, of_row in ours.items():
            assert of_row[:3] == theirs[row][:3], f"row {row}"
            for of_layer, expected in zip(of_row[3], theirs[row][3], strict=True):
                for xs, ys in zip(of_layer, expected, strict=True):
                    assert len(xs) == len(ys) and all(map(torch.equal, xs, ys)), f"row {row}"
    if masked:
        play(simulated := Run(MaskedCache(layers), layers, **sizes))
        assert joined.notes == simulated.notes
        for ours, theirs in zip(joined.outs, simulated.outs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
        for ours, theirs in zip(joined.looks, simulated.looks, strict=True):
            for row, (lengths, peak, kept) in theirs.items():
                assert ours[row][:2] == (lengths, peak), f"row {row}"
                for of_layer, positions in zip(ours[row][3], kept, strict=True):
                    for xs, expected in zip(of_layer, positions, strict=True):
                        assert len(xs) < 3 or sorted(xs[2].tolist()) == expected, f"row {row}"
    return acts


def random_run(run: Run, seed: int, decodings: Sequence[Decoding | None], *, whole: bool, events: int = 14) -> None:
    """Take steps of one and more tokens; rows join, leave and are copied; steps end early, and are looked at."""
    g = torch.Generator().manual_seed(seed)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    run.add(decodings, whole=whole)
    names = [*["step"] * 9, "question", "long", "fails", "fails", "look", "between", "release", "fork", "join"]
    for number in range(events):
        name, rows = names[draw(len(names))], [*run.rows]
        row = rows[draw(len(rows))]
        if name == "step":
            run.step()
        elif name in ("question", "long"):
            run.step(3 if name == "question" else 25)
        elif name == "fails":
            run.step(1 + 2 * (draw(3) == 0), upto=draw(run.layers))
        elif name == "between":
            at = draw(run.layers)
            run.step(between=lambda layer, at=at, row=row: run.cache.lengths(row) if layer == at else None)  # type: ignore[misc]
        elif name == "release" and len(rows) > 2:
            run.release(row)
        elif name == "fork" and len(rows) < 6:
            run.fork(row, 100 + number)
        elif name == "join" and len(rows) < 6:
            run.add([run.rows[row]], first=200 + number)
        if draw(2):
            run.look()
    run.step()
    run.look()


def random_case(seed: int, **sizes: Any) -> list[int]:
    """Compare a random run of some policies, of which some must act at once in each layer."""
    g = torch.Generator().manual_seed(seed)
    layers = int(torch.randint(2, 6, (1,), generator=g))
    some = [MAY_WAIT[i] for i in torch.randperm(len(MAY_WAIT), generator=g)[: 1 + seed % 3]]
    rows: list[Decoding | None] = [d for d in some for _ in range(int(torch.randint(1, 3, (1,), generator=g)))]
    if seed % 2:
        rows += [None, MUST_NOT[seed // 2 % len(MUST_NOT)]]
    reserve = int(torch.randint(0, 25, (1,), generator=g))
    play = partial(random_run, seed=seed, decodings=rows, whole=seed % 5 == 4)
    return compare(play, layers, seed=seed, reserve=reserve, **sizes)
