"""Compile the kernels for this machine's GPU, and record the time, registers, spills and shared memory of each.

python perf/gpu/compiled.py [--out FILE.jsonl]
"""

from __future__ import annotations

import json
import time

import torch
from bench import Bench

from kvbench_kernels import build


def main() -> None:
    bench = Bench("compiled", __doc__)
    begun = time.monotonic()
    if bench.toy:
        cached, library = False, build.host()
    else:
        capability = torch.cuda.get_device_capability()
        cached, library = build.cached(capability) is not None, build.cuda_for(capability)
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
