"""Cost of appending one token of every head per layer, against the length of the cache.

    python perf/gpu/append.py [--out FILE.jsonl]

A CUDA graph of 32 layers with buffers of their own, as a decode step has them: `ragged_append`, the append of the
backends without a kernel (`index_copy`), and the copies of the scheme that makes new tensors. Suffixes as in `layers`.
"""

from __future__ import annotations

from collections.abc import Iterator

import copy_append
import torch
from bench import Bench
from layers import Layer, Shape, lengths
from timing import Work, per_call

from kvbench_kernels.backends.base import Buffers, Lanes
from kvbench_kernels.backends.base import append as append_by_index

LAYERS = 32


def shapes(toy: bool) -> Iterator[Shape]:
    if toy:
        yield Shape(2, 24, heads=4, kv_heads=2, dim=64)
        return
    for batch, lengths_ in ((1, (128, 2048, 32768, 131072)), (16, (128, 2048, 8192))):
        yield from (Shape(batch, length) for length in lengths_)


def ways(layer: Layer) -> dict[str, Work]:
    """Return the ways to append, by name."""
    segments = layer.shape.segments
    lanes = Lanes(range(segments), segments, layer.device)
    buffers = [
        Buffers(k_RD, v_RD, layer.start_S1, length_S, layer.longest)
        for k_RD, v_RD, length_S in zip(layer.k_CRD, layer.v_CRD, layer.length_CS, strict=True)
    ]
    k_SD, v_SD = (x.reshape(-1, layer.shape.dim) for x in (layer.k_BUTD, layer.v_BUTD))

    def ours(i: int) -> None:
        torch.ops.kvb.ragged_append(
            layer.k_CRD[i], layer.v_CRD[i], layer.start_S1, layer.length_CS[i], layer.segment_S, layer.k_BUTD,
            layer.v_BUTD, layer.status,
        )  # fmt: skip

    def by_index(i: int) -> None:
        append_by_index(buffers[i], lanes, layer.k_BUTD, layer.v_BUTD)

    result: dict[str, Work] = {"ours": ours, "index_copy": by_index}
    for name, copy in copy_append.copies(layer.device).items():

        def copying(i: int, copy: copy_append.Copy = copy) -> None:
            copy(layer.k_CRD[i][: layer.tokens], k_SD, layer.packed_S1, layer.longest)
            copy(layer.v_CRD[i][: layer.tokens], v_SD, layer.packed_S1, layer.longest)

        result[f"adakv_{name}"] = copying
    return result


def written(layer: Layer) -> bool:
    """Return True if set 0 has the new token of every segment after its live ones."""
    slots = (layer.start_S1[:-1] + layer.packed_S1.diff()).long()
    news = layer.k_BUTD.reshape(-1, layer.shape.dim), layer.v_BUTD.reshape(-1, layer.shape.dim)
    return torch.equal(layer.k_CRD[0][slots], news[0]) and torch.equal(layer.v_CRD[0][slots], news[1])


def main() -> None:
    bench = Bench("append", __doc__)
    with bench.kernels():
        for shape in shapes(bench.toy):
            about = {"batch": shape.batch, "length": shape.mean}
            if bench.left() < 2:
                bench.record(what="append", **about, skipped="no time left")
                continue
            sets = 2 if bench.toy else LAYERS
            layer = Layer(shape, lengths("equal", shape), sets, bench.device, generator=bench.generator)
            for name, work in ways(layer).items():
                try:
                    timing = per_call(work, sets, bench.device, layer.set_back)
                except Exception as problem:
                    if name == "ours":
                        raise
                    bench.record(what="append", **about, way=name, missing=bench.survive(problem, name))
                    continue
                if int(layer.status) or (name in ("ours", "index_copy") and not written(layer)):
                    raise RuntimeError(f"{name}: the new tokens are not where they belong")
                layer.k_CRD[0].fill_(torch.nan)
                bench.record(what="append", **about, way=name, layers=sets, **timing.micro())
            del layer
            bench.clean()


if __name__ == "__main__":
    main()
