"""Attention of a decode step on a CPU: our kernel against reading keys and values once, packed rows, and questions.

    python perf/cpu_attention.py [--parts decode,packed,question] [--turns 30] [--threads 2] [--out FILE.json]

One layer of SmolLM2-135M's shape: 9 query heads, 3 KV heads, head dimension 64. In each turn every contender runs once,
one after the other, on data that is larger than the cache of the CPU. Ratios are given twice: the median of the turns'
ratios, and that of the least times, because other programs on the machine only ever make a call slower. The floor is
a C++ loop that reads the same bytes with the same threads.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from conditions import report, where
from torch import Tensor

from kvbench_kernels.backends import Buffers, Lanes, PackedHalf, Slab, layout_of, make_backend
from kvbench_kernels.backends.cpu import CpuBackend
from kvbench_kernels.backends.packed import CpuPacked
from kvbench_kernels.build import cache, compilers, recipes
from kvbench_kernels.ops.library import load

KV_HEADS, GROUP, DIM = 3, 3, 64
ISAS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}
COLD = 128 << 20  # bytes; calls take turns on buffers that are as large together
FLOOR = """
#include <cstdint>
typedef int64_t Vec __attribute__((vector_size(64)));
extern "C" int64_t read_all(const Vec* k, const Vec* v, int64_t vectors) {
    Vec total{};
#pragma omp parallel
    {
        Vec sum[4] = {};
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < (vectors + 1023) / 1024; block++) {
            const int64_t end = (block + 1) * 1024 < vectors ? (block + 1) * 1024 : vectors;
            for (const Vec* x : {k, v})
                for (int64_t i = block * 1024; i + 4 <= end; i += 4)
                    for (int j = 0; j < 4; j++) sum[j] ^= x[i + j];
        }
#pragma omp critical
        total ^= sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    }
    return total[0] ^ total[5];
}
"""


def floor_function(folder: Path) -> Callable[[Tensor, Tensor], int]:
    """Compile the loop that reads two tensors once; its OpenMP is torch's."""
    file = folder / "floor.cpp"
    file.write_text("#include <initializer_list>\n" + FLOOR)
    flags = ["-O3", "-fopenmp", "-fPIC", *recipes.vector_flags()]
    subprocess.run([compilers.gxx(), *flags, "-c", file, "-o", folder / "floor.o"], check=True)
    subprocess.run([compilers.gxx(), "-shared", folder / "floor.o", "-o", folder / "floor.so"], check=True)
    function = ctypes.CDLL(str(folder / "floor.so")).read_all
    function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return lambda k, v: function(k.data_ptr(), v.data_ptr(), k.numel() * k.itemsize // 64)


def backend_for(isa: str) -> CpuBackend:
    """Return the backend `cpu` compiled for AVX2 or AVX-512."""
    backend = make_backend("cpu")
    assert isinstance(backend, CpuBackend)
    backend._library = load(cache.built(recipes.cpu((f"-march={ISAS[isa]}",))))
    backend.packed = CpuPacked(backend._library)
    return backend


class Rows:
    """Copies of one layer's arena, so that a call finds its keys and values in memory and not in a cache."""

    def __init__(self, rows: int, tokens: int, new: int, dtype: torch.dtype) -> None:
        lanes, room = rows * KV_HEADS, tokens + new
        size = 2 * lanes * room * DIM * dtype.itemsize
        self.copies = [
            Buffers(
                *(torch.randn(lanes * room, DIM).to(dtype) for _ in range(2)),
                (torch.arange(lanes + 1) * room).int(),
                torch.full((lanes,), tokens, dtype=torch.int32),
                room,
                [Slab(0, room, 0, lanes)],
            )
            for _ in range(max(1, -(-COLD // size)))
        ]
        self.lanes, self.tokens = Lanes(range(lanes), lanes, torch.device("cpu")), tokens
        heads = KV_HEADS * GROUP, KV_HEADS, KV_HEADS
        self.new = [torch.randn(rows, new, n, DIM).to(dtype).transpose(1, 2) for n in heads]
        self._turn = itertools.count()

    def next(self) -> Buffers:
        """Return the copy that was used the longest time ago, with `tokens` live slots."""
        buffers = self.copies[next(self._turn) % len(self.copies)]
        buffers.length_S.fill_(self.tokens)
        return buffers

    def attend(self, backend: CpuBackend) -> Callable[[], object]:
        """Return a call that appends the new tokens and attends."""
        lengths = [self.tokens + self.new[0].shape[2]] * len(self.lanes.segment_N)
        return lambda: backend.append_and_attend(*self.new, self.next(), self.lanes, DIM**-0.5, lambda: lengths)

    def read(self, floor: Callable[[Tensor, Tensor], int]) -> Callable[[], object]:
        """Return a call that reads keys and values once."""

        def call() -> None:
            buffers = self.next()
            floor(buffers.k_RD, buffers.v_RD)

        return call

    def sdpa(self) -> Callable[[], object]:
        """Return a call of torch's attention on dense copies that have the new tokens already."""
        rows, new = self.new[0].shape[0], self.new[0].shape[2]
        dense = [[x.view(rows, KV_HEADS, -1, DIM) for x in (b.k_RD, b.v_RD)] for b in self.copies]
        mask = torch.ones(new, self.tokens + new, dtype=torch.bool).tril(self.tokens)

        def call() -> None:
            k, v = dense[next(self._turn) % len(dense)]
            F.scaled_dot_product_attention(self.new[0], k, v, attn_mask=mask, enable_gqa=True)

        return call


def packed(rows: int, tokens: int, bits: int, backend: CpuBackend) -> Callable[[], object]:
    """Return a call that attends to rows as KIVI keeps them: all but 32 to 63 keys, and all but 32 values, encoded."""
    lanes, keys, values = rows * KV_HEADS, (tokens - 32) // 32 * 32, tokens - 32
    layouts = layout_of(f"affine{bits}/tokens32"), layout_of(f"affine{bits}/channels32")
    assert layouts[0] is not None and layouts[1] is not None
    shapes = (
        [(lanes * keys // 32, DIM, 32 * bits // 8), (lanes * keys // 32, DIM)],
        [(lanes * values, DIM // 32, 32 * bits // 8), (lanes * values, DIM // 32)],
    )
    ring = 64
    size = sum(lanes * (count * DIM * bits // 8 + count * DIM // 4) for count in (keys, values))
    copies = [
        [
            PackedHalf(
                layout,
                [torch.randint(0, 256, codes, dtype=torch.uint8), torch.rand(scales) / 8, torch.randn(scales)],
                torch.randn(lanes * ring, DIM),
            )
            for layout, (codes, scales) in zip(layouts, shapes, strict=True)
        ]
        for _ in range(max(1, -(-COLD // size)))
    ]
    lane = torch.arange(lanes)
    slots = torch.full((lanes,), ring)
    place_N6 = torch.stack((lane * keys // 32, lane * ring, slots, lane * values, lane * ring, slots), 1)
    count_N3 = torch.tensor([[tokens, keys, values]] * lanes)
    q, k, v = (torch.randn(rows, n, 1, DIM) for n in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS))
    turn = itertools.count()
    attention = backend.packed
    return lambda: attention.attend(
        q, k, v, *copies[next(turn) % len(copies)], place_N6=place_N6, count_N3=count_N3, scaling=DIM**-0.5
    )


def race(calls: Mapping[str, Callable[[], object]], base: str, turns: int) -> dict[str, object]:
    """Run the calls in turns. Return each one's time in microseconds, and its ratio to `base`: medians of the turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds, times[base], strict=True))
        for name, seconds in times.items()
    }
    return {
        name: {
            "us": round(1e6 * statistics.median(seconds), 1),
            "least_us": round(1e6 * min(seconds), 1),
            f"of_{base}": round(ratios[name], 3),
            f"least_of_{base}": round(min(seconds) / min(times[base]), 3),
        }
        for name, seconds in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="decode,packed,question")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isas", default="avx512,avx2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backends = {isa: backend_for(isa) for isa in args.isas.split(",")}
    first = next(iter(backends.values()))
    result: dict[str, object] = {}

    def show(name: str, calls: Mapping[str, Callable[[], object]], base: str) -> None:
        result[name] = race(calls, base, args.turns)
        print(name, result[name], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        floor = floor_function(Path(folder))
    parts = args.parts.split(",")
    for rows, tokens in ((40, 1024), (1, 1024), (1, 8192), (40, 8192)):
        if "decode" in parts and (rows, tokens) != (40, 8192):
            plain, half = (Rows(rows, tokens, 1, dtype) for dtype in (torch.float32, torch.bfloat16))
            calls = {"floor": plain.read(floor), "floor_bf16": half.read(floor)}
            for isa, backend in backends.items():
                calls |= {f"{isa}_f32": plain.attend(backend), f"{isa}_bf16": half.attend(backend)}
            show(f"decode {rows} x {tokens}", calls, "floor")
        if "packed" in parts:
            plain = Rows(rows, tokens, 1, torch.float32)
            calls = {"plain": plain.attend(first)}
            calls |= {f"kivi{bits}": packed(rows, tokens, bits, first) for bits in (2, 4, 8)}
            show(f"packed {rows} x {tokens}", calls, "plain")
    for rows in (1, 8):
        if "question" in parts:
            question = Rows(rows, 1024, 32, torch.float32)
            show(f"question {rows} x 1024 + 32", {"sdpa": question.sdpa(), "ours": question.attend(first)}, "sdpa")
    shape = {"query_heads": KV_HEADS * GROUP, "kv_heads": KV_HEADS, "head_dim": DIM}
    report({"what": "attention of one layer", **result, "turns": args.turns, **shape, **where(args.threads)}, args.out)


if __name__ == "__main__":
    main()
