"""Decode attention of one layer over ragged caches: our kernel, libraries, and the scheme of copying.

    python perf/gpu/decode.py [--out FILE.jsonl] [--seconds 100]

Shapes by weight, so that what matters is measured when the time is up. Of each: microseconds in a CUDA graph, bytes
of keys and values read per second, their share of what a copy moves, the error against double precision on some
segments, and for our kernels whether three runs are equal bit for bit. Shape suffixes as in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ceilings
import copy_append
import rivals
import torch
from bench import Bench
from layers import LENGTHS, Layer, Shape, exact, lengths, sample
from timing import per_call, rounds_of, sets_needed
from torch import Tensor

_MOST_BYTES = 40e9  # of the rotating buffers of a case


def cases(toy: bool) -> Iterator[tuple[Shape, str]]:
    """Yield the cases, the most telling first."""
    if toy:
        yield from ((Shape(1, 24, heads=4, kv_heads=2, dim=64), kind) for kind in ("equal", "one_long"))
        return
    first = [(16, 2048), (1, 32768)]
    second = [(16, 1024), (1, 1024), (32, 2048), (16, 32768)]
    rest = [(16, 512), (32, 1024), (1, 2048), (32, 512), (16, 128), (1, 512), (1, 128), (32, 128), (32, 32768)]
    for batch, mean in [*first, *second, *rest]:
        yield from ((Shape(batch, mean), kind) for kind in LENGTHS)


def ours(layer: Layer) -> rivals.Attend:
    """Run `ragged_decode`: attention to the tokens in the cache."""
    out_BHTD = torch.full_like(layer.q_BHTD, torch.nan)

    def work(i: int) -> Tensor:
        k_RD, v_RD, length_S = layer.k_CRD[i], layer.v_CRD[i], layer.length_CS[i]
        torch.ops.kvb.ragged_decode(
            layer.q_BHTD, k_RD, v_RD, layer.start_S1, length_S, layer.segment_S, layer.scaling, out_BHTD,
            layer.workspace,
        )  # fmt: skip
        return out_BHTD

    return work


def fused(layer: Layer) -> rivals.Attend:
    """Run `ragged_append_decode`: a whole step, which writes the new token and attends to it."""
    out_BHTD = torch.full_like(layer.q_BHTD, torch.nan)

    def work(i: int) -> Tensor:
        torch.ops.kvb.ragged_append_decode(
            layer.q_BHTD, layer.k_BUTD, layer.v_BUTD, layer.k_CRD[i], layer.v_CRD[i], layer.start_S1,
            layer.length_CS[i], layer.segment_S, layer.scaling, out_BHTD, layer.workspace, layer.status,
        )  # fmt: skip
        return out_BHTD

    return work


def contenders(device: torch.device) -> dict[str, Callable[[Layer], rivals.Attend]]:
    """Return the ways to attend, by name."""
    schemes = {f"adakv_{name}": partial(copy_append.scheme, copy=copy) for name, copy in _copies(device).items()}
    return {
        "ours": ours,
        "ours_fused": fused,
        "torch_fa": rivals.flash_in_place,
        "fa3": rivals.fa3_in_place,
        **schemes,
        "sdpa_padded": rivals.padded_sdpa,
    }


def _copies(device: torch.device) -> dict[str, copy_append.Copy]:
    return copy_append.copies(device)


def measure(layer: Layer, name: str, make: Callable[[Layer], rivals.Attend]) -> dict[str, Any]:
    """Time and error of one contender; `missing` says why where it cannot run."""
    try:
        work = make(layer)
        layer.set_back()
        checked = check(layer, name, work)
        timing = per_call(work, layer.sets, layer.device, layer.set_back)
    except (ValueError, RuntimeError, NotImplementedError) as problem:
        if name.startswith("ours"):
            raise
        return {"missing": (str(problem).splitlines() or [type(problem).__name__])[0]}
    if int(layer.status):
        raise RuntimeError(f"{name}: segment {int(layer.status) - 1} had no room for the new tokens")
    return {**timing.micro(), "tb_s": layer.nbytes / timing.median / 1e12, **checked}


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


def main() -> None:
    bench = Bench("decode", __doc__)
    with bench.kernels():
        _, bandwidth = ceilings.copy(bench)
        bench.record(what="copy", bytes_s=bandwidth)
        flash = rivals.varlen(bench.device)[1]
        for shape, kind in cases(bench.toy):
            about = {"batch": shape.batch, "mean": shape.mean, "lengths": kind}
            if bench.left() < 3 + shape.nbytes / 4e8:  # the largest take a quarter of a minute
                bench.record(what="layer", **about, skipped="no time left")
                continue
            sets = sets_needed(shape.nbytes, bench.device)
            sets = max(2, min(sets, int(_MOST_BYTES // shape.nbytes)))
            layer = Layer(shape, lengths(kind, shape), sets, bench.device, generator=bench.generator)
            about |= {"longest": layer.longest, "nbytes": layer.nbytes, "sets": sets, "rounds": rounds_of(sets)}
            for name, make in contenders(bench.device).items():
                result = measure(layer, name, make)
                share = {"of_copy": 1e12 * result["tb_s"] / bandwidth} if "tb_s" in result else {}
                where = {"from": flash} if name == "torch_fa" else {}
                bench.record(what="layer", **about, contender=name, **result, **share, **where)
                bench.clean()
            del layer
            bench.clean()


if __name__ == "__main__":
    main()
