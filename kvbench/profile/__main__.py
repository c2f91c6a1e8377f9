"""`kvbench profile method=ada_snapkv budget=128,1024 profile.context=4096,32768`: time and memory.

Heavy modules are imported after `--help` has been answered.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from kvbench.common.command import Parser, command, log_messages, resumable, say
from kvbench.common.paths import conf_dir, shown_settings
from kvbench.report.formats import FORMATS

_EPILOG = """\
settings of the profile (profile.NAME=VALUE) and their defaults:

{settings}
The other settings are those of `kvbench run`: model= method= budget= kernel= threads= seed= engine.cache=
paths.outputs= retry_oom= progress= and those below them (method.window=16, model.dtype=float32). Commas list values,
and every combination is measured. The full cache is always measured too, because ratios refer to it.
profile.pool=64k,128k measures throughput against the size of the KV pool, and takes the place of profile.batch.

examples:
  kvbench profile                                          the embedded model, a few cells
  kvbench profile model=shape/llama31_8b method=ada_snapkv,snapkv budget=128,1024 \\
      profile.context=4096,8192,16384,32768 profile.batch=1,16       a published shape with random weights
  kvbench profile model=shape/llama31_8b method=ada_snapkv budget=1024 profile.context=32736 \\
      profile.pool=32k,64k,128k,256k,512k profile.max_rows=512       tokens/s by size of the KV pool, and crossovers
  kvbench profile model=shape/llama31_8b model.layers=2    two of its layers, for a quick look

shapes:
{shapes}


results: <paths.outputs>/profile/<model>-<device>-<hash>/ with cells.jsonl, table.md, table.csv, table.json and
latency_memory.png (pool.png with profile.pool). The same command again measures only what is missing. Other settings,
devices, versions or code have another folder. A cell that runs out of memory is recorded as such; retry_oom=true tries
it again.

exit status: 0; 1 if a cell failed; 2 for a mistake in the command; 130 if it was interrupted.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and show it. Returns the exit code, see `kvbench.common.command`."""
    arguments = _parser().parse_args(argv)
    log_messages()
    from kvbench.profile.compose import composed_text, groups

    if arguments.cfg:
        print(composed_text(arguments.overrides), end="")
        return 0
    asked = groups(arguments.overrides)
    from kvbench.profile.present import present_cells
    from kvbench.profile.run import run_groups

    with resumable():
        measured = run_groups(asked)
    present_cells(measured, arguments.format)
    errors = [error for group in measured for error in group.errors]
    for error in errors:
        say(error)
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(f"shape/{path.stem}" for path in sorted((conf_dir() / "model" / "shape").glob("*.yaml")))
    shapes = textwrap.fill(names, 110, initial_indent="  ", subsequent_indent="  ")
    parser = Parser(
        prog="kvbench profile",
        description="Time and memory of methods against the full cache, over context, budget, batch and kernel.",
        epilog=_EPILOG.format(settings=shown_settings("profile"), shapes=shapes),
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for kvbench; commas list values")
    parser.add_argument("-m", "--multirun", action="store_true", help="accepted but not needed: lists work without it")
    parser.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    parser.add_argument("--format", choices=FORMATS, default="table", help="format of the output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
