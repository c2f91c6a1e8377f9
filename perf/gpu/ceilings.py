"""Ceilings of the device: a copy, a read, a bf16 matrix product. Every other figure is compared with these.

python perf/gpu/ceilings.py [--out FILE.jsonl]
"""

from __future__ import annotations

import torch
from bench import Bench
from timing import Timing, per_call

_SETS = 4


def copy(bench: Bench) -> tuple[Timing, float]:
    """Copy within the device; returns bytes per second, read and written."""
    sources, targets = _buffers(bench), _buffers(bench)
    timing = per_call(lambda i: targets[i].copy_(sources[i]), _SETS, bench.device)
    return timing, 2 * sources[0].nbytes / timing.median


def read(bench: Bench) -> tuple[Timing, float]:
    """Take the largest of many numbers, so that nothing is written."""
    sources = [buffer.view(torch.float32) for buffer in _buffers(bench)]
    timing = per_call(lambda i: sources[i].amax(), _SETS, bench.device)
    return timing, sources[0].nbytes / timing.median


def product(bench: Bench) -> tuple[Timing, float]:
    """Multiply square bfloat16 matrices of random numbers; returns operations per second."""
    size = 64 if bench.toy else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    timing = per_call(lambda _: torch.mm(a, b, out=out), 1, bench.device, seconds=0.2)
    return timing, 2 * size**3 / timing.median


def _buffers(bench: Bench) -> list[torch.Tensor]:
    """Return buffers of random numbers, much larger than any cache."""
    number = 2**12 if bench.toy else 2**28
    result = torch.rand(number, device=bench.device, generator=bench.generator)
    return [result, *(result.clone() for _ in range(_SETS - 1))]


def main() -> None:
    bench = Bench("ceilings", __doc__)
    timing, rate = copy(bench)
    bench.record(what="copy", bytes_s=rate, **timing.micro())
    bench.clean()
    timing, rate = read(bench)
    bench.record(what="read", bytes_s=rate, **timing.micro())
    bench.clean()
    timing, rate = product(bench)
    bench.record(what="bf16 product", flop_s=rate, **timing.micro())


if __name__ == "__main__":
    main()
