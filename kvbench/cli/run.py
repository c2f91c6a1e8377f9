"""`kvbench run method=ada_pyramidkv budget=128`: compose, check, compute; a mistake of the user is one line.

Nothing heavy is imported before `--help`, `--cfg` and tab completion have been answered.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kvbench.cli.arguments import check_mode, check_package, parse, shell_command
from kvbench.cli.run_help import run_help
from kvbench.cli.signals import Preempted, preemptible
from kvbench.common.command import WANTS_TRACEBACK, command, is_mistake, message_of, say
from kvbench.common.files import TOO_MANY, too_many_files
from kvbench.common.paths import conf_dir
from kvbench.config import check, register
from kvbench.config.combinations import deferred
from kvbench.config.compose import inspect
from kvbench.config.compose import parse as parse_overrides
from kvbench.config.messages import one_line

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_RESUME = "issue the same command again to resume"


def _task(cfg: DictConfig) -> float | None:
    """Compute one composed configuration, for Hydra. Leaves with exit code 2 for a mistake of the user."""
    try:
        return _compute(cfg)
    except Exception as error:
        if WANTS_TRACEBACK or not is_mistake(error):
            raise
        say(_explained(error, sys.argv[1:], str(cfg.paths.outputs)))
        sys.exit(2)  # passes through Hydra, which would print more about the error itself


def _compute(cfg: DictConfig) -> float | None:
    hydra_cfg = HydraConfig.get()
    check_mode(hydra_cfg.mode == RunMode.MULTIRUN, list(hydra_cfg.overrides.hydra))
    check(cfg, hydra_cfg.runtime.choices)  # before torch is imported, so that a mistake is answered at once
    from kvbench.run.jobs import prepare
    from kvbench.run.plan import write_plans
    from kvbench.run.runner import present_outcomes, result, run_jobs

    jobs = prepare(cfg)
    if hydra_cfg.mode == RunMode.RUN:  # a job of launcher=basic does not know the others of its sweep
        write_plans(jobs, shell_command(sys.argv[1:]))
    outcomes = run_jobs(jobs)
    present_outcomes(outcomes)
    value = result(outcomes)
    if isinstance(value, Exception):
        raise value
    return value


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run or sweep as the arguments say. Returns the exit code, see `kvbench.common.command`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments.flags:
        print(run_help())
        return 0
    if sys.flags.optimize > 1:
        raise ValueError("PYTHONOPTIMIZE=2: transformers reads docstrings, which Python leaves out; unset it, or use 1")
    logging.raiseExceptions = WANTS_TRACEBACK  # a log file on a full disk: what matters is on the console, too
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise instead of printing, so that we can say it in one line
    register()
    outputs: str | None = None
    before = sys.argv
    try:
        with preemptible():
            overrides = arguments.overrides
            if "-m" in arguments.flags and arguments.composes:
                overrides = deferred(parse_overrides(overrides))
            if arguments.composes:
                composed = inspect(overrides)
                check_package(composed, arguments)
                outputs = str(composed.paths.outputs)
                if composed.shard is not None:  # shards share a machine: threads that spin take it from each other
                    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
            sys.argv = [before[0], *arguments.flags, *overrides]  # which is where Hydra reads them
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except Preempted as stop:
        say(f"preempted, {stop}; {_RESUME}")
        raise
    except KeyboardInterrupt:
        say(f"interrupted; {_RESUME}")
        return 130
    except Exception as error:
        if WANTS_TRACEBACK or not is_mistake(error):
            raise
        raise ValueError(_explained(error, arguments.overrides, outputs)) from None
    finally:
        sys.argv = before
    return 0


def _explained(error: Exception, overrides: Sequence[str], outputs: str | None) -> str:
    """Return the message of a mistake, naming the override to change.

    An OSError without a file is about the outputs if its cause is the disk: writing does not say to which file.
    """
    if not isinstance(error, OSError) or not error.strerror:  # some errors of Hydra count as one
        return one_line(error, overrides)
    if error.errno in TOO_MANY:
        return too_many_files()
    file = None if error.filename is None else Path(os.fsdecode(error.filename)).absolute()
    if outputs is not None:
        is_there = error.errno in _DISK if file is None else file.is_relative_to(Path(outputs).absolute())
        if is_there:
            return f"paths.outputs: cannot write {error.filename or 'there'} ({error.strerror})"
    return message_of(error)
