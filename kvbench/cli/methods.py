"""`kvbench methods`: the methods in conf/method with their parts and dials, read from the YAML files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from kvbench.cli.method_tables import describe, markdown, terminal, write
from kvbench.common.command import Parser, command
from kvbench.config import options

_EPILOG = """\
columns: `acts` is when the method changes the cache: at the prefill, at decode steps, or both. `budget` is what a
budget counts: tokens kept (or bytes, as in budget=0.25B), or tokens read per decode step; none: the method takes no
budget; "none, or bytes": it keeps every token, and bytes choose how they are stored. `storage` is the form in which
keys and values are held. `reference` is the code that the method was compared with.

examples:
  kvbench methods snapkv h2o_decode        their parts and dials
  kvbench methods ada_snapkv+kivi          those of a combination
  kvbench methods --json
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of all methods, or all that is known about those named. Returns the exit code."""
    parser = Parser(
        prog="kvbench methods",
        description="List the methods, or describe those that are named.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        print("\nOne method with its parts and the meaning of its dials: kvbench methods NAME")
    return 0
