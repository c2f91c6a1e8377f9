"""Get the data of the published benchmarks: `python -m kvbench.data longbench` (ruler, needle, all)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command, message_of, say
from kvbench.data import longbench, manifest, sources
from kvbench.data.prepare import Preparation, prepare

_DESCRIPTION = """\
Get the data of the published benchmarks, check it, and put it where the benchmarks look.

  longbench   34 files, 21 data sets and the 13 of LongBench-E; 114 MB to fetch
  ruler       word lists, sentence splitter, essays, SQuAD and HotpotQA, which RULER's samples are made of; 89 MB
  needle      49 essays; 0.6 MB
"""
_EPILOG = """\
A second call fetches only what is missing; an interrupted download goes on where it stopped. What cannot be reached is
named with what to do, the rest is prepared, and the exit status is 1. Files whose checksum is known in advance must
have it; of the others it is recorded when they arrive. HF_ENDPOINT, proxies and pip's settings are respected.

  python -m kvbench.data all
  python -m kvbench.data longbench --from ~/LongBench     # data.zip or *.jsonl, and config/, got by hand
  python -m kvbench.data longbench --check
"""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Get or check the data. Returns 0, 1 when something is missing or damaged, 2 for a mistake of the user."""
    args = _parser().parse_args(arguments)
    status = 0
    for part in [*sources.PARTS] if args.part == "all" else [args.part]:
        folder, origin = args.to, args.origin
        if args.part == "all":
            folder, origin = folder and folder / part, origin and origin / part
        try:
            folder = (folder or manifest.home(part)).expanduser().absolute()
            if args.check:
                status |= _check(part, folder)
                continue
            origin = origin and origin.expanduser().absolute()
            if origin and not origin.is_dir():
                raise ValueError(f"--from {origin}: no such folder")
            print(f"{part}: {folder}", flush=True)
            status |= _tell(part, prepare(part, sources.PARTS[part], folder, origin, args.force))
        except (ValueError, OSError) as error:
            say(f"{part}: {message_of(error)}")
            status = 2
        except KeyboardInterrupt:
            say(f"{part}: interrupted; issue the same command again to go on from here")
            return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="kvbench data",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=[*sources.PARTS, "all"])
    parser.add_argument(
        "--from",
        dest="origin",
        type=Path,
        metavar="FOLDER",
        help="copy what is there instead of downloading; with all: from FOLDER/longbench, FOLDER/ruler, FOLDER/needle",
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="instead of $KVBENCH_CACHE/data/<part>; with all: FOLDER/<part>",
    )
    parser.add_argument("--check", action="store_true", help="only compare the files with their recorded checksums")
    parser.add_argument(
        "--force",
        action="store_true",
        help="get everything anew; with --from: take files that differ from the known checksum as they are",
    )
    return parser


def _tell(part: str, done: Preparation) -> int:
    """Print what a preparation came to."""
    for line in done.problems:
        print(f"  {line}", file=sys.stderr)
    by_kind = {
        kind: [name for name in done.new if done.files[name]["checked"] == kind] for kind in ("recorded", "differs")
    }
    if by_kind["recorded"]:
        print(f"  checksum not known in advance, now recorded: {_names(by_kind['recorded'])}")
    if by_kind["differs"]:
        print(f"  not the known version, taken as it is: {_names(by_kind['differs'])}")
    if part == "longbench" and done.files:
        rows = _rows(done.folder)
        short = [
            f"{name} {have}/{sources.LONGBENCH_ROWS[name]}"
            for name, have in rows.items()
            if have < sources.LONGBENCH_ROWS[name]
        ]
        print(f"  {len(rows)} of {len(sources.LONGBENCH_ROWS)} data sets, {len(rows) - len(short)} of them complete")
        if short:
            print(f"  incomplete, not for published numbers: {_names(short)}")
    if done.missing and (done.origin or not done.problems):
        print(f"  not there: {_names(done.missing)}; `python -m kvbench.data {part}` fetches what is missing")
    if not done.new and not done.problems:
        print(f"  already there: {len(done.files)} files")
    elif done.new:
        print(f"  {len(done.new)} files new, {len(done.files)} in all")
    return int(bool(done.problems) or (done.origin is None and bool(done.missing)))


def _rows(folder: Path) -> dict[str, int]:
    """Rows per data set: lines, as every file was validated before it was put there."""
    found = {}
    for name in longbench.LONGBENCH_ROWS:
        path = folder / "data" / f"{name}.jsonl"
        if path.is_file():
            data = path.read_bytes().rstrip()
            found[name] = data.count(b"\n") + 1
    return found


def _check(part: str, folder: Path) -> int:
    """Compare a folder with its manifest and print the differences."""
    problems = manifest.verify(folder)
    for line in problems:
        print(f"  {line}; get it anew: python -m kvbench.data {part} --force", file=sys.stderr)
    value = manifest.read(folder)
    print(f"{part}: {len(value['files']) - len(problems)} of {len(value['files'])} files as recorded in {folder}")
    if value.get("missing"):
        print(f"  never there: {_names(value['missing'])}")
    return int(bool(problems))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


if __name__ == "__main__":
    sys.exit(main())
