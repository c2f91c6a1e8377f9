"""Decode attention of one layer over ragged caches: our kernel, libraries, and the scheme of copying.

    python perf/gpu/decode.py [--out FILE.jsonl] [--seconds 100]
    python perf/gpu/decode.py rivals [--out FILE.jsonl] [--seconds 100]

Shapes by weight, so that what matters is measured when the time is up. Our kernels and torch's flash-attention go
through all shapes first, then flash-attention 3 does. `rivals` measures the schemes that copy or pad, next to our fused
kernel. Of each: microseconds in a CUDA graph, bytes of keys and values read per second, their share of the triad and
of the fastest ceiling, the error against double precision on some segments, and for our kernels whether three runs are
equal bit for bit. Shape suffixes as in `layers`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ceilings
import copy_append
import rivals
import torch
from bench import Bench
from layers import LENGTHS, Layer, Shape, exact, lengths, sample
from timing import per_call, sets_needed
from torch import Tensor

_MOST_BYTES = 40e9  # of the rotating buffers of a case
Make = Callable[[Layer], rivals.Attend]


def cases(toy: bool) -> Iterator[tuple[Shape, str]]:
    """Yield the cases, the most telling first."""
    if toy:
        yield from ((Shape(1, 24, heads=4, kv_heads=2, dim=64), kind) for kind in ("equal", "one_long"))
        return
    first = [(32, 2048), (16, 2048), (1, 32768), (1, 1024)]  # the sizes that the targets are about
    second = [(16, 32768), (16, 1024), (32, 32768)]
    rest = [(16, 512), (32, 1024), (1, 2048), (32, 512), (16, 128), (1, 512), (1, 128), (32, 128)]
    for batch, mean in [*first, *second, *rest]:
        yield from ((Shape(batch, mean), kind) for kind in LENGTHS)


def ours(layer: Layer, settled: bool = True) -> rivals.Attend:
    """Run `ragged_decode`: attention to the tokens in the cache.

    Args:
        settled: it begins before the previous call ends, which is about other buffers, as it does in a model's step.
    """
    out_BHTD = torch.full_like(layer.q_BHTD, torch.nan)

    def work(i: int) -> Tensor:
        k_RD, v_RD, length_S = layer.k_CRD[i], layer.v_CRD[i], layer.length_CS[i]
        torch.ops.kvb.ragged_decode(
            layer.q_BHTD, k_RD, v_RD, layer.start_S1, length_S, layer.segment_S, layer.scaling, out_BHTD,
            layer.workspace, settled,
        )  # fmt: skip
        return out_BHTD

    return work


def fused(layer: Layer) -> rivals.Attend:
    """Run `ragged_append_decode`: a whole step, which writes the new token and attends to it."""
    out_BHTD = torch.full_like(layer.q_BHTD, torch.nan)

    def work(i: int) -> Tensor:
        torch.ops.kvb.ragged_append_decode(
            layer.q_BHTD, layer.k_BUTD, layer.v_BUTD, layer.k_CRD[i], layer.v_CRD[i], layer.start_S1,
            layer.length_CS[i], layer.segment_S, layer.scaling, out_BHTD, layer.workspace, layer.status, True,
        )  # fmt: skip
        return out_BHTD

    return work


def contenders(device: torch.device) -> dict[str, Make]:
    """Return the ways to attend, by name."""
    schemes = {f"adakv_{name}": partial(copy_append.scheme, copy=copy) for name, copy in _copies(device).items()}
    return {
        "ours": ours,
        "ours_fused": fused,
        "ours_alone": partial(ours, settled=False),
        "torch_fa": rivals.flash_in_place,
        "fa3": rivals.fa3_in_place,
        **schemes,
        "sdpa_padded": rivals.padded_sdpa,
    }


def rounds_through(device: torch.device, only_rivals: bool) -> list[dict[str, Make]]:
    """Return the contenders of each round through all shapes, those whose failure would cost most first."""
    all_ways = contenders(device)
    first = {name: all_ways.pop(name) for name in ("ours", "ours_fused", "torch_fa")}
    alone = {"ours_alone": all_ways.pop("ours_alone")}
    second = {"fa3": all_ways.pop("fa3")}
    return [{"ours_fused": first["ours_fused"], **all_ways}] if only_rivals else [first, second, alone]


def _copies(device: torch.device) -> dict[str, copy_append.Copy]:
    return copy_append.copies(device)


def measure(bench: Bench, layer: Layer, name: str, make: Make) -> dict[str, Any]:
    """Time and error of one contender; `missing` says why where a rival cannot run."""
    try:
        work = make(layer)
        layer.set_back()
        checked = check(layer, name, work)
        timing = per_call(work, layer.sets, layer.device, layer.set_back)
    except Exception as problem:
        if name.startswith("ours"):
            raise
        return {"missing": bench.survive(problem, name)}
    if status := int(layer.status):
        full = f"segment {status - 1} had no room for the new tokens"
        raise RuntimeError(f"{name}: {'two calls used one workspace at the same time' if status < 0 else full}")
    tb_s = layer.nbytes / timing.median / 1e12
    return {**timing.micro(), "calls": timing.calls, "tb_s": tb_s, **checked}


def check(layer: Layer, name: str, work: rivals.Attend) -> dict[str, Any]:
    """Return ‖out - exact‖ / ‖exact‖ over some segments of set 0, and True if three runs are equal."""
    if name == "sdpa_padded":  # has buffers of its own
        return {}
    outs = []
    for _ in range(3 if name.startswith("ours") else 1):
        layer.set_back()
        outs.append(work(0).reshape(layer.shape.segments, layer.shape.group, -1).clone())
    expected = [_exact(layer, name, segment) for segment in sample(layer.length)]
    got = torch.stack([outs[0][segment] for segment in sample(layer.length)]).double()
    error = float((got - torch.stack(expected)).norm() / torch.stack(expected).norm())
    same = {"bitwise": all(torch.equal(outs[0], out) for out in outs[1:])} if len(outs) > 1 else {}
    layer.set_back()
    return {"error": error, **same}


def _exact(layer: Layer, name: str, segment: int) -> Tensor:
    """Return one segment's attention in double precision, over the rows that the contender reads."""
    starts = layer.packed_S1 if name.startswith("adakv") else layer.start_S1
    live = slice(int(starts[segment]), int(starts[segment]) + layer.length[segment])
    k_LD, v_LD = layer.k_CRD[0][live], layer.v_CRD[0][live]
    if name.startswith("adakv") or name == "ours_fused":
        dim = layer.shape.dim
        k_LD = torch.cat([k_LD, layer.k_BUTD.reshape(-1, 1, dim)[segment]])
        v_LD = torch.cat([v_LD, layer.v_BUTD.reshape(-1, 1, dim)[segment]])
    return exact(rivals.flat_queries(layer)[segment], k_LD, v_LD, layer.scaling)


def go_through(bench: Bench, ways: dict[str, Make], ceiling: ceilings.Ceilings, origin: str) -> None:
    """Measure some contenders on all shapes."""
    for shape, kind in cases(bench.toy):
        about = {"batch": shape.batch, "mean": shape.mean, "lengths": kind}
        if bench.left() < 2 + shape.nbytes / 1e9:  # the slowest rivals take that long on the largest
            bench.record(what="layer", **about, of=list(ways), skipped="no time left")
            continue
        sets = sets_needed(shape.nbytes, bench.device)
        sets = max(2, min(sets, int(_MOST_BYTES // shape.nbytes)))
        layer = Layer(shape, lengths(kind, shape), sets, bench.device, generator=bench.generator)
        about |= {"longest": layer.longest, "nbytes": layer.nbytes, "sets": sets}
        for name, make in ways.items():
            result = measure(bench, layer, name, make)
            shares = ceiling.shares(1e12 * result["tb_s"]) if "tb_s" in result else {}
            where = {"from": origin} if name == "torch_fa" else {}
            bench.record(what="layer", **about, contender=name, **result, **shares, **where)
            bench.clean()
        del layer
        bench.clean()


def main(arguments: Sequence[str]) -> None:
    only_rivals = "rivals" in arguments
    bench = Bench("rivals" if only_rivals else "decode", __doc__, [word for word in arguments if word != "rivals"])
    with bench.kernels():
        ceiling = ceilings.measured(bench)
        origin = rivals.varlen(bench.device)[1]
        for ways in rounds_through(bench.device, only_rivals):
            go_through(bench, ways, ceiling, origin)


if __name__ == "__main__":
    main(sys.argv[1:])
