"""Decode kernels compiled with other values of the open choices of decode/tuning.h, timed against one another.

    python perf/gpu/variants.py [--out FILE.jsonl] [--seconds 90] [--only 'default,no prefetch']
    python perf/gpu/variants.py --open                           # all combinations of what is new and off
    python perf/gpu/variants.py --once default,1,1024,adakv      # three calls, for a profiler
    python perf/gpu/variants.py --ncu default                    # the profiler's figures of a small and a large layer

nvcc compiles all variants at the same time. The last lines are a table: microseconds of `ragged_decode` and, after the
slash, of `ragged_append_decode`. Shape suffixes as in `layers`.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench import Bench
from layers import Layer, Shape, exact, lengths, sample
from timing import per_call, sets_needed

from kvbench_kernels import build
from kvbench_kernels.build import compilers, recipes
from kvbench_kernels.ops import launch, launch_decode
from kvbench_kernels.ops.library import Library

BOUND = 5e-3
# What no device has run yet: each is off in decode/tuning.h.
_NEW = {"whole items": {"WHOLE_ITEMS": 1}, "tile ahead": {"TILE_AHEAD": 1}, "one merge of 48": {"ONE_MERGE": 48}}
OPEN: dict[str, dict[str, int]] = {"default": {}} | {
    " + ".join(names): {key: value for name in names for key, value in _NEW[name].items()}
    for number in range(1, len(_NEW) + 1)
    for names in itertools.combinations(_NEW, number)
}
VARIANTS: dict[str, dict[str, int]] = {
    **OPEN,
    "no prefetch": {"PREFETCHED_TILES": 0},
    "prefetch 2": {"PREFETCHED_TILES": 2},
    "start 0": {"START_COST": 0},
    "start 8": {"START_COST": 8},
}
SHAPES = (
    (16, 2048), (1, 32768), (32, 2048), (16, 1024), (16, 512), (1, 1024), (1, 2048), (16, 128),
    (32, 128), (32, 512), (32, 1024),
)  # fmt: skip
_TOY = Shape(1, 24, heads=4, kv_heads=2, dim=64)
KINDS = ("pareto", "one_long", "equal", "adakv")
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__cycles_elapsed.max", "smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct",
    "smsp__warp_issue_stalled_barrier_per_warp_active.pct", "smsp__warp_issue_stalled_membar_per_warp_active.pct",
)  # fmt: skip


def compiled(names: Sequence[str], device: torch.device) -> dict[str, Library]:
    """Compile decode.cu once per variant, all at the same time; on a CPU for the emulator."""
    folder = Path(tempfile.mkdtemp(prefix="kvb-variants-"))
    if device.type == "cuda":
        recipe, dim = recipes.cuda((recipes.arch_for(torch.cuda.get_device_capability(device)),)), 128
    else:
        recipe, dim = recipes.host(False, ()), _TOY.dim
    sources = shutil.copytree(build.csrc(), folder / "csrc")
    source = sources / "decode" / "decode.cu"
    cases = (f"KVB_CASE({dim})", "#")  # one head dimension: a quarter of the time
    kept = [x for x in source.read_text().splitlines() if "KVB_CASE(" not in x or any(case in x for case in cases)]
    source.write_text("\n".join([*kept, ""]))

    def compile_one(name: str) -> Library:
        path = folder / f"{name.replace(' ', '_')}.so"
        defines = [f"-D{define}" for define in _defines(name)]
        command = [recipe.compiler, *recipe.flags, *defines, "-I", sources, *recipe.link, source, "-o", path]
        output = compilers.run(command, f"compiling variant {name!r}")
        if "spill" in output and any(line.split()[4] != "0" for line in output.splitlines() if "spill stores" in line):
            print(f"variant {name!r} spills", flush=True)
        return Library(path)

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(compile_one, names), strict=True))


def _defines(name: str) -> list[str]:
    return [f"KVB_{key}={value}" for key, value in VARIANTS[name].items()]


class Calls:
    """The two ops of one variant on a layer."""

    def __init__(self, library: Library, layer: Layer) -> None:
        self.library, self.layer = library, layer
        self.out_BHTD = torch.full_like(layer.q_BHTD, torch.nan)
        self.workspace = launch_decode.workspace(library, layer.shape.dim, layer.device)

    def plain(self, i: int) -> None:
        x = self.layer
        launch.ragged_decode(
            self.library, self._stream(), x.q_BHTD, x.k_CRD[i], x.v_CRD[i], x.start_S1, x.length_CS[i], x.segment_S,
            x.scaling, self.out_BHTD, self.workspace, True,
        )  # fmt: skip

    def fused(self, i: int) -> None:
        x = self.layer
        launch.ragged_append_decode(
            self.library, self._stream(), x.q_BHTD, x.k_BUTD, x.v_BUTD, x.k_CRD[i], x.v_CRD[i], x.start_S1,
            x.length_CS[i], x.segment_S, x.scaling, self.out_BHTD, self.workspace, x.status, True,
        )  # fmt: skip

    def _stream(self) -> int | None:
        return torch.cuda.current_stream().cuda_stream if self.layer.device.type == "cuda" else None


def expected(layer: Layer, fused: bool) -> list[torch.Tensor]:
    """Return the attention of some segments in double precision."""
    result = []
    for segment in sample(layer.length):
        live = slice(int(layer.start_S1[segment]), int(layer.start_S1[segment]) + layer.length[segment])
        k_LD, v_LD = layer.k_CRD[0][live], layer.v_CRD[0][live]
        if fused:
            k_LD = torch.cat([k_LD, layer.k_BUTD.reshape(-1, 1, layer.shape.dim)[segment]])
            v_LD = torch.cat([v_LD, layer.v_BUTD.reshape(-1, 1, layer.shape.dim)[segment]])
        q_SGD = layer.q_BHTD.reshape(layer.shape.segments, layer.shape.group, -1)
        result.append(exact(q_SGD[segment], k_LD, v_LD, layer.scaling))
    return result


def checked(calls: Calls, fused: bool, right: list[torch.Tensor]) -> dict[str, Any]:
    """Return the error over some segments, and True if three runs are equal bit for bit."""
    layer, outs = calls.layer, []
    for _ in range(3):
        layer.set_back()
        calls.out_BHTD.fill_(torch.nan)
        (calls.fused if fused else calls.plain)(0)
        outs.append(calls.out_BHTD.reshape(layer.shape.segments, layer.shape.group, -1).clone())
    grown = layer.length_CS[0].tolist() == [length + fused for length in layer.length]
    layer.set_back()
    actual, exact_out = torch.stack([outs[0][s] for s in sample(layer.length)]).double(), torch.stack(right)
    error = float((actual - exact_out).norm() / exact_out.norm())
    same = all(torch.equal(outs[0], out) for out in outs[1:])
    return {"error": error, "right": error < BOUND and same and grown and not int(layer.status)}


def timed(calls: Calls, fused: bool, right: list[torch.Tensor]) -> dict[str, Any]:
    """Check one op against double precision and time it."""
    layer = calls.layer
    check = checked(calls, fused, right)
    took = per_call(calls.fused if fused else calls.plain, layer.sets, layer.device, layer.set_back, seconds=0.01)
    return {**took.micro(), "tb_s": layer.nbytes / took.median / 1e12, **check}


def measure(bench: Bench, names: Sequence[str]) -> dict[tuple[str, str], list[float]]:
    """Measure all variants on all layers; return the microseconds of both ops by variant and layer."""
    libraries = compiled(names, bench.device)
    print(f"compiled {len(libraries)} variants, {bench.left():.0f} s left", flush=True)
    table: dict[tuple[str, str], list[float]] = {}
    shapes = [_TOY] if bench.toy else [Shape(*shape) for shape in SHAPES]
    for shape in shapes:
        sets = sets_needed(shape.nbytes, bench.device)
        for kind in KINDS:
            if bench.left() < 2:
                continue
            layer = Layer(shape, lengths(kind, shape), sets, bench.device, generator=bench.generator)
            right = {fused: expected(layer, fused) for fused in (False, True)}
            for name, library in libraries.items():
                about = {"variant": name, "defines": VARIANTS[name], "batch": shape.batch, "mean": shape.mean}
                about |= {"nbytes": layer.nbytes}
                times = table.setdefault((name, f"{shape.batch}x{shape.mean} {kind}"), [])
                for fused in (False, True):
                    try:
                        result = timed(Calls(library, layer), fused, right[fused])
                    except Exception as problem:  # the others are worth measuring
                        result = {"missing": str(problem).splitlines()[0], "us": -2.0, "right": True}
                    bench.record(what="variant", **about, lengths=kind, fused=fused, **result)
                    times.append(result["us"] if result["right"] else -1.0)
            del layer
            bench.clean()
    return table


def show(table: dict[tuple[str, str], list[float]]) -> None:
    """Print a row per layer and a column per variant; -1 is a wrong result, -2 an error."""
    names = list(dict.fromkeys(name for name, _ in table))
    rows = list(dict.fromkeys(where for _, where in table))
    print(f"{'':18}" + "".join(f"{name:>18}" for name in names))
    for row in rows:
        cells = ["/".join(f"{x:.1f}" for x in table.get((name, row), [])) for name in names]
        print(f"{row:18}" + "".join(f"{cell:>18}" for cell in cells))


def once(spec: str) -> None:
    """Call a variant's fused op three times on one layer."""
    name, batch, mean, kind = spec.split(",")
    device = torch.device("cuda")
    shape = Shape(int(batch), int(mean))
    layer = Layer(shape, lengths(kind, shape), 4, device)
    calls = Calls(compiled([name], device)[name], layer)
    for i in range(3):
        calls.plain(i)
        calls.fused(i)
    torch.cuda.synchronize()


def profile(name: str) -> None:
    """Run the profiler, if it is installed, on a small and a large layer."""
    for layer in ("1,1024,adakv", "16,2048,equal"):
        command = ["ncu", "--clock-control", "none", "--kernel-name", "regex:decode", "--launch-skip", "2",
                   "--launch-count", "2", "--metrics", ",".join(METRICS), sys.executable, __file__, "--once",
                   f"{name},{layer}"]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as problem:
            print(f"ncu: {problem}")
            return
        print("\n".join(line for line in done.stdout.splitlines()[-40:] if line.strip()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--once")
    parser.add_argument("--ncu")
    chosen, rest = parser.parse_known_args()
    if chosen.once:
        once(chosen.once)
        return
    if chosen.ncu:
        profile(chosen.ncu)
        return
    bench, names = Bench("variants", __doc__, rest), list(OPEN) if chosen.open else chosen.only.split(",")
    show(measure(bench, list(dict.fromkeys([names[0], names[-1]])) if bench.toy else names))


if __name__ == "__main__":
    main()
