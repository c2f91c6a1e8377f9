"""`kvbench log outputs logger=wandb`: send stored results to a logger; what it has already is not sent again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kvbench import store
from kvbench.common.command import Parser, Unfinished, command, log_messages
from kvbench.config import register
from kvbench.config.compose import compose_one
from kvbench.config.loggers import check_loggers
from kvbench.report.loggers.live import Process, missing_package
from kvbench.report.loggers.order import Order

_EPILOG = """\
Reads run folders alone: no model, no GPU. What a logger has already is not written again, so this repairs what a
killed run, a full disk or a missing network has left out. In W&B, a sweep gets a report as well. Settings of the
loggers are in conf/logger.

examples:
  kvbench log outputs logger=wandb
  kvbench log outputs/runs/needle logger=wandb logger.wandb.project=needle
  kvbench log outputs 'logger=[wandb,trackio]'
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Log all runs below a folder. Returns the exit code, see `kvbench.common.command`."""
    parser = Parser(
        prog="kvbench log",
        description="Send stored results to W&B or Trackio; only what is missing there is written.",
        epilog=_EPILOG,
    )
    parser.add_argument("runs", type=Path, help="a run folder, or a folder with runs at any depth, e.g. outputs")
    parser.add_argument("overrides", nargs="+", metavar="logger=NAME", help="which logger, and its settings")
    parser.add_argument("--out", type=Path, help="folder for the files of the loggers; default: the outputs folder")
    arguments = parser.parse_intermixed_args(argv)
    log_messages()
    loggers = _loggers(arguments.overrides)
    folders = store.run_folders(arguments.runs)
    if not folders:
        raise ValueError(f"{arguments.runs}: no runs there; name another folder, or compute some: kvbench --help")
    outputs = _outputs(arguments.runs)
    files = outputs if arguments.out is None else arguments.out.absolute()
    _check_writable(files)
    _carry_out(Order(str(outputs), str(files), [str(folder.absolute()) for folder in folders], loggers, live=False))
    return 0


def _loggers(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the node `logger` that overrides compose.

    Raises:
        ValueError: an override of something else, no logger, one whose package is missing, or a wrong setting.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] != "logger":
            raise ValueError(f"{override}: kvbench log takes logger=… and logger.NAME.SETTING=… alone")
    register()
    node = dict(compose_one(overrides).logger)
    plain = {name: _plain(settings) for name, settings in node.items()}
    check_loggers(plain)
    if not plain:
        raise ValueError("logger=none: choose where to log, such as logger=wandb")
    for name in plain:
        line = missing_package(name)
        if line is not None:
            raise ValueError(line)
    return plain


def _plain(settings: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else settings


def _outputs(runs: Path) -> Path:
    """Return the outputs folder of a folder with runs: the nearest above it with a folder `runs`, else itself."""
    runs = runs.absolute()
    return next((folder for folder in (runs, *runs.parents) if (folder / "runs").is_dir()), runs)


def _check_writable(folder: Path) -> None:
    """Check it once, and not with a warning for each entry. Raises ValueError that names --out."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"the files of the loggers cannot be written there ({error.strerror})"
        raise ValueError(f"{folder}: {reason}; choose another folder with --out") from None


def _carry_out(order: Order) -> None:
    """Let the process of the loggers do it. Its warnings go to stderr, its outcome to stdout.

    Raises:
        Unfinished: something could not be logged.
    """
    process = Process(order, quiet=False)
    process.hang_up()
    for line in process.told():
        print(line)
    if process.status:
        raise Unfinished("not everything was logged; issue the command again to write what is missing")


if __name__ == "__main__":
    sys.exit(main())
