"""`kvbench status [outputs]`: what is done, running, failed, missing, and the commands that resume."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command
from kvbench.status.runs import STATES
from kvbench.status.survey import Survey, survey
from kvbench.status.text import as_json, text

_EPILOG = """\
states:
  done        all samples are recorded
  limited     all samples that limit= asked for are recorded
  running     a process writes it now (it holds the folder's lock)
  waiting     not begun; other runs of its plan are running
  missing     not begun
  partial     ended well, but samples are missing (a larger limit= is asked for, a shard's part)
  preempted   ended by a signal: Slurm's time limit, Ctrl-C
  stopped     was running, but no process holds it: killed, or its disk was full
  failed      ended by an error, which is shown
  refused     what was asked for cannot be computed; the reason names what to change
  damaged     a file cannot be read; the message says what to do

examples:
  kvbench status                               of the folder outputs
  kvbench status outputs --only failed,stopped

exit status: 0 if everything is done or limited, 1 if not, 2 for a mistake.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the survey. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench status",
        description="What is done, running, failed or missing, and the commands that resume. Reads only.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[Path("outputs")], help="outputs (default), or run folders"
    )
    parser.add_argument("--only", metavar="STATES", help="show only runs in these states, e.g. failed,stopped")
    parser.add_argument("--json", action="store_true", help="for programs; errors in full length")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="print again and again, until all is done")
    arguments = parser.parse_args(argv)
    only = arguments.only.split(",") if arguments.only else STATES
    if unknown := [state for state in only if state not in STATES]:
        raise ValueError(f"--only {unknown[0]}: choose from {', '.join(STATES)}")
    if arguments.watch is not None and arguments.watch <= 0:
        raise ValueError(f"--watch {arguments.watch:g}: name seconds above 0")
    while True:
        state = survey(arguments.paths)
        if arguments.watch and sys.stdout.isatty():
            print("\033[H\033[J", end="")
        _print(state, only, arguments)
        if arguments.watch is None or state.complete:
            return 0 if state.complete else 1
        time.sleep(arguments.watch)


def _print(state: Survey, only: Sequence[str], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(as_json(state, only), indent=2), flush=True)
    elif state.plans or state.others or state.damaged:
        print(text(state, only), flush=True)
    else:
        print(f"{', '.join(map(str, arguments.paths))}: no plans and no runs", flush=True)


if __name__ == "__main__":
    sys.exit(main())
