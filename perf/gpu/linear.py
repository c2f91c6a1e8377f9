"""The product of few rows against cuBLAS's, and against itself with other sizes of csrc/linear/tuning.h.

    python perf/gpu/linear.py [--out FILE.jsonl] [--seconds 25] [--only 'default,16 warps']

The products are those of a layer of Llama-3.1-8B in bfloat16, and its logits. Each call reads another weight, and all
of them together are larger than the L2 cache. A chain is the products of a layer one after the other, with the norms
and the activation between them but without attention: only there can a product begin while the one before ends. Ours
has SiLU inside the product of gate and up. nvcc compiles all variants at the same time. The last lines are a table of
microseconds; -1 is a wrong result, -2 an error.

Shape suffixes: N tokens, C inputs, O outputs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ceilings
import torch
import torch.nn.functional as F
from bench import Bench
from timing import Work, per_call, sets_needed
from torch import Tensor

from kvbench_kernels import build
from kvbench_kernels.build import compilers, recipes
from kvbench_kernels.ops import launch
from kvbench_kernels.ops.library import Library

BOUND = 5e-3
VARIANTS: dict[str, dict[str, int]] = {
    "default": {},
    "depth 4": {"DEPTH": 4},
    "4 tiles": {"TILES": 4, "WARPS_ALONE": 8},
    "8 warps": {"WARPS_ALONE": 8},
    "16 warps": {"WARPS": 16},
}
SIZES = {  # outputs and inputs
    "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336), "logits": (128256, 4096),
}  # fmt: skip
TOY = {"qkv": (96, 64), "o": (64, 64), "gate_up": (256, 64), "down": (64, 128), "logits": (300, 64)}
TOKENS = (16, 1, 8)
Product = Callable[[Tensor, Tensor, bool], Tensor]  # of x and a weight; gated: with SiLU


def compiled(names: Sequence[str], device: torch.device) -> dict[str, Library]:
    """Compile linear.cu once per variant, all at the same time; on a CPU the default alone, for the emulator."""
    if device.type != "cuda":
        return {"default": Library(build.host())}
    folder = Path(tempfile.mkdtemp(prefix="kvb-linear-"))
    recipe = recipes.cuda((recipes.arch_for(torch.cuda.get_device_capability(device)),))
    sources = shutil.copytree(build.csrc(), folder / "csrc")
    source = sources / "linear" / "linear.cu"
    source.write_text(source.read_text().replace("launch_linear<fp16>(*call, stream)", "-1"))  # half of the time

    def compile_one(name: str) -> Library:
        path = folder / f"{name.replace(' ', '_')}.so"
        defines = [f"-DKVB_LINEAR_{key}={value}" for key, value in VARIANTS[name].items()]
        command = [recipe.compiler, *recipe.flags, *defines, "-I", sources, *recipe.link, source, "-o", path]
        output = compilers.run(command, f"compiling variant {name!r}")
        if any(line.split()[4] != "0" for line in output.splitlines() if "spill stores" in line):
            print(f"variant {name!r} spills", flush=True)
        return Library(path)

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(compile_one, names), strict=True))


def products(libraries: dict[str, Library], device: torch.device) -> dict[str, Product]:
    """Return the contenders by name: cuBLAS's product, and ours by each variant."""

    def by_torch(x_NC: Tensor, weight_OC: Tensor, gated: bool) -> Tensor:
        out_NO = F.linear(x_NC, weight_OC)
        return torch.ops.kvb.silu_mul(*out_NO.chunk(2, dim=1)) if gated else out_NO

    def ours(library: Library) -> Product:
        def product(x_NC: Tensor, weight_OC: Tensor, gated: bool) -> Tensor:
            stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else None
            return launch.linear(library, stream, x_NC, weight_OC, None, gated, True)

        return product

    return {"torch": by_torch, **{name: ours(library) for name, library in libraries.items()}}


def normal(bench: Bench, *shape: int) -> Tensor:
    numbers = torch.randn(shape, device=bench.device, dtype=torch.bfloat16, generator=bench.generator)
    return numbers / shape[-1] ** 0.5 if len(shape) == 3 else numbers


def checked(product: Product, x_NC: Tensor, weight_OC: Tensor) -> dict[str, Any]:
    """Return the error of the first and last outputs against float64, and whether three runs are equal bit for bit."""
    outs = [product(x_NC, weight_OC, False) for _ in range(3)]
    ends = torch.cat([weight_OC[:40], weight_OC[-40:]]).double()
    exact = x_NC.double() @ ends.T
    error = float((torch.cat([outs[0][:, :40], outs[0][:, -40:]], dim=1).double() - exact).norm() / exact.norm())
    same = all(torch.equal(outs[0], out) for out in outs)
    return {"error": error, "bitwise": same, "right": error < BOUND and same}


def chain(product: Product, weights: dict[str, Tensor], x_NC: Tensor, norm_C: Tensor) -> Work:
    """Return the products of a layer with what is between them: q, k and v; output; gate and up; down."""
    stream_NC = torch.zeros_like(x_NC)

    def layer(i: int) -> Tensor:
        update_NC = product(x_NC, weights["qkv"][i], False)[:, : x_NC.shape[1]]
        update_NC = product(update_NC, weights["o"][i], False)
        normed_NC = torch.ops.kvb.add_rms_norm(stream_NC, update_NC, norm_C, 1e-5)
        update_NC = product(product(normed_NC, weights["gate_up"][i], True), weights["down"][i], False)
        result: Tensor = torch.ops.kvb.add_rms_norm(stream_NC, update_NC, norm_C, 1e-5)
        return result

    return layer


def measure(bench: Bench, names: Sequence[str]) -> dict[tuple[str, str], float]:
    """Measure all contenders; return microseconds by contender and case."""
    ceiling = ceilings.measured(bench)
    contenders = products(compiled(names, bench.device), bench.device)
    print(f"compiled {len(contenders) - 1} variants, {bench.left():.0f} s left", flush=True)
    table: dict[tuple[str, str], float] = {}
    sizes = TOY if bench.toy else SIZES
    sets = {name: sets_needed(2 * outputs * inputs, bench.device) for name, (outputs, inputs) in sizes.items()}
    weights = {name: normal(bench, sets[name], *size) for name, size in sizes.items()}
    norm_C = torch.ones(sizes["o"][0], device=bench.device, dtype=torch.bfloat16)
    bench.clean()  # our products do not wait for the kernels that write the weights

    def record(name: str, what: str, tokens: int, nbytes: int, work: Work, rounds: int, check: dict[str, Any]) -> None:
        try:
            took = per_call(work, rounds, bench.device, seconds=0.02)
        except Exception as problem:  # the others are worth measuring
            table[name, f"{what} x {tokens}"] = -2.0
            bench.record(what=what, product=name, tokens=tokens, missing=bench.survive(problem, name))
            return
        rate = nbytes / took.median
        table[name, f"{what} x {tokens}"] = took.micro()["us"] if check.get("right", True) else -1.0
        bench.record(
            what=what, product=name, defines=VARIANTS.get(name), tokens=tokens, nbytes=nbytes, **took.micro(),
            tb_s=rate / 1e12, **ceiling.shares(rate), **check,
        )  # fmt: skip

    for tokens in TOKENS:
        layer = [name for name in sizes if name != "logits"]
        nbytes = sum(weights[name][0].nbytes for name in layer)
        for name, product in contenders.items():
            if bench.left() > 1 or bench.toy:
                work = chain(product, weights, normal(bench, tokens, sizes["o"][1]), norm_C)
                record(name, "layer", tokens, nbytes, work, min(sets[name] for name in layer), {})
        for size, weight_SOC in weights.items():
            x_NC = normal(bench, tokens, weight_SOC.shape[2])
            for name, product in contenders.items():
                if bench.left() < 1 and not bench.toy:
                    continue
                check = checked(product, x_NC, weight_SOC[0])
                if name == "torch":  # cuBLAS promises no bits
                    check = {"error": check["error"]}
                record(
                    name, size, tokens, weight_SOC[0].nbytes,
                    lambda i, p=product, x=x_NC, w=weight_SOC: p(x, w[i], False), len(weight_SOC), check,  # type: ignore[misc]
                )  # fmt: skip
    return table


def show(table: dict[tuple[str, str], float]) -> None:
    """Print a row per case and a column per contender."""
    names = list(dict.fromkeys(name for name, _ in table))
    print(f"{'':14}" + "".join(f"{name:>12}" for name in names))
    for row in dict.fromkeys(where for _, where in table):
        cells = (f"{table[name, row]:12.2f}" if (name, row) in table else f"{'':12}" for name in names)
        print(f"{row:14}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default=",".join(VARIANTS))
    chosen, rest = parser.parse_known_args()
    bench = Bench("linear", __doc__, rest)
    with bench.kernels(), torch.inference_mode():
        show(measure(bench, chosen.only.split(",")))


if __name__ == "__main__":
    main()
