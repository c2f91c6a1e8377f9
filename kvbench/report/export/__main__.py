"""`kvbench export RUNS --format parquet --out FOLDER`: write stored runs in an open format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command, log_messages
from kvbench.common.text import one_line
from kvbench.report.export.every_eval import write_every_eval
from kvbench.report.export.lm_eval import write_lm_eval
from kvbench.report.export.parquet import write_parquet
from kvbench.report.written import replace_earlier
from kvbench.store import wanted_folders

_EPILOG = """\
examples:
  kvbench export outputs/runs --format parquet --out data
  kvbench export outputs/runs --format lm-eval --out data --benchmark longbench
"""
FORMATS = {
    "parquet": write_parquet,
    "every-eval-ever": write_every_eval,
    "lm-eval": write_lm_eval,
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Export all runs at or below a folder. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench export",
        description="Write stored runs in an open format.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="parquet: one row per sample")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, outside of the runs")
    parser.add_argument("--benchmark", help="only runs of this benchmark or suite, e.g. needle, longbench")
    arguments = parser.parse_args(argv)
    log_messages()
    print(one_line(export(arguments.runs, arguments.format, arguments.out, arguments.benchmark)))
    return 0


def export(root: Path, form: str, out: Path, benchmark: str | None = None) -> str:
    """Write the runs at or below `root` to the folder `out`. Return what was written, in words.

    What the last export of the same runs has written there and this one has not is deleted.

    Raises:
        ValueError: there are no runs, or `out` lies among them.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--out {out}: lies inside {root}, where runs are looked for; choose another folder")
    folders = wanted_folders(root, wanted=lambda manifest: _matches(manifest["label"]["benchmark"], benchmark))
    if not folders:
        what = f" of benchmark {benchmark}" if benchmark else ""
        raise ValueError(f"{root}: no runs{what} there; name another folder, or compute some: kvbench --help")
    out.mkdir(parents=True, exist_ok=True)
    written = FORMATS[form](folders, out)
    deleted = replace_earlier(out, [form, str(root.resolve()), benchmark], written.files)
    more = f"; {written.left_out} without an answer left out" if written.left_out else ""
    more += f"; {deleted} files of the last export deleted" if deleted else ""
    return f"{written.runs} runs with {written.samples} samples: {out}{more}"


def _matches(benchmark: str, wanted: str | None) -> bool:
    """Return True for a benchmark of this name and for the members of a suite of this name."""
    return wanted is None or f"{benchmark}-".startswith(f"{wanted}-")


if __name__ == "__main__":
    sys.exit(main())
