"""Compile the kernels for this machine's GPU, and record the time, registers, spills and shared memory of each.

python perf/gpu/compiled.py [--out FILE.jsonl]
"""

from __future__ import annotations

import json
import time

import torch
from bench import Bench

from kvbench_kernels import build
from kvbench_kernels.build.compilers import CompilerError

_SHOWN = 24  # lines of a compiler's output


def excerpt(output: str) -> list[str]:
    """Return the lines of a compiler's output around its first error."""
    lines = [line for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "error" in line.lower()), 0)
    return lines[max(0, first - 2) :][:_SHOWN]


def main() -> None:
    bench = Bench("build", __doc__)
    begun = time.monotonic()
    if bench.toy:
        cached, library = False, build.host()
    else:
        capability = torch.cuda.get_device_capability()
        cached = build.cached(capability) is not None
        try:
            library = build.cuda_for(capability)
        except CompilerError as error:
            print(*excerpt(error.output), error, sep="\n")
            raise SystemExit(1) from None
    about = json.loads((library.parent / "report.json").read_text())
    kernels = build.report(library)
    bench.record(
        what="build",
        seconds=time.monotonic() - begun,
        cached=cached,
        compiler=about["compiler"],
        kernels=len(kernels),
        spilled=sum(k["spill_stores"] + k["spill_loads"] for k in kernels),
        registers=max((k["registers"] for k in kernels), default=0),
    )
    for kernel in kernels:
        bench.record(what="kernel", **kernel)


if __name__ == "__main__":
    main()
