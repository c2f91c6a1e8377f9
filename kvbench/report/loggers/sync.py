"""`scripts/wandb_sync outputs`: upload the W&B runs that are complete and still offline, by `wandb sync`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvbench.common.command import Parser, Unfinished, command
from kvbench.report.loggers.ledger import Ledger, read_ledger, write_ledger
from kvbench.report.loggers.live import missing_package
from kvbench.report.loggers.wandb_sink import server

_AT_ONCE = 50  # folders in one call: a command line has a limit


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Upload offline runs. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(prog="scripts/wandb_sync", description="Upload the W&B runs of an outputs folder.")
    parser.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"), help="default: outputs")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    arguments = parser.parse_args(argv)
    folder = arguments.outputs.absolute() / "wandb"
    if not folder.is_dir():
        raise ValueError(f"{arguments.outputs}: no folder `wandb` there; kvbench log {arguments.outputs} logger=wandb")
    waiting = unsent(folder)
    print(f"{len(waiting)} run(s) to upload in {folder}")
    if arguments.dry_run:
        print("\n".join(ledger.folder for _, ledger in waiting))
        return 0
    line = missing_package("wandb") if waiting else None
    if line is not None:
        raise ValueError(line.removeprefix("logger=wandb: "))
    failed = sum(not _send(folder, waiting[start : start + _AT_ONCE]) for start in range(0, len(waiting), _AT_ONCE))
    if failed:
        raise Unfinished("wandb sync could not upload everything; see its messages above, and issue this again")
    return 0


def unsent(folder: Path) -> list[tuple[Path, Ledger]]:
    """Return the ledgers, with their places, of the offline runs that are complete and were not uploaded yet."""
    waiting = []
    for file in sorted((folder / "kvbench").glob("*/*/entry.json")):
        ledger = read_ledger(file.parent)
        log = folder / ledger.folder / f"run-{ledger.id}.wandb"
        is_sent = ledger.sent or Path(f"{log}.synced").exists()
        if ledger.complete and not ledger.online and not is_sent and log.is_file():
            waiting.append((file.parent, ledger))
    return waiting


def _send(folder: Path, waiting: Sequence[tuple[Path, Ledger]]) -> bool:
    """Upload some runs and note it. Returns True if all went."""
    paths = [str(folder / ledger.folder) for _, ledger in waiting]
    if subprocess.run([sys.executable, "-m", "wandb", "sync", *paths], check=False).returncode:
        return False
    for place, ledger in waiting:  # the folders may be deleted now, as `wandb clean` does
        write_ledger(place, replace(ledger, sent=True, server=server()))
    return True


if __name__ == "__main__":
    sys.exit(main())
