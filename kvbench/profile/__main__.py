"""`python -m kvbench.profile method=ada_snapkv budget=128,1024 profile.context=4096,32768`: time and memory.

Nothing heavy is imported before the command line is known to ask for something.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from kvbench.common.command import Parser, command
from kvbench.common.paths import conf_dir
from kvbench.report.formats import FORMATS

_EPILOG = """\
settings of the profile (profile.NAME=VALUE), as shipped:

{settings}
all others are those of kvbench: model= method= budget= kernel= threads= seed= engine.cache= paths.outputs=
retry_oom= progress= and what is below them (method.window=16, model.dtype=float32). Commas list values, and every
combination is measured; the full cache is always measured beside, as what ratios are to.

examples:
  python -m kvbench.profile                                          the embedded model, a few cells
  python -m kvbench.profile model=shape/llama31_8b method=ada_snapkv,snapkv budget=128,1024 \\
      profile.context=4096,8192,16384,32768 profile.batch=1,16       a published shape with random weights
  python -m kvbench.profile model=shape/llama31_8b model.layers=2    a part of it, for a quick look
shapes: {shapes}

results: <paths.outputs>/profile/<model>-<device>-<hash>/ with cells.jsonl, table.md, table.csv, table.json and
latency_memory.png. Issuing a command again measures what is missing only; other settings, devices, versions or code
have a folder of their own. A cell out of memory is recorded as such; retry_oom=true tries it again.

exit status: 0; 1 if a cell failed or it was interrupted; 2 for a mistake in the command.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and show. Returns the exit code, see `kvbench.common.command`."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from kvbench.config.messages import plain_mistakes

    with plain_mistakes(arguments.overrides):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from kvbench.profile.asked import composed_text, groups

    if arguments.cfg:
        print(composed_text(arguments.overrides), end="")
        return 0
    asked = groups(arguments.overrides)
    from kvbench.profile.present import present
    from kvbench.profile.run import run_groups

    measured = run_groups(asked)
    present(measured, arguments.format)
    errors = [error for one in measured for error in one.errors]
    for error in errors:
        print(f"kvbench: {error}", file=sys.stderr)
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    text = (conf_dir() / "profile.yaml").read_text(encoding="utf-8")
    settings = "".join(f"  {line}\n" for line in text.splitlines() if not line.startswith("#"))
    shapes = ", ".join(f"shape/{path.stem}" for path in sorted((conf_dir() / "model" / "shape").glob("*.yaml")))
    parser = Parser(
        prog="kvbench profile",
        description="Time and memory of methods against the full cache, over context, budget, batch and kernel.",
        epilog=_EPILOG.format(settings=settings, shapes=shapes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for kvbench; commas list values")
    parser.add_argument("-m", "--multirun", action="store_true", help="lists need no flag here; taken for habit's sake")
    parser.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of what is printed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
