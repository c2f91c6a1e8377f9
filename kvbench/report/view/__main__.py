"""`kvbench view RUNS`: write one HTML file in which all runs, their tables, curves and answers can be looked at."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command, message_of
from kvbench.common.text import one_line
from kvbench.report.view.page import LIMIT, Written, write
from kvbench.store import Manifest, load_numbers

_EPILOG = """\
examples:
  kvbench view outputs                                     outputs/view.html
  kvbench view outputs --benchmark ruler --out ruler.html
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of all runs below a folder. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench view",
        description="Write one HTML file to look at runs and their answers.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("--out", type=Path, help="the file to write; default: view.html in that folder")
    parser.add_argument("--benchmark", help="only runs of this benchmark or suite, e.g. needle, longbench")
    parser.add_argument("--no-answers", action="store_true", help="leave out the samples: tables, curves, grids alone")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.runs / "view.html"
    if out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {out}: the name of an HTML file, such as view.html")
    runs = load_numbers(arguments.runs, wanted=lambda manifest: _is_of(manifest, arguments.benchmark))
    if not runs:
        what = f" of benchmark {arguments.benchmark}" if arguments.benchmark else ""
        raise ValueError(f"{arguments.runs}: no runs{what} there; name another folder, or compute some: kvbench --help")
    name = arguments.runs.resolve().name or "kvbench"
    try:
        print(_words(write(runs, out, name, answers=not arguments.no_answers)))
    except OSError as error:
        if arguments.out is None and str(error.filename).startswith(str(out.with_suffix(""))):  # also of the parts
            raise ValueError(f"{message_of(error)}; choose another place with --out FILE.html") from None
        raise
    return 0


def _is_of(manifest: Manifest, benchmark: str | None) -> bool:
    """Return True for a run of a benchmark, of a suite, or of suites whose names begin with it; None: any run."""
    place = manifest["part"]
    names = [manifest["label"]["benchmark"], *([place["suite"]] if place else [])]
    return benchmark is None or any(f"{name}-".startswith(f"{benchmark}-") for name in names)


def _words(written: Written) -> str:
    """Return what was written, as one line."""
    size = f"{written.size / 1e6:.1f} MB"
    text = f"{one_line(str(written.page))}: {written.runs:,} runs, {written.samples:,} answers, {size}"
    if written.parts:
        folder = one_line(str(written.folder))
        text += f"; {written.parts} parts in {folder} hold the answers, as they are more than {LIMIT // 10**6} MB: "
        text += "keep that folder next to the page"
    return text


if __name__ == "__main__":
    sys.exit(main())
