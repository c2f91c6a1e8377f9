"""`python -m kvbench_kernels build | list | check`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tabulate import tabulate
from tqdm.auto import tqdm

from kvbench_kernels import backends, build, ops, parity
from kvbench_kernels.backends import flash
from kvbench_kernels.build import recipes

_DTYPES = ("bfloat16", "float16", "float32")
_EPILOG = """\
The kernels are also compiled when they are first needed. They are kept in the folder `kernels` of KVBENCH_CACHE
(~/.cache/kvbench), and compiled again when a source, a compiler or a setting changes, or a file is damaged.

examples:
  kvbench kernels list
  kvbench kernels build --cpu
  kvbench kernels check --op ragged_decode

exit status: 0 if all is well, 1 if a check or the compilation failed, 2 for a mistake or if something is missing.
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that prints its texts as they are written, and whose complaint is a ValueError of one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the complaint. Raises ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


def run(argv: Sequence[str] | None = None) -> int:
    """Run as `python -m kvbench_kernels`: print an error as one line. Returns the exit status."""
    try:
        return main(argv)
    except BrokenPipeError:  # the reader needs no more
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        _say(error)
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments ask for. Returns the exit status.

    Raises:
        ValueError: a mistake of the user, or something is missing on this machine.
    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except RuntimeError as error:  # of a compiler, of CUDA, or while loading
        _say(error)
        return 1
    return status


def _say(error: Exception) -> None:
    """Print an error on stderr as one line."""
    print(f"kvbench: {' '.join(str(error).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kvbench kernels",
        description="Compile, list and check the kernels of the ragged cache.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "build",
        help="compile the kernels",
        description="Compile the kernels with nvcc, or those for CPUs with g++, even if that failed before.",
        epilog="examples:\n  kvbench kernels build --cpu\n  kvbench kernels build --arch sm_90",
    )
    command.add_argument("--cpu", action="store_true", help="compile the kernels for this CPU, with g++")
    command.add_argument(
        "--arch",
        action="append",
        metavar="ARCH",
        help=f"sm_<number> for machine code, compute_<number> for PTX; may be repeated "
        f"(default: {' '.join(build.ARCHS)})",
    )
    command.add_argument("--force", action="store_true", help="compile even if the cache has the kernels")
    command.set_defaults(run=_build)
    command = commands.add_parser(
        "list",
        help="which backends can run here, and why the others cannot",
        description="List the backends that can run here, and why the others cannot.",
        epilog="examples:\n  kvbench kernels list\n  kvbench kernels list --device cpu --dtype float32 --head-dim 64",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    command.add_argument("--dtype", default="bfloat16", help="dtype of the model (default: bfloat16)")
    command.add_argument(
        "--head-dim", type=int, default=128, metavar="D", help="head dimension of the model (default: 128)"
    )
    command.set_defaults(run=_list)
    command = commands.add_parser(
        "check",
        help="compare every op with the reference in double precision",
        description="Compare every op with the reference in double precision: the kernels on a GPU, torch on a CPU.",
        epilog="examples:\n  kvbench kernels check\n  kvbench kernels check --op ragged_decode --emulated",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    command.add_argument("--emulated", action="store_true", help="run the kernels on the CPU, compiled by g++; slow")
    command.add_argument(
        "--op",
        action="append",
        metavar="OP",
        choices=sorted(ops.SCHEMAS),
        help=f"check only this op; may be repeated: {', '.join(sorted(ops.SCHEMAS))}",
    )
    command.add_argument("--seed", type=int, help="seed of the inputs (default: a new one each time)")
    command.set_defaults(run=_check)
    return parser


def _build(arguments: argparse.Namespace) -> int:
    if arguments.cpu and arguments.arch:
        raise ValueError(f"--arch {arguments.arch[0]}: is for GPUs; leave out --arch or --cpu")
    archs = tuple(arguments.arch or build.ARCHS)
    recipes.check_archs(archs)
    begin = time.monotonic()
    if arguments.cpu:
        library = build.cpu(arguments.force, retry=True)
        print(f"{library} ({time.monotonic() - begin:.1f} s)")
        return 0
    library = build.cuda(
        archs, arguments.force, lambda line: print(f"{time.monotonic() - begin:6.1f} s  {line}"), retry=True
    )
    rows = [
        [_short(k["name"]), k["arch"], k["registers"], k["spill_stores"] + k["spill_loads"], k["shared"]]
        for k in build.report(library)
    ]
    print(tabulate(rows, ["kernel", "arch", "registers", "spilled bytes", "shared bytes"]))
    print(f"{library} ({time.monotonic() - begin:.1f} s)")
    return 0


def _short(name: str) -> str:
    """Return a kernel's name without its namespaces and parameters."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "").replace("kvb::", "")
    return name.partition("(")[0]


def _list(arguments: argparse.Namespace) -> int:
    if arguments.dtype not in _DTYPES:
        raise ValueError(f"--dtype {arguments.dtype}: must be one of {', '.join(_DTYPES)}")
    if arguments.head_dim < 1:
        raise ValueError(f"--head-dim {arguments.head_dim}: must be at least 1")
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    spec = backends.AttentionSpec(_device(arguments.device), dtype, arguments.head_dim, 1)
    lacks = {name: backends.unmet_requirement(name, spec) for name in backends.NAMES}
    first = next(name for name in backends.preferred(spec.device) if lacks[name] is None)
    rows = []
    for name, lack in lacks.items():
        words = ["kernel=auto chooses this"] if name == first else []
        if lack is None and name == "flash_attn":
            words.append(f"attention by {flash.find()[1]}")
        rows.append([name, "yes" if lack is None else "no", lack or "; ".join(words)])
    print(f"device={spec.device} dtype={arguments.dtype} head dimension {spec.head_dim}")
    print(tabulate(rows, ["kernel", "runs", ""]))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.emulated and arguments.device not in (None, "cpu"):
        raise ValueError(f"--device {arguments.device}: --emulated runs on the CPU; leave --device out")
    device = torch.device("cpu") if arguments.emulated else _device(arguments.device)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: must be from 0 to {2**63 - 1}")
    library = build.host() if arguments.emulated else None
    what = "kernels on the CPU" if arguments.emulated else "kernels" if device.type == "cuda" else "reference in torch"
    if device.type == "cuda":
        ops.prepare(device)
    print(f"{what}, device={device}, --seed {seed}")
    return 1 if run_checks(device, seed, library, arguments.op) else 0


def run_checks(device: torch.device, seed: int, library: Path | None, only: Sequence[str] | None) -> int:
    """Run and print the cases of the ops in `only`, or all. Returns how many cases failed.

    Args:
        library: on a CPU, the compiled kernels to emulate; None for the reference.
    """
    chosen = [case for case in parity.cases(large=device.type == "cuda") if not only or case.op in only]
    rows = []
    for case in tqdm(chosen, unit="case", leave=False):
        begin = time.monotonic()
        if library is None:
            error = case.run(device, seed)
        else:
            with ops.emulated(library):
                error = case.run(device, seed)
        is_right = error <= case.bound  # False for NaN
        seconds = time.monotonic() - begin
        rows.append(
            [case.op, case.title, f"{error:.1e}", f"{case.bound:.0e}", "ok" if is_right else "WRONG", f"{seconds:.2f}"]
        )
    print(tabulate(rows, ["op", "case", "error", "bound", "", "s"], disable_numparse=True))
    failed = sum(row[4] != "ok" for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} cases ok")
    return failed


def _device(name: str | None) -> torch.device:
    """Return the device of this name, by default the GPU if there is one. Raises ValueError if it does not exist."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: no such device; choose cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: the kernels run on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


if __name__ == "__main__":
    sys.exit(run())
