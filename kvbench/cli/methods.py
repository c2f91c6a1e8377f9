"""`kvbench methods`: the methods in conf/method with their parts and dials, read from the YAML files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from kvbench.cli.method_tables import describe, markdown, terminal, write
from kvbench.common.command import Parser, command
from kvbench.config import options

_EPILOG = """\
`acts`: at the prefill, at decode steps, or at both. `budget`: it counts tokens `kept` (or bytes, as in
budget=0.25B), or tokens `read` by a decode step. `bytes`: every token stays, and bytes choose how they are stored.
`none`: the method takes no budget. `paper` is an id of arXiv, or of OpenReview if it has letters.

examples:
  kvbench methods snapkv h2o_decode        all that is known of them: parts, dials, the code they were compared with
  kvbench methods ada_snapkv+kivi          the same of a combination
  kvbench methods --json
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each method, or all that is known about those named. Returns the exit code."""
    parser = Parser(
        prog="kvbench methods",
        description="List the methods, or describe those that are named.",
        epilog=_EPILOG,
    )
    parser.add_argument("names", nargs="*", metavar="METHOD", help="methods to describe with their parts and dials")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown, as in docs/methods.md")
    form.add_argument("--json", action="store_true", help="print JSON, with everything that is known")
    form.add_argument("--write", action="store_true", help="write the tables into docs/guide.md and docs/methods.md")
    arguments = parser.parse_args(argv)
    if arguments.write:
        if arguments.names:
            raise ValueError(f"--write {' '.join(arguments.names)}: writes all methods; leave out the names")
        for path in write():
            print(f"wrote {path}")
        return 0
    known = [describe(name) for name in arguments.names or sorted(options("method"))]
    if arguments.json:
        print(json.dumps([asdict(method) for method in known], indent=2, ensure_ascii=False))
    elif arguments.markdown:
        print(markdown(known))
    elif arguments.names:
        print("\n\n".join(method.text() for method in known))
    else:
        print(terminal(known))
        print("\nIn full, with parts, dials and the code that it was compared with: kvbench methods NAME")
    return 0
