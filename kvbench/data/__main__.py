"""The command `kvbench data`: get the data of the published benchmarks (longbench, ruler, needle, all)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvbench.common.command import Parser, command, message_of, say
from kvbench.data import inventory, sources
from kvbench.data.prepare import Preparation, prepare

_DESCRIPTION = """\
Get the data of the published benchmarks, check it, and put it where the benchmarks look.

  longbench   34 files, 21 data sets and the 13 of LongBench-E; 114 MB to fetch
  ruler       word lists, sentence splitter, essays, SQuAD and HotpotQA, which RULER's samples are made of; 89 MB
  needle      49 essays; 0.6 MB
"""
_EPILOG = """\
A second call fetches only what is missing; an interrupted download continues where it stopped. A source that cannot be
reached is named with the remedy, the rest is prepared, and the exit status is 1. Files whose checksum is known in
advance must have it; the checksums of the others are recorded when they arrive. HF_ENDPOINT, proxies and pip's settings
are respected.

examples:
  kvbench data all
  kvbench data longbench --from ~/LongBench     # data.zip or *.jsonl, and config/, fetched by hand
  kvbench data longbench --check
"""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Get or check the data. Returns 0, 1 when something is missing or damaged, 2 for a mistake of the user."""
    args = _parser().parse_args(arguments)
    status = 0
    for bundle in [*sources.BUNDLES] if args.bundle == "all" else [args.bundle]:
        folder, origin = args.to, args.origin
        if args.bundle == "all":
            folder, origin = folder and folder / bundle, origin and origin / bundle
        try:
            folder = (folder or inventory.home(bundle)).expanduser().absolute()
            if args.check:
                status |= _check(bundle, folder)
                continue
            origin = origin and origin.expanduser().absolute()
            if origin and not origin.is_dir():
                raise ValueError(f"--from {origin}: no such folder")
            print(f"{bundle}: {folder}", flush=True)
            status |= _tell(bundle, prepare(bundle, sources.BUNDLES[bundle], folder, origin, args.force))
        except (ValueError, OSError) as error:
            say(f"{bundle}: {message_of(error)}")
            status = 2
        except KeyboardInterrupt:
            say(f"{bundle}: interrupted; issue the same command again to go on from here")
            return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="kvbench data",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("bundle", choices=[*sources.BUNDLES, "all"])
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
        help="instead of $KVBENCH_CACHE/data/<bundle>; with all: FOLDER/<bundle>",
    )
    parser.add_argument("--check", action="store_true", help="only compare the files with their recorded checksums")
    parser.add_argument(
        "--force",
        action="store_true",
        help="fetch everything again; with --from: take files that differ from the known checksum as they are",
    )
    return parser


def _tell(bundle: str, done: Preparation) -> int:
    """Print the result of a preparation and return its exit status."""
    for line in done.problems:
        print(f"  {line}", file=sys.stderr)
    by_kind = {
        kind: [name for name in done.new if done.files[name]["checked"] == kind] for kind in ("recorded", "differs")
    }
    if by_kind["recorded"]:
        print(f"  checksum not known in advance, now recorded: {_names(by_kind['recorded'])}")
    if by_kind["differs"]:
        print(f"  not the known version, taken as it is: {_names(by_kind['differs'])}")
    complete = {name: number for source in sources.BUNDLES[bundle] for name, number in source.rows.items()}
    if complete and done.files:
        rows = {name: _rows(done.folder / name) for name in complete if (done.folder / name).is_file()}
        short = [f"{Path(name).stem} {rows[name]}/{complete[name]}" for name in rows if rows[name] < complete[name]]
        print(f"  {len(rows)} of {len(complete)} data sets, {len(rows) - len(short)} of them complete")
        if short:
            print(f"  incomplete, not for published numbers: {_names(short)}")
    if done.missing and (done.origin or not done.problems):
        print(f"  not there: {_names(done.missing)}; `kvbench data {bundle}` fetches what is missing")
    if not done.new and not done.problems:
        print(f"  already there: {len(done.files)} files")
    elif done.new:
        print(f"  {len(done.new)} files new, {len(done.files)} in all")
    return int(bool(done.problems) or (done.origin is None and bool(done.missing)))


def _rows(path: Path) -> int:
    """Return the number of rows: of lines, as every file was validated before it was put there."""
    return path.read_bytes().rstrip().count(b"\n") + 1


def _check(bundle: str, folder: Path) -> int:
    """Compare a folder with its inventory, print the differences, and return the exit status."""
    problems = inventory.verify(folder)
    for line in problems:
        print(f"  {line}; fetch it again: kvbench data {bundle} --force", file=sys.stderr)
    value = inventory.read(folder)
    print(f"{bundle}: {len(value['files']) - len(problems)} of {len(value['files'])} files as recorded in {folder}")
    if value.get("missing"):
        print(f"  never there: {_names(value['missing'])}")
    return int(bool(problems))


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


if __name__ == "__main__":
    sys.exit(main())
