"""Many queries of a KV head: a group of 16 with one token, and a question of 32 tokens with a group of 4.

    python perf/gpu/questions.py [--out FILE.jsonl] [--seconds 25]

`ours` is `ragged_decode`, which reads the keys and values of a lane once for up to 64 queries. `by_eight` is the same
op with 8 queries per lane: lanes share the rows of a segment, and each reads them again. `torch_fa` is torch's
flash-attention with every segment as a sequence. Of each: microseconds in a
CUDA graph, the error against double precision, and whether three runs are equal bit for bit. The roofline is the longer
of two times: that of the bytes, read once, at the triad, and that of the products at the rate of a matrix product of
this device. Shape suffixes as in `layers`; T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import ceilings
import rivals
import torch
from bench import Bench
from layers import Layer, Shape, exact, lengths
from timing import Work, per_call, sets_needed
from torch import Tensor

_PANEL = 8  # queries that the kernel for few queries treats at once


def cases(toy: bool) -> Iterator[tuple[Shape, int]]:
    """Yield shapes and numbers of tokens; 8 KV heads of 128 dims, as Llama-3.1-8B has."""
    if toy:
        yield Shape(1, 40, heads=32, kv_heads=2, dim=64), 1
        yield Shape(1, 40, heads=8, kv_heads=2, dim=64), 8
        return
    for mean in (32768, 1024):
        yield Shape(1, mean, heads=128), 1
        yield Shape(1, mean, heads=32), 32


class Queries:
    """Queries of a layer's tokens, and the two ways to attend with them."""

    def __init__(self, layer: Layer, tokens: int) -> None:
        self.layer, self.tokens = layer, tokens
        shape = layer.shape
        self.q_BHTD = layer.normal(shape.batch, shape.heads, tokens, shape.dim)
        self.out_BHTD = torch.full_like(self.q_BHTD, torch.nan)
        self._split()
        self._varlen = rivals.varlen(layer.device)[0]
        of_segments = self.q_BHTD.reshape(shape.segments, shape.group, tokens, shape.dim)
        self._flash_q = of_segments.transpose(1, 2).reshape(-1, shape.group, shape.dim)
        self._first_S1 = tokens * rivals.one_each(layer)
        self._flash_out = torch.empty(0)

    def ours(self, i: int) -> None:
        x = self.layer
        torch.ops.kvb.ragged_decode(
            self.q_BHTD, x.k_CRD[i], x.v_CRD[i], x.start_S1, x.length_CS[i], x.segment_S, x.scaling, self.out_BHTD,
            x.workspace, True,
        )  # fmt: skip

    def by_eight(self, i: int) -> None:
        x = self.layer
        torch.ops.kvb.ragged_decode(
            self._q, x.k_CRD[i], x.v_CRD[i], self._start, self._length, self._segment, x.scaling, self._out,
            x.workspace, True,
        )  # fmt: skip

    def torch_fa(self, i: int) -> None:
        x = self.layer
        most, starts = (self.tokens, x.longest + 1), (self._first_S1, x.start_S1)
        keys, values = x.k_CRD[i][:, None], x.v_CRD[i][:, None]
        self._flash_out = self._varlen(self._flash_q, keys, values, starts, most, x.length_CS[i], x.scaling)

    def torch_fa_out(self) -> Tensor:
        """Return the output of `torch_fa` as [B, H, T, D]."""
        shape = self.layer.shape
        of_segments = self._flash_out.reshape(shape.segments, self.tokens, shape.group, shape.dim)
        return of_segments.transpose(1, 2).reshape(self.q_BHTD.shape)

    def by_eight_out(self) -> Tensor:
        """Return the output of `by_eight` as [B, H, T, D]."""
        return self._joined(self._out)

    def expected(self) -> Tensor:
        """Return the first lane's attention over set 0 in double precision: [G, T, D]."""
        x, group = self.layer, self.layer.shape.group
        start, length = int(x.start_S1[0]), x.length[0]
        k_LD, v_LD = x.k_CRD[0][start : start + length], x.v_CRD[0][start : start + length]
        of_tokens = [
            exact(self.q_BHTD[0, :group, t], k_LD[:seen], v_LD[:seen], x.scaling)
            for t in range(self.tokens)
            for seen in (length - self.tokens + t + 1,)
        ]
        return torch.stack(of_tokens, 1)

    def _split(self) -> None:
        """Make lanes of up to 8 queries: those of some heads, or of all heads of a group and some tokens."""
        x, shape, tokens = self.layer, self.layer.shape, self.tokens
        heads = min(shape.group, _PANEL)
        each = max(1, _PANEL // heads) if tokens > 1 else 1  # tokens of a lane
        self._parts = (shape.segments, shape.group // heads, heads, tokens // each, each, shape.dim)
        q = self.q_BHTD.reshape(self._parts).permute(0, 1, 3, 2, 4, 5)
        lanes = q.shape[0] * q.shape[1] * q.shape[2]
        self._q = q.reshape(1, lanes * heads, each, shape.dim).contiguous()
        self._out = torch.full_like(self._q, torch.nan)
        first = torch.arange(shape.segments, device=x.device).repeat_interleave(lanes // shape.segments)
        part = torch.arange(tokens // each, device=x.device).repeat(lanes // (tokens // each))
        self._start = torch.cat([x.start_S1[first], x.start_S1[-1:]])
        self._length = (x.length_CS[0][first] - tokens + each * (part + 1)).int()
        self._segment = torch.arange(lanes, dtype=torch.int32, device=x.device)

    def _joined(self, out: Tensor) -> Tensor:
        segments, splits, heads, parts, each, dim = self._parts
        out = out.reshape(segments, splits, parts, heads, each, dim).permute(0, 1, 3, 2, 4, 5)
        return out.reshape(self.q_BHTD.shape)


def measure(queries: Queries, name: str, work: Work) -> dict[str, object]:
    """Return time and error of one way."""
    layer, outs = queries.layer, []
    for _ in range(3):
        work(0)
        outs.append((queries.out_BHTD if name == "ours" else getattr(queries, f"{name}_out")()).clone())
    expected = queries.expected()
    error = float((outs[0][0, : layer.shape.group].double() - expected).norm() / expected.norm())
    timing = per_call(work, layer.sets, layer.device)
    return {**timing.micro(), "error": error, "bitwise": all(torch.equal(outs[0], out) for out in outs[1:])}


def main() -> None:
    bench = Bench("questions", __doc__)
    with bench.kernels():
        ceiling = ceilings.measured(bench)
        flop_s = ceilings.product(bench)[1]
        bench.clean()
        for shape, tokens in cases(bench.toy):
            about = {"batch": shape.batch, "mean": shape.mean, "group": shape.group, "tokens": tokens}
            if bench.left() < 2:
                bench.record(what="layer", **about, skipped="no time left")
                continue
            layer = Layer(
                shape, lengths("equal", shape), sets_needed(shape.nbytes, bench.device), bench.device,
                generator=bench.generator,
            )  # fmt: skip
            queries = Queries(layer, tokens)
            flop = 4 * layer.tokens * shape.group * tokens * shape.dim
            roofline = 1e6 * max(layer.nbytes / ceiling.triad, flop / flop_s)
            for name, work in (("ours", queries.ours), ("by_eight", queries.by_eight), ("torch_fa", queries.torch_fa)):
                result = measure(queries, name, work)
                bench.record(what="layer", **about, way=name, nbytes=layer.nbytes, roofline_us=roofline, **result)
            del layer, queries
            bench.clean()


if __name__ == "__main__":
    main()
