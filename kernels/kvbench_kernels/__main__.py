"""`python -m kvbench_kernels build | list | check`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from tqdm.auto import tqdm

from kvbench_kernels import backends, build, ops, parity

_EPILOG = """\
The kernels are compiled when they are first needed, too. They are kept in the folder `kernels` of KVBENCH_CACHE
(~/.cache/kvbench), and compiled again when a source, a compiler or a setting changes.

exit status: 0 if all is well, 1 if a check failed, 2 for a mistake or what is missing.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"kvbench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvbench_kernels",
        description="The CUDA kernels of the ragged cache.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("build", help="compile the kernels", description="Compile the kernels with nvcc.")
    one.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help=f"sm_<number>: machine code, compute_<number>: PTX; again for more (default: {' '.join(build.ARCHS)})",
    )
    one.add_argument("--force", action="store_true", help="compile although it has been done")
    one.set_defaults(run=_build)
    one = commands.add_parser("list", help="which backends can run here, and why the others cannot")
    one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    one.add_argument("--dtype", default="bfloat16", help="of the model (default: bfloat16)")
    one.add_argument("--head-dim", type=int, default=128, metavar="D", help="of the model (default: 128)")
    one.set_defaults(run=_list)
    one = commands.add_parser(
        "check",
        help="compare every op with the reference in double precision",
        description="Compare every op with the reference in double precision: the kernels on a GPU, torch on a CPU.",
    )
    one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    one.add_argument("--emulated", action="store_true", help="run the kernels on the CPU, compiled by g++; slow")
    one.add_argument("--op", action="append", choices=sorted(ops.SCHEMAS), help="only this op; again for more")
    one.add_argument("--seed", type=int, help="of the inputs (default: another one each time)")
    one.set_defaults(run=_check)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    archs = tuple(arguments.arch or build.ARCHS)
    begun = time.monotonic()
    made = build.cuda(archs, arguments.force, lambda said: print(f"{time.monotonic() - begun:6.1f} s  {said}"))
    rows = [
        [_short(k["name"]), k["arch"], k["registers"], k["spill_stores"] + k["spill_loads"], k["shared"]]
        for k in build.report(made)
    ]
    print(tabulate(rows, ["kernel", "arch", "registers", "spilled bytes", "shared bytes"]))
    print(f"{made} ({time.monotonic() - begun:.1f} s)")
    return 0


def _short(name: str) -> str:
    """A kernel's name without its namespaces and parameters."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("kvb::", "")
    return name.partition("(")[0]


def _list(arguments: argparse.Namespace) -> int:
    dtype = getattr(torch, arguments.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--dtype {arguments.dtype}: no such dtype, choose bfloat16, float16 or float32")
    use = backends.AttentionSpec(_device(arguments.device), dtype, arguments.head_dim, 1)
    lacks = {name: backends.unmet_requirement(name, use) for name in backends.NAMES}
    first = next(name for name in backends.preferred(use.device) if lacks[name] is None)
    rows = [
        [name, "yes" if lack is None else "no", lack or ("what kernel=auto takes" if name == first else "")]
        for name, lack in lacks.items()
    ]
    print(f"device={use.device} dtype={arguments.dtype} head dimension {use.head_dim}")
    print(tabulate(rows, ["kernel", "runs", ""]))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    device = torch.device("cpu") if arguments.emulated else _device(arguments.device)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    library = build.host() if arguments.emulated else None
    what = "kernels on the CPU" if arguments.emulated else "kernels" if device.type == "cuda" else "reference in torch"
    if device.type == "cuda":
        ops.prepare(device)
    print(f"{what}, device={device}, --seed {seed}")
    failed = run_checks(device, seed, library, arguments.op)
    return 1 if failed else 0


def run_checks(device: torch.device, seed: int, library: Path | None, only: Sequence[str] | None) -> int:
    """Run and print the cases; how many failed. `library`: what to emulate the kernels with on a CPU."""
    chosen = [case for case in parity.cases(large=device.type == "cuda") if not only or case.op in only]
    rows = []
    for case in tqdm(chosen, unit="case", leave=False):
        began = time.monotonic()
        if library is None:
            error = case.run(device, seed)
        else:
            with ops.emulated(library):
                error = case.run(device, seed)
        good = error <= case.bound  # a NaN is not
        took = time.monotonic() - began
        rows.append(
            [case.op, case.title, f"{error:.1e}", f"{case.bound:.0e}", "ok" if good else "WRONG", f"{took:.2f}"]
        )
    print(tabulate(rows, ["op", "case", "error", "bound", "", "s"], disable_numparse=True))
    failed = sum(row[4] != "ok" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} cases ok")
    return failed


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: no such device, choose cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU")
    return device


if __name__ == "__main__":
    sys.exit(main())
