"""`scripts/submit_slurm`: the usual options of sbatch as settings of the Slurm launcher."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from kvbench.cli.arguments import shell_command
from kvbench.common.command import Parser, command

_UNITS = {"m": 1, "h": 60, "d": 24 * 60}


def minutes(text: str) -> int:
    """Return the minutes of "90", "90m", "8h", "2d", or of Slurm's "HH:MM:SS" and "D-HH:MM:SS"; at least 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd]?)", text)
    if match:
        return max(1, round(float(match[1]) * _UNITS[match[2] or "m"]))
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match:
        days, hours, mins, seconds = (int(part or 0) for part in match.groups())
        return max(1, (days * 24 + hours) * 60 + mins + (seconds > 0))
    raise argparse.ArgumentTypeError(f"{text!r}: write 90m, 8h, 2d or HH:MM:SS")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="submit_slurm",
        description="Submit a sweep to Slurm. After --: what follows `python -m kvbench -m`, such as method=… budget=…",
        epilog="Anything else: -- launcher.NAME=VALUE; conf/hydra/launcher/fused_slurm.yaml has them all.",
    )
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--constraint", help="a node feature, such as a100")
    parser.add_argument("--gpus", type=int, dest="gpus_per_node", help="per task; several with model.device_map=auto")
    parser.add_argument("--cpus", type=int, dest="cpus_per_task", help="per task")
    parser.add_argument("--mem", type=float, dest="mem_gb", help="GB per task")
    parser.add_argument("--time", type=minutes, dest="timeout_min", help="per task: 90m, 8h, 2d, 12:00:00")
    parser.add_argument("--shards", type=int, help="tasks per model and benchmark, each takes a share of the samples")
    parser.add_argument("--parallel", type=int, dest="array_parallelism", help="tasks at the same time")
    parser.add_argument("--no-wait", action="store_const", const="false", dest="wait", help="return after submitting")
    parser.add_argument("--dry-run", action="store_true", help="only print the command")
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    return parser


def arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments for `python -m kvbench`."""
    settings = {k: v for k, v in vars(options).items() if v is not None and k not in ("overrides", "dry_run")}
    chosen = [f"launcher.{name}={_value(value)}" for name, value in settings.items()]
    return ["-m", "launcher=fused_slurm", *chosen, *options.overrides]


def _value(value: object) -> str:
    """Return a value in Hydra's notation: text that might be read as a list or a number is quoted."""
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z_][\w-]*", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the command and replace this process by it. Returns 0 after a dry run, and not at all otherwise."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.overrides:
        raise ValueError("nothing to run: add -- method=… budget=…")
    words = arguments(options)
    print(shell_command(words), file=sys.stderr, flush=True)
    if not options.dry_run:
        os.execv(sys.executable, [sys.executable, "-m", "kvbench", *words])
    return 0
