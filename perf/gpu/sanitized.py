"""A few small cases of every op, for compute-sanitizer to watch; or, with `plant`, a read beyond a buffer's end.

    compute-sanitizer --tool memcheck python perf/gpu/sanitized.py

Each op's first case in bfloat16, and decode cases for several head dimensions, groups and tokens. Inputs are made on
the host, so that few other kernels run. The planted fault shows that the sanitizer sees what it should.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from bench import Bench
from layers import Layer, Shape

from kvbench_kernels import parity

_MORE = ("D128 G4 T1", "D256 G4 T1", "D64 G4 T3", "D64 G1 T17", "D128 G16 T1", "D256 G5 T7", "N9 C4096", "N16 C512")


def cases(toy: bool) -> Iterator[parity.Case]:
    seen: set[str] = set()
    for case in parity.cases(large=False):
        wanted = case.op not in seen or (not toy and any(more in case.title for more in _MORE))
        if wanted and (case.op == "select" or case.title.startswith("bfloat16")):
            seen.add(case.op)
            yield case


def planted(bench: Bench) -> None:
    """Attend to more slots than the buffers have."""
    layer = Layer(Shape(1, 40, heads=8, kv_heads=2), [40, 40], 1, bench.device)
    layer.length_CS += 4096
    out_BHTD = torch.empty_like(layer.q_BHTD)
    torch.ops.kvb.ragged_decode(
        layer.q_BHTD, layer.k_CRD[0], layer.v_CRD[0], layer.start_S1, layer.length_CS[0], layer.segment_S,
        layer.scaling, out_BHTD, layer.workspace,
    )  # fmt: skip
    print(out_BHTD.float().sum().item())


def main() -> None:
    plant = "plant" in sys.argv[1:]
    bench = Bench("sanitized", __doc__, [argument for argument in sys.argv[1:] if argument != "plant"])
    with bench.kernels():
        if plant:
            planted(bench)
            return
        wrong = []
        for number, case in enumerate(cases(bench.toy)):
            if case.run(bench.device, number) > case.bound:
                wrong.append(f"{case.op} {case.title}")
    print(f"{number + 1} cases ran, wrong: {', '.join(wrong) or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
