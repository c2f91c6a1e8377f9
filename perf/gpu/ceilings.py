"""Ceilings of the device: triad, read, copy, and a bf16 matrix product. Every other figure is compared with these.

    python perf/gpu/ceilings.py [--out FILE.jsonl]

The triad is `a = b + s * c` over three buffers of 1 GiB, as in the STREAM benchmark: two are read, the third is
written. Shares and rooflines are of the fastest triad that was measured. Attention writes next to nothing, so it can be
faster than a triad; therefore the share of the fastest ceiling of all is recorded as well. The copy is `copy_` in a
CUDA graph, which becomes a memcpy node. It is for information alone: it moves far less than a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench import Bench
from timing import Timing, Work, per_call
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the CPU goes without
    triton = None

_NUMBERS, _TOY = 2**28, 2**12  # float32: a buffer of 1 GiB, much larger than any cache
_SMALL = 2**25  # a read of 134 MB: the size of the smallest layer with a target
_BLOCK = 8192  # numbers of a program: 16 accesses of 16 bytes for each of 128 threads

if triton is not None:

    @triton.jit
    def _triad(a, b, c, scale, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(a + at, tl.load(b + at) + scale * tl.load(c + at))

    @triton.jit
    def _largest(out, source, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + tl.program_id(0), tl.max(tl.load(source + at), 0))


@dataclass(frozen=True)
class Ceilings:
    """The fastest triad and the fastest of all ways to move bytes, in bytes per second."""

    triad: float
    best: float

    def shares(self, bytes_s: float) -> dict[str, float]:
        """Return a rate as shares of both."""
        return {"of_triad": bytes_s / self.triad, "of_best": bytes_s / self.best}


def measured(bench: Bench) -> Ceilings:
    """Measure what the shares of a benchmark are of, in the benchmark's own process, and record it."""
    rates = {"triad": [0.0], "read": [0.0]}
    for what, _, rate, about in [*triads(bench), *reads(bench)]:
        if "missing" not in about:
            rates[what].append(rate)
    bench.clean()
    result = Ceilings(max(rates["triad"]), max(*rates["triad"], *rates["read"]))
    bench.record(what="ceilings", triad_bytes_s=result.triad, best_bytes_s=result.best)
    return result


Measured = tuple[str, Timing | None, float, dict[str, Any]]


def triads(bench: Bench) -> list[Measured]:
    """Measure the triad by torch and by Triton; bytes read and written count."""
    number = _TOY if bench.toy else _NUMBERS
    a, b, c = (_random(bench, number) for _ in range(3))
    ways: dict[str, Work] = {"torch": lambda _: torch.add(b, c, alpha=3.0, out=a)}
    if _has_triton(bench):
        ways["triton"] = lambda _: _triad[(number // _BLOCK,)](a, b, c, 3.0, _BLOCK, num_warps=4)
    return [_timed(bench, "triad", way, work, 1, 3 * a.nbytes) for way, work in ways.items()]


def reads(bench: Bench, number: int | None = None) -> list[Measured]:
    """Measure taking the largest of many numbers, by torch and by Triton, so that next to nothing is written."""
    number = _TOY if bench.toy else number or _NUMBERS
    sets = 4
    sources = [_random(bench, number) for _ in range(sets)]
    ways: dict[str, Work] = {"torch": lambda i: sources[i].amax()}
    if _has_triton(bench):
        out = sources[0].new_empty(number // _BLOCK)
        ways["triton"] = lambda i: _largest[(number // _BLOCK,)](out, sources[i], _BLOCK, num_warps=4)
    return [_timed(bench, "read", way, work, sets, sources[0].nbytes) for way, work in ways.items()]


def copy(bench: Bench) -> Measured:
    """Measure `copy_`; bytes read and written count."""
    sets, number = 2, _TOY if bench.toy else _NUMBERS
    sources, targets = ([_random(bench, number) for _ in range(sets)] for _ in range(2))
    work: Work = lambda i: targets[i].copy_(sources[i])  # noqa: E731
    return _timed(bench, "copy", "memcpy", work, sets, 2 * sources[0].nbytes)


def product(bench: Bench) -> tuple[Timing, float]:
    """Multiply square bfloat16 matrices of random numbers; returns operations per second."""
    size = 64 if bench.toy else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    timing = per_call(lambda _: torch.mm(a, b, out=out), 1, bench.device, seconds=0.2)
    return timing, 2 * size**3 / timing.median


def _timed(bench: Bench, what: str, way: str, work: Work, sets: int, nbytes: int) -> Measured:
    """Time one way; what a library cannot do is recorded as missing."""
    about: dict[str, Any] = {"by": way, "nbytes": nbytes}
    try:
        timing = per_call(work, sets, bench.device)
    except Exception as problem:
        if way == "torch":
            raise
        return what, None, 0.0, about | {"missing": bench.survive(problem, f"{what} by {way}")}
    return what, timing, nbytes / timing.median, about


def _random(bench: Bench, number: int) -> Tensor:
    return torch.rand(number, device=bench.device, generator=bench.generator)


def _has_triton(bench: Bench) -> bool:
    return triton is not None and bench.device.type == "cuda"


def main() -> None:
    bench = Bench("ceilings", __doc__)
    steps: list[Callable[[], list[Measured]]] = [
        lambda: triads(bench),
        lambda: reads(bench),
        lambda: reads(bench, _SMALL),
        lambda: [copy(bench)],
    ]
    for step in steps:
        for what, timing, rate, about in step():
            bench.record(what=what, **({"bytes_s": rate, **timing.micro()} if timing else {}), **about)
        bench.clean()
    timing, rate = product(bench)
    bench.record(what="bf16 product", flop_s=rate, **timing.micro())


if __name__ == "__main__":
    main()
